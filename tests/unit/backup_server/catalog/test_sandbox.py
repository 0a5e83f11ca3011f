"""Parsers that lie, crash or hang, and images that make them: refused in bounded time, nothing left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arraylift.errors import Corruption, InvalidRequest, NotFound, WrongState
from arraylift.sizes import KIB, MIB
from backup_server.catalog import browse, frames, sandbox
from backup_server.catalog.frames import FrameKind
from backup_server.catalog.sandbox import ParserLimits, ParserRun
from tests.unit.backup_server.catalog.images import BytesImage, disks, listed, make_image, stage_tree

REFUSALS = (WrongState, NotFound, InvalidRequest)
"""What a real parser may end in: never Corruption, which is a parser that lies."""

IMAGE = BytesImage(bytes(range(256)) * 256)
ENTRY = frames.encode_entry(browse.FileEntry("/file", "file", 100, 0o100644, 0, 0, 0, ""))
DONE = frames.frame(FrameKind.DONE)


def entry(name: str, *, size: int = 1, mode: int = 0o100644, target: str = "") -> bytes:
    return frames.encode_entry(browse.FileEntry(f"/{name}", name, size, mode, 0, 0, 0, target))


def pieces(*packed: tuple[int, int, int, int]) -> bytes:
    return frames.frame(FrameKind.PIECES, b"".join(frames._PIECE.pack(*piece) for piece in packed))


def lying(program: str, *, seconds: float = 20.0, reads_max: int = 50) -> ParserRun:
    """Start a parser of our own making: ``w`` writes, ``r`` reads."""
    prelude = (
        "import os, sys, time, signal\nw = lambda data: os.write(1, data)\nr = lambda n: os.read(0, n)\n"
    )
    command = [sys.executable, "-S", "-c", prelude + program]
    return ParserRun(IMAGE, limits=ParserLimits(run_seconds=seconds, reads_max=reads_max), command=command)


def gone(pid: int) -> bool:
    """Say whether a process is no more; a run waits for its own, so this needs no patience."""
    return not Path(f"/proc/{pid}").exists()


LIES = {
    "garbage": b"garbage " * 1000,
    "huge frame": frames.HEADER.pack(FrameKind.ENTRY, 1 << 31),
    "unknown kind": frames.HEADER.pack(99, 0),
    "kind of the parent": frames.frame(FrameKind.BYTES, b"x"),
    "read beyond the end": frames.encode_read(len(IMAGE.content) - 10, 11),
    "read far beyond": frames.encode_read((1 << 64) - 1, 1),
    "read too large": frames.encode_read(0, frames.READ_BYTES_MAX + 1),
    "read of nothing": frames.encode_read(0, 0),
    "read cut short": frames.frame(FrameKind.READ, b"\0"),
    "entry cut short": frames.frame(FrameKind.ENTRY, b"\0"),
    "name with a slash": entry("../etc"),
    "name of a parent": entry(".."),
    "name with NUL": entry("a\0b"),
    "no name": entry(""),
    "long name": entry("n" * 256),
    "no type": entry("a", mode=0o644),
    "target of a file": entry("a", target="b"),
    "long target": entry("a", mode=0o120777, target="t" * 5000),
    "size beyond reason": entry("a", size=1 << 63),
    "pieces in a list": entry("a") + pieces((1, 0, 0, 1)),
    "reason unknown": frames.encode_failed(77, "?"),
    "failed cut short": frames.frame(FrameKind.FAILED),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_list_is_refused(lie: str) -> None:
    run = lying(f"w({LIES[lie] + DONE!r}); time.sleep(60)")
    with pytest.raises(Corruption, match="gave what it may not"):
        sandbox.list_entries(run, "/")
    assert gone(run.pid)


FILE_LIES = {
    "nothing": DONE,
    "pieces before the entry": pieces((1, 0, 0, 100)),
    "two entries": ENTRY + ENTRY,
    "another file": entry("other") + DONE,
    "a directory": entry("file", mode=0o40755) + DONE,
    "pieces missing": ENTRY + DONE,
    "pieces short": ENTRY + pieces((1, 0, 0, 99)) + DONE,
    "pieces beyond the size": ENTRY + pieces((1, 0, 0, 101)) + DONE,
    "gap": ENTRY + pieces((1, 0, 0, 10), (1, 20, 0, 80)) + DONE,
    "overlap": ENTRY + pieces((1, 0, 0, 60), (1, 50, 0, 50)) + DONE,
    "empty piece": ENTRY + pieces((1, 0, 0, 0), (1, 0, 0, 100)) + DONE,
    "outside the image": ENTRY + pieces((1, 0, len(IMAGE.content) - 99, 100)) + DONE,
    "far outside": ENTRY + pieces((1, 0, (1 << 64) - 1, 100)) + DONE,
    "zeros with an offset": ENTRY + pieces((2, 0, 5, 100)) + DONE,
    "literal without bytes": ENTRY + pieces((3, 0, 0, 100)) + DONE,
    "pieces cut": ENTRY + frames.frame(FrameKind.PIECES, b"\1\2\3") + DONE,
    "kind unknown": ENTRY + pieces((9, 0, 0, 100)) + DONE,
    "literal too long": ENTRY + frames.frame(FrameKind.LITERAL, bytes(8 + 101)) + DONE,
}


@pytest.mark.parametrize("lie", FILE_LIES)
def test_lies_about_a_file_are_refused(lie: str) -> None:
    run = lying(f"w({FILE_LIES[lie]!r}); time.sleep(60)")
    with pytest.raises(Corruption, match="gave what it may not"):
        sandbox.file_pieces(run, "/file", image_bytes=IMAGE.size_bytes)
    assert gone(run.pid)


def test_what_is_true_passes() -> None:
    told = (
        ENTRY
        + pieces((1, 0, 7, 50), (2, 50, 0, 48))
        + frames.frame(FrameKind.LITERAL, bytes([0] * 7 + [98]) + b"ab")
    )
    run = lying(f"w({told + DONE!r}); time.sleep(60)")
    found, parts = sandbox.file_pieces(run, "/file", image_bytes=IMAGE.size_bytes)
    assert found.size_bytes == 100
    assert [piece.length for piece in parts] == [50, 48, 2]
    assert parts[-1].literal == b"ab"
    assert gone(run.pid)


def test_endless_pieces_are_cut() -> None:
    head, one = (
        frames.HEADER.pack(FrameKind.PIECES, 4096 * frames._PIECE.size),
        frames._PIECE.pack(2, 0, 0, 1),
    )
    run = lying(f"w({ENTRY!r})\nwhile True: w({head!r} + {one!r} * 4096)")
    with pytest.raises(Corruption, match="pieces without end"):
        sandbox.file_pieces(run, "/file", image_bytes=IMAGE.size_bytes)
    assert gone(run.pid)


def test_one_name_for_ever_is_cut() -> None:
    told = entry("same") * 100
    run = lying(f"while True: w({told!r})", seconds=30)
    with pytest.raises(Corruption, match="more than 100000 names"):
        sandbox.list_entries(run, "/")
    assert gone(run.pid)


def test_endless_names_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ENTRIES_MAX", 1000)
    before, after = (part for part in entry("0000").split(b"0000"))
    run = lying(f"[w({before!r} + b'%04d' % number + {after!r}) for number in range(1001)]; time.sleep(60)")
    with pytest.raises(Corruption, match="more than 1000 names"):
        sandbox.list_entries(run, "/")


def test_endless_reads_are_cut() -> None:
    run = lying(f"while True: w({frames.encode_read(0, 64 * KIB)!r}); r(100000)")
    with pytest.raises(WrongState, match="more than 50 reads"):
        sandbox.list_entries(run, "/")
    assert gone(run.pid)


@pytest.mark.parametrize(
    "program",
    [
        "time.sleep(600)",
        "while True: pass",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        # asks, and never takes what it is given: the parent must not wait in a write
        f"w({frames.encode_read(0, 64 * KIB) * 40!r}); time.sleep(600)",
    ],
)
def test_a_parser_that_hangs_is_killed(program: str) -> None:
    started = time.monotonic()
    run = lying(program, seconds=0.7)
    with pytest.raises(WrongState, match=r"could not be read in 0\.7 s"):
        sandbox.list_entries(run, "/")
    assert gone(run.pid)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        (f"w({ENTRY[:20]!r}); os.kill(os.getpid(), signal.SIGABRT)", "SIGABRT"),
    ],
)
def test_a_parser_that_dies_is_reported(program: str, how: str) -> None:
    run = lying(program)
    with pytest.raises(WrongState, match=how):
        sandbox.list_entries(run, "/")
    assert gone(run.pid)


def test_messages_of_a_parser_are_made_safe() -> None:
    told = frames.encode_failed(0, "no \x1b[2J file")
    run = lying(f"w({told!r}); time.sleep(60)")
    with pytest.raises(NotFound, match=r"no \?\[2J file"):
        sandbox.list_entries(run, "/")


def test_a_parser_can_open_and_start_nothing(tmp_path: Path) -> None:
    """The limits of the real parser, tried from within by a module that imports it."""
    tried = """
