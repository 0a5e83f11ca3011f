"""What every file system's reader is: numbers of nodes, their names, attributes and runs.

Used in the parser's process only.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from arraylift.errors import WrongState
from backup_server.catalog.entry import NO_TIME
from backup_server.catalog.parse.space import Space
from backup_server.catalog.pieces import Run

FAULTS = (WrongState, IndexError, ValueError, struct.error, OverflowError, RecursionError)
"""What reading a damaged file system may raise."""

RUNS_MAX = 1 << 20
"""Extents of one file; beyond PIECES_MAX it is refused anyhow, unless they join."""

NS = 1_000_000_000
_TIME_MAX = (1 << 63) - 1


@dataclass(slots=True)
class Node:
    """A file by the number that its file system gives it; ``inode`` where that is another."""

    number: int
    mode: int
    size_bytes: int
    uid: int = 0
    gid: int = 0
    links: int = 1
    modified_ns: int = NO_TIME
    changed_ns: int = NO_TIME
    accessed_ns: int = NO_TIME
    created_ns: int = NO_TIME
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    attributes: list[tuple[bytes, bytes]] = field(default_factory=list)
    flaw: str = ""
    inode: int = -1


class FileSystem(Protocol):
    """One file system. Its constructor raises WrongState if it cannot be read, with the reason.

    ``remark`` says what to know before trusting it.
    """

    kind: str
    remark: str
    root: int

    @property
    def space(self) -> Space:
        """What runs count in."""
        ...

    def names(self, number: int) -> Iterable[tuple[bytes, int]]:
        """Yield the names in a directory without . and .., in any order, and the nodes that bear them."""
        ...

    def node(self, number: int) -> Node:
        """Raise WrongState where even the type is unknown; what else is wrong is the node's flaw."""
        ...

    def content(self, node: Node) -> bytes | Iterable[Run]:
        """Return a regular file's bytes if they lie in no block of their own, else its runs."""
        ...


@dataclass(frozen=True, slots=True)
class Label:
    """What a first look at a superblock tells."""

    kind: str
    label: str = ""
    uuid: str = ""


def clamped(ns: int) -> int:
    """Return nanoseconds as an entry can hold them."""
    return max(NO_TIME + 1, min(ns, _TIME_MAX))


def text_of(raw: bytes, encoding: str = "utf-8") -> str:
    """Return a label without its padding."""
    return raw.decode(encoding, "replace").partition("\0")[0].rstrip()


def uuid_of(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The last ``size`` values that were made, by key."""

    def __init__(self, size: int, make: Callable[[Key], Value]) -> None:
        self._size, self._make = size, make
        self._held: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value:
        held = self._held
        if key in held:
            held.move_to_end(key)
            return held[key]
        value = held[key] = self._make(key)
        if len(held) > self._size:
            held.popitem(last=False)
        return value


def with_holes(runs: Iterable[Run], size_bytes: int) -> Iterator[Run]:
    """Yield runs in order with the gaps between them as holes, for file systems that do not list holes.

    WrongState: they overlap.
    """
    at = 0
    for run in sorted(runs):
        if run.file_offset < at:
            raise WrongState("its extents overlap")
        if run.file_offset > at:
            yield Run(at, run.file_offset - at, None)
        yield run
        at = run.file_offset + run.length
    if at < size_bytes:
        yield Run(at, size_bytes - at, None)
