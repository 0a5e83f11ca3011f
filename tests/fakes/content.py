"""Bytes of one simulated file, and the ways in which a power cut may treat one change to them.

A ``Content`` is never changed once it is shared: ``Inode`` copies before it writes, so that
thousands of post-crash states share their pages. Callers: the simulated kernel, under its lock.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

PAGE_BYTES = 4096
"""Unit of allocation."""

SECTOR_BYTES = 512
"""Unit that the simulated disk writes whole or not at all."""

SUBSET_SECTORS_MAX = 4
"""In-place writes of up to so many sectors are torn in every subset, longer ones only in prefixes."""

PREFIXES_MAX = 6
"""Cut points tried in one write; more are thinned out evenly."""


@dataclass(slots=True, eq=True)
class Content:
    """Sparse bytes: absent pages read as zero. ``pages`` hold PAGE_BYTES each."""

    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(self.size, self.pages.copy())

    @property
    def allocated_bytes(self) -> int:
        return len(self.pages) * PAGE_BYTES

    def read(self, offset: int, length: int) -> bytes:
        """Return at most ``length`` bytes; fewer at the end of the file."""
        length = max(0, min(length, self.size - offset))
        first, last = offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES
        zeros = bytes(PAGE_BYTES)
        whole = b"".join(self.pages.get(page, zeros) for page in range(first, last + 1)) if length else b""
        start = offset - first * PAGE_BYTES
        return whole[start : start + length]

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        at = offset
        while at < end:
            page, start = divmod(at, PAGE_BYTES)
            stop = min(PAGE_BYTES, start + end - at)
            piece = data[at - offset : at - offset + stop - start]
            if len(piece) < PAGE_BYTES:
                old = self.pages.get(page, bytes(PAGE_BYTES))
                piece = old[:start] + piece + old[stop:]
            self.pages[page] = piece
            at += stop - start
        if data:
            self.size = max(self.size, end)

    def zero(self, offset: int, length: int) -> None:
        """Punch: whole pages go, the size stays."""
        end = min(offset + length, self.size)
        first, last = -(-offset // PAGE_BYTES), end // PAGE_BYTES
        if length >= 1 and offset < end:
            for page in [page for page in self.pages if first <= page < last]:
                del self.pages[page]
            for start, stop in (
                (offset, min(end, first * PAGE_BYTES)),
                (max(offset, last * PAGE_BYTES), end),
            ):
                if start < stop and start // PAGE_BYTES in self.pages:
                    self.write(start, bytes(stop - start))

    def truncate(self, size: int) -> None:
        if size < self.size:
            self.zero(size, self.size - size)
            for page in [page for page in self.pages if page * PAGE_BYTES >= size]:
                del self.pages[page]
        self.size = size

    def new_pages(self, offset: int, length: int) -> int:
        """How many pages a write there would allocate."""
        span = range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        return sum(page not in self.pages for page in span)


@dataclass(frozen=True, slots=True)
class DataOp:
    """One unsynced change of a file: ``write`` data, ``truncate`` to offset, or ``punch`` length."""

    kind: str
    offset: int
    data: bytes = b""
    length: int = 0
    doomed: bool = False
    """Its write-back failed: the kernel will never write it, whatever later syncs say."""

    def apply(self, content: Content) -> None:
        if self.kind == "write":
            content.write(self.offset, self.data)
        elif self.kind == "truncate":
            content.truncate(self.offset)
        else:
            content.zero(self.offset, self.length)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a power cut made of one DataOp."""

    name: str
    pieces: tuple[DataOp, ...] = ()
    grown_to: int = 0

    def apply(self, content: Content) -> None:
        for piece in self.pieces:
            piece.apply(content)
        content.size = max(content.size, self.grown_to)


LOST = Outcome("lost")


def outcomes(op: DataOp, old_size: int) -> list[Outcome]:
    """Every legal outcome of ``op`` on a file of ``old_size`` bytes; lost and kept come first."""
    kept = [LOST, Outcome("kept", (op,))]
    if op.kind != "write":
        return kept
    start, end = op.offset, op.offset + len(op.data)
    sectors = [max(start, at) for at in range(start // SECTOR_BYTES * SECTOR_BYTES, end, SECTOR_BYTES)]
    cuts = sectors[1:]
    if end > old_size:
        # The new size is metadata: it may be durable before any byte of the data is, and it
        # may end anywhere in a sector.
        kept.append(Outcome("size only", grown_to=end))
        fresh = max(start, old_size)
        cuts = sorted({*cuts, fresh + 1, fresh + (end - fresh) // 2, end - 1} - {start, end})
    elif len(sectors) <= SUBSET_SECTORS_MAX:
        return kept + [_sectors(op, chosen) for chosen in _proper_subsets(sectors, end)]
    thinned = cuts[:: -(-len(cuts) // PREFIXES_MAX)] if cuts else []
    return kept + [
        Outcome(f"torn after {cut - start}", (DataOp("write", start, op.data[: cut - start]),))
        for cut in thinned
        if start < cut < end
    ]


def _proper_subsets(sectors: list[int], end: int) -> list[list[tuple[int, int]]]:
    ranges = list(itertools.pairwise([*sectors, end]))
    return [
        list(chosen) for count in range(1, len(ranges)) for chosen in itertools.combinations(ranges, count)
    ]


def _sectors(op: DataOp, chosen: list[tuple[int, int]]) -> Outcome:
    pieces = tuple(
        DataOp("write", start, op.data[start - op.offset : stop - op.offset]) for start, stop in chosen
    )
    return Outcome(f"only sectors at {[start for start, _ in chosen]}", pieces)
