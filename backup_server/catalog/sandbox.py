"""The parent's side of a parser: start it, feed it, bound it, believe nothing.

Invariants: S1 every wait has the run's deadline, and every count a maximum. S2 a read is answered only
inside the image and only up to READ_BYTES_MAX. S3 when a run ends, however it ends, its process is killed and
waited for. S4 what leaves this module was checked: names, modes, counts, pieces.
Called by browse, from any thread; a run belongs to one thread.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import Corruption, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.sizes import KIB, MIB
from backup_server.catalog import frames
from backup_server.catalog.batch import Batch, BatchChecker, Unread
from backup_server.catalog.entry import DiskSet, FileEntry, Volume
from backup_server.catalog.frames import Ask, FrameKind, Operation
from backup_server.catalog.pieces import Piece, flaw_of

ENTRIES_MAX = 100_000
"""Names of a directory that is listed; a walk has no such maximum, since it keeps none."""

LISTED_BYTES_MAX = 64 * MIB
VOLUME_BYTES_MAX = 1 << 63

_PACKAGES_ROOT = Path(__file__).resolve().parents[2]
_PIPE_STEP_BYTES = 256 * KIB
_REASONS = (NotFound, InvalidRequest, WrongState)  # numbered as parser.REASONS
NEXT_STEP = "restore the whole disk, and look at it with the guest's own tools"


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """What one run may take. Reads are of READ_BYTES_MAX at most."""

    run_seconds: float = 120.0
    cpu_seconds: int = 60
    memory_bytes: int = 384 * MIB
    reads_max: int = 1 << 18


DEFAULT_LIMITS = ParserLimits()
WALK_LIMITS = ParserLimits(run_seconds=4 * 3600.0, cpu_seconds=2 * 3600, reads_max=1 << 24)
"""For whole volumes: ten million files at some thousand a second."""


def parser_command(limits: ParserLimits) -> list[str]:
    """Return the command of a parser with these limits."""
    module = "backup_server.catalog.parser"
    return [sys.executable, "-E", "-s", "-m", module, str(limits.cpu_seconds), str(limits.memory_bytes)]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_PACKAGES_ROOT,
            env={"LC_ALL": "C.UTF-8"},
            bufsize=0,
            close_fds=True,
            start_new_session=True,
        )
    except OSError as error:
        raise Overloaded(f"no process can be started to parse an image: {error.strerror}") from error


class ParserRun:
    """One parser process and one request to it. Close it (S3)."""

    def __init__(
        self,
        disks: DiskSet,
        *,
        limits: ParserLimits = DEFAULT_LIMITS,
        command: Sequence[str] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._disks, self._limits, self._clock = disks, limits, clock
        assert 0 < len(disks) <= frames.DISKS_MAX
        self._deadline = clock.monotonic() + limits.run_seconds
        self._process = _start(list(command) or parser_command(limits))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._received = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Kill the process and everything in its session, and wait for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def disk_sizes(self) -> list[int]:
        return [disk.image.size_bytes for disk in self._disks]

    def ask(
        self, operation: Operation, volume: str = "", path: str = ""
    ) -> Iterator[tuple[FrameKind, bytes]]:
        """Yield the result frames up to DONE, answering the parser's reads in between.

        NotFound, InvalidRequest, WrongState: what the parser says, or that it crashed or took too long.
        Corruption: it broke the protocol. Errors of the images' own reads pass through.
        """
        named = [(disk.name, disk.image.size_bytes) for disk in self._disks]
        self._send(frames.encode_ask(Ask(operation, named, volume, frames.to_bytes(path))))
        reads = 0
        while True:
            kind, payload = self._frame()
            if kind is FrameKind.READ:
                reads += 1
                if reads > self._limits.reads_max:
                    raise WrongState(f"the parser asked for more than {reads - 1} reads", next_step=NEXT_STEP)
                self._answer(payload)
            elif kind is FrameKind.DONE:
                return
            elif kind is FrameKind.FAILED:
                raise _said(payload)
            elif kind in {FrameKind.VOLUME, FrameKind.BATCH, FrameKind.UNREAD}:
                yield kind, payload
            else:
                raise broken(f"a frame of kind {kind.name}")

    def _answer(self, payload: bytes) -> None:
        try:
            number, offset, length = frames.decode_read(payload)
        except ValueError as error:
            raise broken(str(error)) from error
        sizes = self.disk_sizes
        if number >= len(sizes) or not 0 < length <= frames.READ_BYTES_MAX or offset + length > sizes[number]:
            raise broken(f"a read of {length} bytes at {offset} of disk {number}")  # S2
        content = self._disks[number].image.read(offset, length)
        if len(content) != length:
            raise Corruption(f"the image gave {len(content)} of {length} bytes at {offset}")
        self._send(frames.frame(FrameKind.BYTES, content))

    def _frame(self) -> tuple[FrameKind, bytes]:
        try:
            kind, length = frames.header(self._take(frames.HEADER.size))
        except ValueError as error:
            raise broken(str(error)) from error
        return kind, self._take(length)

    def _take(self, length: int) -> bytes:
        while len(self._received) < length:
            self._wait(self._output, select.POLLIN)
            part = os.read(self._output, _PIPE_STEP_BYTES)
            if not part:
                raise self._ended()
            self._received += part
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._input, select.POLLOUT)
            try:
                view = view[os.write(self._input, view[:_PIPE_STEP_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def _wait(self, handle: int, event: int) -> None:
        """Wait until a pipe is ready (S1)."""
        left = self._deadline - self._clock.monotonic()
        poll = select.poll()
        poll.register(handle, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise WrongState(
                f"the file system in the image could not be read in {self._limits.run_seconds:g} s",
                next_step=NEXT_STEP,
            )

    def _ended(self) -> WrongState:
        try:
            code = self._process.wait(timeout=max(0.0, self._deadline - self._clock.monotonic()))
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            how = "closed its output"
        return WrongState(f"the parser of the image's file system {how}", next_step=NEXT_STEP)


def survey(run: ParserRun) -> list[Volume]:
    """Return the volumes as the parser gives them, checked. Errors as ``ParserRun.ask``."""
    volumes: dict[str, Volume] = {}
    with closing(run):
        for kind, payload in run.ask(Operation.SURVEY):
            volume = _volume(kind, payload)
            if volume.key in volumes or len(volumes) >= frames.VOLUMES_MAX:
                raise broken(f"the volume {volume.key!r} twice, or volumes without end")
            volumes[volume.key] = volume
    return list(volumes.values())


def walk(run: ParserRun, volume: str, path: str = "") -> Iterator[Volume | Batch | Unread]:
    """Yield the volume, then its entries, or those below a directory, in checked batches.

    Errors as ``ParserRun.ask``; also on the way.
    """
    checker = BatchChecker(run.disk_sizes)
    with closing(run):
        answers = run.ask(Operation.WALK, volume, path)
        yield _first(answers, volume)
        for kind, payload in answers:
            if kind is FrameKind.BATCH:
                yield _batch(checker, payload)
            elif kind is FrameKind.UNREAD:
                yield _unread(payload, checker.directories)
            else:
                raise broken(f"a frame of kind {kind.name} in a walk")
    if not checker.directories:
        raise broken("a walk without a root")


def list_entries(run: ParserRun, volume: str, path: str) -> tuple[Volume, list[FileEntry]]:
    """Return the volume and a directory's entries, checked. Errors as ``ParserRun.ask``."""
    entries: dict[str, FileEntry] = {}
    count = size = 0
    checker = BatchChecker(run.disk_sizes)
    checker.expect_in_directory(without_pieces=True)
    with closing(run):
        answers = run.ask(Operation.LIST, volume, path)
        found = _first(answers, volume)
        for kind, payload in answers:
            if kind is not FrameKind.BATCH:
                raise broken(f"a frame of kind {kind.name} in a list of names")
            batch = _batch(checker, payload)
            count, size = count + len(batch), size + len(payload)
            if count > ENTRIES_MAX or size > LISTED_BYTES_MAX:
                raise broken(f"more than {ENTRIES_MAX} names")
            for entry, _ in batch.entries(path):
                entries.setdefault(entry.name, entry)  # as the parser finds a name that is there twice
    return found, list(entries.values())


