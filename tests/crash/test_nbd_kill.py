"""kill -9 of an array while clients write by NBD: what a flush answered is there, whole, and nothing older.

Two connections write blocks that bear rising numbers; either flushes. After each kill and restart
every block must hold the newest number that was flushed, or a later one.
"""

from __future__ import annotations

import itertools
import random
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.nbd import wire
from arraylift.sizes import KIB, MIB
from tests import campaign
from tests.e2e.test_nbd import Array
from tests.fakes.nbd import Client, Reply
from tests.programs import need

BLOCK = 4 * KIB
BLOCKS = 16 * MIB // BLOCK
DEPTH = 16
CYCLES = 3
CAMPAIGN_CYCLES = 150
SECONDS = (0.2, 1.2)

Kept = dict[int, int]
"""Number of the newest content that is known to be there, by block."""

LOCK = threading.Lock()
NUMBER = struct.Struct("<QQ")


def block_of(index: int, number: int) -> bytes:
    """Content by which a torn, misplaced or old block is seen; number 0 is a hole."""
    return NUMBER.pack(index, number) * (BLOCK // NUMBER.size) if number else bytes(BLOCK)


def number_of(index: int, content: bytes) -> int:
    """Raises AssertionError where the block is torn or not this one's."""
    number: int = NUMBER.unpack_from(content)[1]
    assert content == block_of(index, number), f"block {index} is torn, or another's"
    return number


class Writer:
    """One connection with several requests on their way; knows what was sent, answered, flushed."""

    def __init__(
        self, path: str, seed: int, blocks: range, *, numbers: Iterator[int], kept: Kept, answered: Kept
    ) -> None:
        self.sent: dict[int, list[int]] = {}
        self.kept = kept
        self._path = path
        self._chance = random.Random(seed)
        self._blocks = blocks
        self._numbers = numbers
        self._answered = answered  # by any connection: a flush on one covers all
        self._waiting: dict[int, tuple[str, dict[int, int]]] = {}
        self.flushes = 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            client = Client.connect(self._path, "disk")
        except (OSError, EOFError):
            return
        try:
            while True:
                while len(self._waiting) < DEPTH:
                    self._start(client)
                self._done(client.decoder.next())
        except (OSError, EOFError):
            pass  # killed
        finally:
            client.close()

    def _start(self, client: Client) -> None:
        if self._chance.random() < 0.03:
            # Covers what was answered before it was sent.
            self._waiting[client.start(wire.CMD_FLUSH)] = "flush", dict(self._answered)
            return
        index = self._chance.choice(self._blocks)
        busy = {each for kind, blocks in self._waiting.values() if kind != "flush" for each in blocks}
        if index in busy:  # two writes of one block on their way may end in either order
            return
        number = next(self._numbers)
        fua = self._chance.random() < 0.05
        self.sent.setdefault(index, []).append(number)
        flags = wire.CMD_FLAG_FUA * fua
        cookie = client.start(
            wire.CMD_WRITE, index * BLOCK, BLOCK, flags=flags, payload=block_of(index, number)
        )
        self._waiting[cookie] = "fua" if fua else "write", {index: number}

    def _done(self, reply: Reply) -> None:
        assert reply.error == 0
        kind, blocks = self._waiting.pop(reply.cookie)
        if kind != "flush":
            self._answered |= blocks
        if kind != "write":
            self.flushes += 1
            with LOCK:
                for index, number in blocks.items():
                    self.kept[index] = max(number, self.kept.get(index, 0))


class Story:
    """One array through many kills."""

    def __init__(self, home: Path) -> None:
        self.array = Array(home)
        self.array.daemon.start()
        self.array.volume("disk", BLOCKS * BLOCK)
        self.array.export("disk", volume_name="disk")
        self.kept: Kept = {}
        self._numbers = itertools.count(1)
        self.flushes = self.writes = 0

    def cycle(self, seed: int) -> None:
        chance = random.Random(seed)
        half = BLOCKS // 2
        answered: Kept = {}
        parts = (range(half), range(half, BLOCKS))
        writers = [
            Writer(
                self.array.socket,
                seed + which,
                part,
                numbers=self._numbers,
                kept=self.kept,
                answered=answered,
            )
            for which, part in enumerate(parts)
        ]
        for writer in writers:
            writer.thread.start()
        time.sleep(chance.uniform(*SECONDS))
        if chance.random() < 0.5:
            self.array.snapshot("disk", f"s{next(self._numbers)}")
            time.sleep(chance.uniform(0, 0.3))
        self.array.daemon.kill()
        for writer in writers:
            writer.thread.join(30)
            assert not writer.thread.is_alive()
            self.flushes += writer.flushes
            self.writes += sum(map(len, writer.sent.values()))
        self.array.daemon.start()
        self._check(writers)

    def _check(self, writers: list[Writer]) -> None:
        client = Client.connect(self.array.socket, "disk")
        content = client.read(0, BLOCKS * BLOCK)
        client.close()
        sent = {index: numbers for writer in writers for index, numbers in writer.sent.items()}
        for index in range(BLOCKS):
            found = number_of(index, content[index * BLOCK : (index + 1) * BLOCK])
            least = self.kept.get(index, 0)
            assert found >= least, f"block {index} holds {found}, although {least} was flushed"
            assert found == least or found in sent.get(index, ()), f"block {index} holds {found}, never sent"
            self.kept[index] = found  # it was read from what the start made durable


def _run(home: Path, seed: int, cycles: int) -> Story:
    story = Story(home)
    try:
        for cycle in range(cycles):
            story.cycle(seed * 10_000 + cycle)
    finally:
        story.array.close()
    campaign.report(
        "nbd kills", seed=seed, cycles=cycles, writes=story.writes, flushes=story.flushes, blocks_lost=0
    )
    return story


def test_what_a_flush_answered_survives_kills(tmp_path: Path) -> None:
    story = _run(tmp_path, 1, CYCLES)
    assert story.flushes > 10 * CYCLES, "too few flushes to show anything"


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_campaign_of_kills_under_nbd(tmp_path: Path) -> None:
    seed = campaign.seed_of("nbd kills")
    story = _run(tmp_path, seed, campaign.scaled(CAMPAIGN_CYCLES))
    campaign.record("nbd-kills", seed=seed, writes=story.writes, flushes=story.flushes)


def test_fio_finds_every_block_that_it_had_flushed(tmp_path: Path) -> None:
    """fio writes with a flush after each block, is left without its array, and verifies what it had done."""
    need("fio")
    array = Array(tmp_path)
    try:
        array.daemon.start()
        array.volume("disk", 64 * MIB)
        array.export("disk", volume_name="disk")
        job = [
            "fio",
            "--name=kill",
            "--ioengine=nbd",
            f"--uri=nbd+unix:///disk?socket={array.socket}",
            "--rw=write",  # in order, so that all before the last answered block was flushed
            "--bs=4k",
            "--size=64m",
            "--verify=crc32c",
            "--randseed=7",
        ]
        log = tmp_path / "fio"
        writing = [*job, "--fsync=1", "--do_verify=0", f"--write_iops_log={log}", "--log_offset=1"]
        with subprocess.Popen(
            writing, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as fio:
            time.sleep(2.5)
            array.daemon.kill()
            fio.wait(30)
        lines = (tmp_path / "fio_iops.1.log").read_text().splitlines()
        offsets = [int(line.split(",")[4]) for line in lines if line.split(",")[2].strip() == "1"]
        done = max(offsets, default=0)  # it was answered; its flush may not have been
        assert done > 10 * BLOCK, f"fio had written only {done} bytes"
        array.daemon.start()
        checking = [*job, "--verify_only", f"--io_size={done}", f"--size={done}"]
        ended = subprocess.run(
            checking, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        array.close()
        shutil.rmtree(tmp_path / "a1", ignore_errors=True)
