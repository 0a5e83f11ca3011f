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
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import Corruption, InvalidRequest, NotFound, Overloaded, WrongState
from arraylift.sizes import MIB
from backup_server.catalog import frames
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.frames import FrameKind, Operation
from backup_server.catalog.pieces import LITERALS_OF_FILE_BYTES_MAX, PIECES_MAX, Piece, flaw_of

ENTRIES_MAX = 100_000
SIZE_BYTES_MAX = 1 << 60
LINK_BYTES_MAX = 4096

_PACKAGES_ROOT = Path(__file__).resolve().parents[2]
_PIPE_STEP_BYTES = 64 * 1024
_REASONS = (NotFound, InvalidRequest, WrongState)  # numbered as parser.REASONS
_NEXT_STEP = "restore the whole disk, and look at it with the guest's own tools"


class ImageAccess(Protocol):
    """An image of a backup; ``read`` returns exactly ``length`` bytes or raises."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """What one run may take. Reads are of 64 KiB at most."""

    run_seconds: float = 120.0
    cpu_seconds: int = 60
    memory_bytes: int = 512 * MIB
    reads_max: int = 1 << 18


DEFAULT_LIMITS = ParserLimits()


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
        image: ImageAccess,
        *,
        limits: ParserLimits = DEFAULT_LIMITS,
        command: Sequence[str] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._image, self._limits, self._clock = image, limits, clock
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

    def ask(self, operation: Operation, path: str) -> Iterator[tuple[FrameKind, bytes]]:
        """Yield the result frames up to DONE, answering the parser's reads in between.

        NotFound, InvalidRequest, WrongState: what the parser says, or that it crashed or took too long.
        Corruption: it broke the protocol. Errors of the image's own reads pass through.
        """
        self._send(
            frames.encode_ask(operation, self._image.size_bytes, path.encode("utf-8", "surrogateescape"))
        )
        reads = 0
        while True:
            kind, payload = self._frame()
            if kind is FrameKind.READ:
                reads += 1
                if reads > self._limits.reads_max:
                    raise WrongState(
                        f"the parser asked for more than {reads - 1} reads", next_step=_NEXT_STEP
                    )
                self._answer(payload)
            elif kind is FrameKind.DONE:
                return
            elif kind is FrameKind.FAILED:
                raise _said(payload)
            elif kind in {FrameKind.ENTRY, FrameKind.PIECES, FrameKind.LITERAL}:
                yield kind, payload
            else:
                raise broken(f"a frame of kind {kind.name}")

    def _answer(self, payload: bytes) -> None:
        try:
            offset, length = frames.decode_read(payload)
        except ValueError as error:
            raise broken(str(error)) from error
        if not 0 < length <= frames.READ_BYTES_MAX or offset + length > self._image.size_bytes:  # S2
            raise broken(f"a read of {length} bytes at {offset} of an image of {self._image.size_bytes}")
        content = self._image.read(offset, length)
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
                next_step=_NEXT_STEP,
            )

    def _ended(self) -> WrongState:
        try:
            code = self._process.wait(timeout=max(0.0, self._deadline - self._clock.monotonic()))
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            how = "closed its output"
        return WrongState(f"the parser of the image's file system {how}", next_step=_NEXT_STEP)


def list_entries(run: ParserRun, path: str) -> list[FileEntry]:
    """Return a directory's entries as the parser gives them, checked. Errors as ``ParserRun.ask``."""
    directory = path.rstrip("/") + "/"
    entries: dict[str, FileEntry] = {}
    count = 0
    with closing(run):
        for kind, payload in run.ask(Operation.LIST, path):
            if kind is not FrameKind.ENTRY:
                raise broken(f"a frame of kind {kind.name} in a list of names")
            entry = _entry(payload, directory)
            count += 1
            if count > ENTRIES_MAX:
                raise broken(f"more than {ENTRIES_MAX} names")
            entries.setdefault(entry.name, entry)  # as the parser finds a name that is there twice
    return list(entries.values())


def file_pieces(run: ParserRun, path: str, *, image_bytes: int) -> tuple[FileEntry, list[Piece]]:
    """Return a regular file and its pieces, checked. Errors as ``ParserRun.ask``."""
    directory, _, name = path.rpartition("/")
    entry: FileEntry | None = None
    pieces: list[Piece] = []
    literal_bytes = 0
    with closing(run):
        for kind, payload in run.ask(Operation.READ_FILE, path):
            if (kind is FrameKind.ENTRY) != (entry is None):
                raise broken(f"a frame of kind {kind.name} out of turn")
            if kind is FrameKind.ENTRY:
                entry = _entry(payload, directory + "/")
            else:
                pieces += _pieces(kind, payload)
                literal_bytes += len(payload) if kind is FrameKind.LITERAL else 0
            if len(pieces) > PIECES_MAX or literal_bytes > 2 * LITERALS_OF_FILE_BYTES_MAX:
                raise broken("pieces without end")
    if entry is None or entry.name != name or not entry.is_file:
        raise broken(f"an answer that is not about {path!r}")
    if flaw := flaw_of(pieces, size_bytes=entry.size_bytes, image_bytes=image_bytes):
        raise broken(flaw)
    return entry, pieces


def broken(what: str) -> Corruption:
    """Return the error for a parser that does what a sound one never does."""
    return Corruption(
        f"the parser of the image's file system gave what it may not: {what}",
        next_step="treat the image as hostile; restore the whole disk if it is needed",
    )


def _entry(payload: bytes, directory: str) -> FileEntry:
    try:
        entry = frames.decode_entry(payload, directory=directory)
    except ValueError as error:
        raise broken(str(error)) from error
    name = entry.name.encode("utf-8", "surrogateescape")
    target = entry.link_target.encode("utf-8", "surrogateescape")
    if (
        not 0 < len(name) <= frames.NAME_BYTES_MAX
        or entry.name in {".", ".."}
        or b"/" in name
        or b"\0" in name
    ):
        raise broken(f"the name {entry.name!r}")
    if not stat.S_IFMT(entry.mode) or entry.mode > 0o177777 or entry.size_bytes > SIZE_BYTES_MAX:
        raise broken(f"a file of {entry.size_bytes} bytes with mode {entry.mode:o}")
    if len(target) > LINK_BYTES_MAX or b"\0" in target or bool(target) > entry.is_link:
        raise broken(f"a link to {entry.link_target[:200]!r}")
    return entry


def _pieces(kind: FrameKind, payload: bytes) -> list[Piece]:
    try:
        return (
            [frames.decode_literal(payload)] if kind is FrameKind.LITERAL else frames.decode_pieces(payload)
        )
    except ValueError as error:
        raise broken(str(error)) from error


def _said(payload: bytes) -> NotFound | InvalidRequest | WrongState | Corruption:
    try:
        number, message = frames.decode_failed(payload)
    except ValueError as error:
        return broken(str(error))
    if number >= len(_REASONS):
        return broken(f"reason {number}")
    return _REASONS[number](message, next_step=_NEXT_STEP if _REASONS[number] is WrongState else "")