def find_file(run: ParserRun, volume: str, path: str) -> tuple[Volume, FileEntry, list[Piece]]:
    """Return the volume, an entry and its pieces, checked. Errors as ``ParserRun.ask``."""
    directory, _, name = path.rpartition("/")
    checker = BatchChecker(run.disk_sizes)
    checker.expect_in_directory()
    with closing(run):
        answers = run.ask(Operation.FIND, volume, path)
        found = _first(answers, volume)
        kind, payload = next(answers, (FrameKind.DONE, b""))
        if kind is not FrameKind.BATCH or next(answers, None) is not None:
            raise broken(f"an answer that is not about {path!r}")
    batch = _batch(checker, payload)
    if len(batch) != 1:
        raise broken(f"an answer that is not about {path!r}")
    ((entry, pieces),) = batch.entries(directory or "/")
    if entry.name != name:
        raise broken(f"an answer that is not about {path!r}")
    whole = entry.is_file and (pieces or not entry.flaw)
    if whole and (flaw := flaw_of(pieces, size_bytes=entry.size_bytes, disk_sizes=run.disk_sizes)):
        raise broken(flaw)
    return found, entry, pieces


def broken(what: str) -> Corruption:
    """Return the error for a parser that does what a sound one never does."""
    return Corruption(
        f"the parser of the image's file system gave what it may not: {what}",
        next_step="treat the image as hostile; restore the whole disk if it is needed",
    )


def _first(answers: Iterator[tuple[FrameKind, bytes]], volume: str) -> Volume:
    """Return the volume that a parser looks into, which it tells before anything else."""
    found = _volume(*next(answers, (FrameKind.DONE, b"")))
    if not found.readable or (volume and found.key != volume):
        raise broken(f"the volume {found.key!r}")
    return found


def _volume(kind: FrameKind, payload: bytes) -> Volume:
    if kind is not FrameKind.VOLUME:
        raise broken(f"a frame of kind {kind.name} where a volume is due")
    try:
        volume = frames.decode_volume(payload)
    except ValueError as error:
        raise broken(str(error)) from error
    if not volume.key or volume.size_bytes > VOLUME_BYTES_MAX:
        raise broken(f"a volume {volume.key!r} of {volume.size_bytes} bytes")
    return volume


def _batch(checker: BatchChecker, payload: bytes) -> Batch:
    try:
        return checker.decode(payload)
    except ValueError as error:
        raise broken(str(error)) from error


def _unread(payload: bytes, directories: int) -> Unread:
    try:
        unread = Unread(*frames.decode_unread(payload))
    except ValueError as error:
        raise broken(str(error)) from error
    if unread.directory >= directories:
        raise broken(f"words about directory {unread.directory}, which did not come")
    return unread


def _said(payload: bytes) -> NotFound | InvalidRequest | WrongState | Corruption:
    try:
        number, message = frames.decode_failed(payload)
    except ValueError as error:
        return broken(str(error))
    if number >= len(_REASONS):
        return broken(f"reason {number}")
    return _REASONS[number](message, next_step=NEXT_STEP if _REASONS[number] is WrongState else "")
