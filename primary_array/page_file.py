"""The pages of all maps on the disk: one file of places, written like the data, by redirection.

Owns: map.pages, and which of its places are taken.
Invariants:
  G1 a place that the published checkpoint names is not written: a new page goes to a place that
     it does not name, and only the next checkpoint, published after the file is synced, names that.
  G2 a page that has a home lies there unchanged: only frozen pages are written, so none is written
     twice, and a checkpoint costs what changed since the last one.
  G3 who names a page knows its checksum: bytes that are old, torn, or another page's are told.
Page n lies at n * PAGE_BYTES; place 0 is never used.
Callers: checkpointer, one at a time; pool_open and pool_check read.
Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from arraylift.durable import Files, RandomFile
from arraylift.errors import Corruption
from primary_array.block_map import PAGE_GRANULES, U64, Page
from primary_array.slot_store import stretches

LABEL = "pages"
PAGE_BYTES = PAGE_GRANULES * 16
"""Slots, then births, of one page."""
PAGES_PER_READ = 64
"""Read and written together: 1 MiB."""

Home = tuple[int, int]
"""Place and checksum."""


class PageFile:
    """See the module."""

    def __init__(self, data: RandomFile, kept: Iterable[int] = ()) -> None:
        """``kept``: the places that the published checkpoint names."""
        self._data = data
        self._kept = set(kept)

    @property
    def path(self) -> str:
        return self._data.path

    def store(self, pages: Sequence[Page]) -> list[Home]:
        """Write frozen pages to free places and sync (G1). They have these homes once a checkpoint
        that names them is published. Raises OutOfSpace, StoreFailed."""
        if not pages:
            return []
        places = self._free_places(len(pages))
        homes = []
        for start, stop in stretches(places):
            for first in range(start, stop, PAGES_PER_READ):
                parts = [page_bytes(page) for page in pages[first : min(stop, first + PAGES_PER_READ)]]
                self._data.write(int(places[first]) * PAGE_BYTES, b"".join(parts))
                homes += [(int(places[first]) + n, checksum_of(part)) for n, part in enumerate(parts)]
        self._data.sync()
        return homes

    def _free_places(self, count: int) -> U64:
        end = max(self._kept, default=0) + count + 1
        free = np.ones(end + 1, np.bool_)
        free[[0, *self._kept]] = False
        return np.flatnonzero(free)[:count].astype(np.uint64)

    def keep(self, places: Iterable[int]) -> None:
        """A checkpoint that names exactly these places is published."""
        self._kept = set(places)

    def close(self) -> None:
        self._data.close()


def page_bytes(page: Page) -> bytes:
    return page.slots.astype("<u8").tobytes() + page.births.astype("<u8").tobytes()


def checksum_of(data: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data)


def page_of(data: npt.NDArray[np.uint64]) -> Page:
    """Return the frozen page that PAGE_BYTES of a file say; copies them."""
    both = data.astype(np.uint64)
    page = Page(both[:PAGE_GRANULES], both[PAGE_GRANULES:])
    page.freeze()
    return page


def read_places(files: Files, path: str, places: U64) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) of distinct ``places``, ascending. Raises NotFound, Corruption."""
    places = np.sort(places)
    for start, stop in stretches(places):
        for first in range(start, stop, PAGES_PER_READ):
            count = min(stop - first, PAGES_PER_READ)
            place = int(places[first])
            data = files.read(path, place * PAGE_BYTES, count * PAGE_BYTES)
            for index in range(count):
                yield place + index, data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]


def load_pages(files: Files, path: str, homes: Sequence[Home]) -> list[Page]:
    """Read the pages of a checkpoint, in its order (G3). Raises NotFound, Corruption."""
    wanted = {place: (number, checksum) for number, (place, checksum) in enumerate(homes)}
    if len(wanted) != len(homes) or 0 in wanted:
        raise ValueError("two pages lie in one place")
    found: list[Page | None] = [None] * len(homes)
    for place, data in read_places(files, path, np.array(list(wanted), np.uint64)):
        number, checksum = wanted[place]
        if checksum_of(data) != checksum:
            raise Corruption(
                f"{path} is damaged at page {place}",
                subject=path,
                next_step="restore the file from a copy of this pool; nothing was changed",
            )
        page = page_of(np.frombuffer(data, "<u8"))
        page.home, page.checksum = place, checksum
        found[number] = page
    return [page for page in found if page is not None]