from backup_server.catalog import parser
import os, socket
parser.limit(10, 512 << 20)
said = []
for what in (lambda: os.open('/etc/passwd', os.O_RDONLY), socket.socket, os.fork, os.pipe):
    try: said.append(str(what()))
    except OSError as error: said.append(type(error).__name__)
os.write(1, ' '.join(said).encode())
"""
    root = Path(sandbox.__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", tried], cwd=root, capture_output=True, timeout=30, check=True, env={}
    )
    assert ended.stdout.decode().split() == ["OSError", "OSError", "BlockingIOError", "OSError"]


def test_limits_of_memory_and_cpu_hold() -> None:
    root = Path(sandbox.__file__).resolve().parents[2]
    prelude = "from backup_server.catalog import parser\nparser.limit(1, 256 << 20)\n"
    for program, code in (("while True: pass", -signal.SIGKILL), ("bytearray(300 << 20)", 1)):
        command = [sys.executable, "-c", prelude + program]
        ended = subprocess.run(command, cwd=root, capture_output=True, timeout=30, check=False, env={})
        assert ended.returncode == code
        assert (b"MemoryError" in ended.stderr) == (code == 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("sound")
    tree = stage_tree(folder / "tree", sparse=False)
    kinds = [("ext4", "-b", "1024"), ("ext3", "-b", "1024"), ("ext4", "-I", "256", "-O", "inline_data")]
    return [
        make_image(folder / f"{number}", tree, *kind, size=10 * MIB).read_bytes()
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_mutated_images_get_an_answer_in_bounded_time(seed: int, sound: list[bytes]) -> None:
    chance = random.Random(seed)
    content = bytearray(sound[seed % len(sound)])
    used = [start for start in range(0, len(content), 1024) if any(content[start : start + 1024])]
    metadata = used[: len(used) // 3]
    for _ in range(chance.choice((1, 8, 64, 512))):
        at = chance.choice(metadata) + chance.randrange(1024)
        width = chance.choice((1, 1, 4, 16))
        content[at : at + width] = chance.choice((chance.randbytes(width), b"\xff" * width, bytes(width)))
    image = BytesImage(content)
    limits = ParserLimits(run_seconds=4.0, cpu_seconds=3)
    started = time.monotonic()
    try:
        listed = listed(image, ("/", "/many", "/d/e/f")[seed // 3 % 3], limits=limits)
        assert all("/" not in found.name for found in listed)
    except REFUSALS:
        pass
    try:
        _, found, parts = browse.read_file(disks(image), "/large", limits=limits)
        if found.size_bytes < 64 * MIB:
            assert sum(map(len, parts)) == found.size_bytes
    except REFUSALS:
        pass
    assert time.monotonic() - started < 30


def test_nothing_is_left_of_the_parsers(sound: list[bytes]) -> None:
    listed(BytesImage(sound[0]), "/")
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not [command for command in commands if b"backup_server.catalog.parser" in command]
