"""Files and directories of a backup as a stream: what each is, then its bytes ([0046], figure 6).

Invariants:
  F1 a directory comes before what lies in it, and the first of hard links before the others, which carry no
     data. Nothing comes twice.
  F2 a file's data come in ascending order inside its size; what is between is zero.
  F3 what cannot be read is said of that file or directory, and the rest goes on; what came of the file's data
     by then is void. A target that does not answer ends it all.
Limits: PATHS_MAX paths; of hard links LINKS_MAX are remembered, those beyond come as files of their own.
Memory: one batch of the walk and one step of data.
Callers: edges and jobs, one thread a stream.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from arraylift.errors import Corruption, InvalidRequest, NotFound, WrongState
from arraylift.sizes import MIB
from backup_server.catalog.browse import Batch, ParserLimits, Paths, Unread, checked_path
from backup_server.catalog.entry import DiskSet, FileEntry, Volume
from backup_server.catalog.pieces import Piece, PieceKind
from backup_server.catalog.sandbox import WALK_LIMITS

PATHS_MAX = 10_000
FINDS_MAX = 16
"""Paths that are looked for one by one; of more, the whole volume is walked once."""

LINKS_MAX = 1 << 20
READ_BYTES = 4 * MIB
DATA_BYTES_MAX = MIB

LIMITS = ParserLimits(7 * 86_400.0, WALK_LIMITS.cpu_seconds, WALK_LIMITS.memory_bytes, WALK_LIMITS.reads_max)
"""The parser waits while data are on their way to whoever asked, who may be slow."""


class Browser(Protocol):
    """``backup_server.catalog.browse``."""

    def find(self, disks: DiskSet, path: str, volume: str) -> tuple[Volume, FileEntry, list[Piece]]: ...
    def walk(
        self, disks: DiskSet, volume: str, *, below: str, limits: ParserLimits
    ) -> Iterator[Volume | Batch | Unread]: ...


@dataclass(frozen=True, slots=True)
class Start:
    """The next file. With a problem no data follow, or those that came are void."""

    entry: FileEntry
    hard_link_to: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the file that was started last; at most 1 MiB."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Instead of data, for whoever asks: where all bytes of the file are."""

    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream that was not cut."""

    file_count: int
    bytes_read: int
    problem_count: int


Content = Callable[[DiskSet, Sequence[Piece]], Iterator[Data | Layout]]


def checked_paths(paths: Sequence[str], *, recursive: bool) -> list[str]:
    """Return each path once, without those below another if that brings them too. Raises InvalidRequest."""
    if not 0 < len(paths) <= PATHS_MAX:
        raise InvalidRequest(
            f"{len(paths)} paths are asked for", next_step=f"ask for 1 to {PATHS_MAX:,}, or for a directory"
        )
    found = list(dict.fromkeys(checked_path(path) for path in paths))
    if not recursive:
        return found
    asked = frozenset(found)
    return [path for path in found if not any(above in asked for above in _above(path))]


class FileReads:
    """One stream. Iterate once; close the iterator to end it early."""

    def __init__(
        self,
        browser: Browser,
        disks: DiskSet,
        volume: str,
        *,
        hard_links: bool = True,
        content: Content | None = None,
    ) -> None:
        """Without ``hard_links`` each name comes as a file of its own. ``content``: for ``data_of``."""
        self._hard_links, self._content = hard_links, content or data_of
        self._browser, self._disks, self._volume = browser, disks, volume
        self._first_of: dict[int, str] = {}
        self._files = self._bytes = self._problems = 0

    def read(
        self, paths: Sequence[str], *, recursive: bool
    ) -> Generator[Start | Data | Layout | Done, None, None]:
        """Yield what the paths are, with all below them if ``recursive``.

        NotFound (of FINDS_MAX paths or fewer, before anything else comes; of more, at the end),
        InvalidRequest, WrongState, Corruption, PeerUnavailable.
        """
        wanted = checked_paths(paths, recursive=recursive)
        if len(wanted) <= FINDS_MAX:
            for entry, pieces in [self._found(path, recursive=recursive) for path in wanted]:
                if recursive and entry.is_directory:
                    yield from self._walked(entry.path, None)
                else:
                    yield from self._file(entry, pieces)
        else:
            yield from self._walked("/", _Selection(wanted, recursive=recursive))
        yield Done(self._files, self._bytes, self._problems)

    def _found(self, path: str, *, recursive: bool) -> tuple[FileEntry, list[Piece]]:
        if path == "/" and recursive:  # it comes with what lies in it
            return FileEntry("/", "", 0, stat.S_IFDIR, 0, 0, 0), []
        volume, entry, pieces = self._browser.find(self._disks, path, self._volume)
        self._volume = volume.key
        return entry, pieces

    def _walked(self, below: str, selection: _Selection | None) -> Iterator[Start | Data | Layout]:
        paths = Paths(below)
        for told in self._browser.walk(self._disks, self._volume, below=below, limits=LIMITS):
            if isinstance(told, Volume):
                self._volume = told.key
            elif isinstance(told, Unread):
                where = paths.of[told.directory]
                if selection is None or selection.takes_below(where):
                    yield self._problem(FileEntry(where, "", 0, stat.S_IFDIR, 0, 0, 0), told.why)
            else:
                for entry, pieces in paths.entries(told):
                    if selection is None or selection.takes(entry.path):
                        yield from self._file(entry, pieces)
        if selection is not None:
            selection.check_complete()

    def _file(self, entry: FileEntry, pieces: Sequence[Piece]) -> Iterator[Start | Data | Layout]:
        if entry.flaw and not pieces and not entry.is_directory:
            yield self._problem(entry, entry.flaw)
            return
        if self._hard_links and entry.link_count > 1 and not entry.is_directory:
            first = self._first_of.get(entry.inode)
            if first is not None:
                self._files += 1
                yield Start(entry, hard_link_to=first)
                return
            if len(self._first_of) < LINKS_MAX:
                self._first_of[entry.inode] = entry.path
        self._files += 1
        yield Start(entry)
        try:
            for one in self._content(self._disks, pieces):
                self._bytes += len(one.data) if isinstance(one, Data) else 0
                yield one
        except (Corruption, WrongState) as error:  # F3
            self._first_of.pop(entry.inode, None)
            self._files -= 1
            yield self._problem(entry, error.message)

    def _problem(self, entry: FileEntry, why: str) -> Start:
        self._problems += 1
        return Start(entry, problem=why)


class _Selection:
    """Which paths of a whole walk are asked for."""

    def __init__(self, paths: Sequence[str], *, recursive: bool) -> None:
        self._asked, self._recursive = frozenset(paths), recursive
        self._missing = set(paths)

    def takes(self, path: str) -> bool:
        self._missing.discard(path)
        return path in self._asked or self.takes_below(path)

    def takes_below(self, path: str) -> bool:
        return self._recursive and (path in self._asked or any(one in self._asked for one in _above(path)))

    def check_complete(self) -> None:
        if self._missing:
            first = min(self._missing)
            raise NotFound(f"the volume has no {first}", subject=first, missing_count=len(self._missing))


def shown(path: str) -> str:
    """As text that every message and database takes: bytes that are not UTF-8 as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def data_of(disks: DiskSet, pieces: Sequence[Piece]) -> Iterator[Data]:
    """Yield the bytes of a file that are not zero, in order (F2)."""
    at = 0
    for piece in pieces:
        for start in range(0, piece.length, READ_BYTES):
            length = min(READ_BYTES, piece.length - start)
            if piece.kind is PieceKind.DATA:
                content = disks[piece.disk].image.read(piece.offset + start, length)
                if len(content) != length:
                    raise Corruption(f"the image gave {len(content)} of {length} bytes")
            elif piece.kind is PieceKind.LITERAL:
                content = piece.literal[start : start + length]
            else:
                break
            for begin in range(0, length, DATA_BYTES_MAX):
                part = content[begin : begin + DATA_BYTES_MAX]
                if part.count(0) != len(part):
                    yield Data(at + start + begin, part)
        at += piece.length


def _above(path: str) -> Iterator[str]:
    """Every directory that a path lies in."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
