"""Read what clients send in options, and choose contexts; bytes in, values out.

Invariants:
  P1 an option's data is used whole or refused: no length inside is believed beyond its end.
Callers: negotiation. Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arraylift.errors import InvalidRequest
from arraylift.nbd import wire

NAME_BYTES_MAX = 4096
QUERIES_MAX = 64


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """Data of OPT_INFO and OPT_GO."""

    name: str
    wanted: frozenset[int]


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """Data of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


class _Cursor:
    """Takes pieces off the front (P1)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise InvalidRequest("the option is shorter than it says")
        self._at += count
        return piece

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def text(self) -> str:
        length = self.u32()
        if length > NAME_BYTES_MAX:
            raise InvalidRequest(f"a name has at most {NAME_BYTES_MAX} bytes, not {length}")
        return as_text(self.take(length))

    def end(self) -> None:
        if self._at != len(self._data):
            raise InvalidRequest("the option is longer than it says")


def as_text(data: bytes) -> str:
    """Decode a name. Raises InvalidRequest."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("a name is not UTF-8") from None


def parse_export(data: bytes) -> ExportRequest:
    """Raises InvalidRequest."""
    cursor = _Cursor(data)
    name = cursor.text()
    wanted = frozenset(cursor.u16() for _ in range(cursor.u16()))
    cursor.end()
    return ExportRequest(name, wanted)


def parse_contexts(data: bytes) -> ContextRequest:
    """Raises InvalidRequest."""
    cursor = _Cursor(data)
    name = cursor.text()
    count = cursor.u32()
    if count > QUERIES_MAX:
        raise InvalidRequest(f"an option has at most {QUERIES_MAX} queries, not {count}")
    queries = tuple(cursor.text() for _ in range(count))
    cursor.end()
    return ContextRequest(name, queries)


def chosen(queries: Sequence[str], offered: Sequence[str]) -> list[str]:
    """Return the offered contexts that are asked for by their whole names."""
    return [name for name in offered if name in queries]


def matching(queries: Sequence[str], offered: Sequence[str]) -> list[str]:
    """Return what a listing shows: all without a query; ``namespace:`` or ``arraylift:changed:``
    stands for all that begin so."""
    if not queries:
        return list(offered)
    return [
        name
        for name in offered
        if any(name == query or (query.endswith(":") and name.startswith(query)) for query in queries)
    ]


def meta_context(number: int, name: str) -> bytes:
    """Return the data of REP_META_CONTEXT."""
    return wire.U32.pack(number) + name.encode()
