"""Keep on this machine what is needed to open, list, collect and answer for a unit that lies elsewhere.

Of containers: header page and directory, so that index, collection and start download nothing. Of all
other objects (manifests, keys, quarantine, replicas): the whole. What lies in the unit is what counts; this
is a copy, made anew from the unit when it is lost (law 4).
Owns: ``<state>/cache/<unit id>``, through a backend of its own.
Invariants:
  C1 a change is made in the unit first and here when it is known to have happened, so that
     what is kept here is never ahead of the unit.
  C2 ``whole.mark`` is there only after everything was fetched once; ``open.mark`` from the
     first change of a run until its clean end: no change failed, so that all of them are known. With
     the second, or without the first, the next start compares the listings and fetches what is missing;
     nothing is served from here before that, since what was removed there would be taken to be there.
  C3 what is served from here is what the unit served: headers carry checksums, small objects too.
A unit that cannot be reached still opens from a whole cache that was left in order: its images are
listed, and reading one raises PeerUnavailable.
Limits: FETCHES_MAX requests at once. Callers: any thread. Format: docs/formats/unit-v2.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from arraylift.durable import Buffer
from arraylift.errors import ArrayliftError, Corruption, NotFound, PeerUnavailable, WrongState
from arraylift.ids import ContainerId, UnitId
from arraylift.logs import get_logger
from dedup_target import superblock
from dedup_target.container_format import HEADER_BYTES, RECORD_BYTES, ContainerHeader, decode_header
from dedup_target.unit_backend import ForwardingBackend, UnitBackend, walk

FETCHES_MAX = 8
CONTAINERS = "containers/"
WHOLE, OPEN = "whole.mark", "open.mark"

_log = get_logger("cached_backend")


class CachedBackend(ForwardingBackend):
    """See the module's invariants."""

    def __init__(self, inner: UnitBackend, local: UnitBackend, unit_id: UnitId) -> None:
        """Bring the cache up. Raises PeerUnavailable if it must be compared and the unit is not reached."""
        super().__init__(inner)
        self._local = local
        self._unit_id = unit_id
        self._marking = threading.Lock()
        self._is_unsure = False
        """A change failed: the unit may have it, the cache has not."""
        for folder in {"", *(name.rpartition("/")[0] for name in walk(local))}:
            local.sweep(folder)
        self._is_open = local.exists(OPEN)
        if self._is_open or not local.exists(WHOLE):
            self.refresh()

    def refresh(self) -> int:
        """Compare the listings and fetch what is missing here; returns how many objects.

        Raises PeerUnavailable."""
        self._check_place()
        here = set(walk(self._local)) - {WHOLE, OPEN}
        there = set(walk(self.inner))
        for name in here - there:
            self._local.remove(name, label="cache-remove", missing_ok=True)
        missing = sorted(there - here)
        with ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="cache-fetch") as pool:
            list(pool.map(self._fetch, missing))
        self._local.put(WHOLE, [b"whole\n"], label="cache-mark")
        self._local.remove(OPEN, label="cache-mark", missing_ok=True)
        self._is_open = False
        if missing:
            _log.info("cache_refreshed", unit=self.location, fetched=len(missing))
        return len(missing)

    def _check_place(self) -> None:
        """An empty mount point, or another unit's place, must not empty the cache."""
        try:
            found = superblock.decode(self.inner.get(superblock.NAME), what=f"superblock of {self.location}")
        except NotFound:
            found = None
        if found is None or found.unit_id != self._unit_id:
            what = f"another unit, {found.name}," if found else "no storage unit"
            raise PeerUnavailable(
                f"there is {what} at {self.location}",
                subject=f"unit at {self.location}",
                next_step="mount what belongs there, or make the bucket reachable",
            )

    # -- reading ----------------------------------------------------------------------------

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if not name.startswith(CONTAINERS):
            return self._local.get(name, offset, length)
        kept = self._kept(name, offset, length) if length is not None else None
        return self.inner.get(name, offset, length) if kept is None else kept

    def _kept(self, name: str, offset: int, length: int) -> bytes | None:
        """The bytes of header or directory that are asked for, if that is what they are."""
        header = self._header(name)
        if header is None:
            return None
        if offset + length <= HEADER_BYTES:
            return self._local.get(name, offset, length)
        end = header.directory_offset + header.record_count * RECORD_BYTES
        if header.directory_offset <= offset and offset + length <= end:
            return self._local.get(name, HEADER_BYTES + offset - header.directory_offset, length)
        return None

    def _header(self, name: str) -> ContainerHeader | None:
        """Header of a container that is kept; fetches it where it is not. None: only the unit can tell."""
        try:
            page = self._local.get(name, 0, HEADER_BYTES)
        except NotFound:
            self._fetch(name)
            page = b""
        except Corruption:  # too short: what stands for a container whose own header is damaged
            return None
        try:
            return decode_header(page or self._local.get(name, 0, HEADER_BYTES), _id_of(name))
        except (Corruption, WrongState):
            return None

    def size(self, name: str) -> int:
        if not name.startswith(CONTAINERS):
            return self._local.size(name)
        header = self._header(name)
        return self.inner.size(name) if header is None else header.file_bytes

    def exists(self, name: str) -> bool:
        return self._local.exists(name)

    def list(self, folder: str) -> list[str]:
        return [name for name in self._local.list(folder) if folder or name not in {WHOLE, OPEN}]

    # -- changing (C1) ----------------------------------------------------------------------

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        with self._changing():
            self.inner.put(name, parts, label=label)
            kept = _head_of(parts, name) if name.startswith(CONTAINERS) else parts
            self._local.put(name, kept, label="cache")

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        with self._changing():
            # Here, what a removal left that broke off may still be listed: taking it away is no error.
            self.inner.remove(name, label=label, missing_ok=missing_ok or self._local.exists(name))
            self._local.remove(name, label="cache-remove", missing_ok=True)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._marking:
            if not self._is_open:
                self._local.put(OPEN, [b"open\n"], label="cache-mark")
                self._is_open = True
        try:
            yield
        except NotFound:
            raise
        except BaseException:
            self._is_unsure = True
            raise

    def sweep(self, folder: str) -> int:
        try:
            return self.inner.sweep(folder)
        except PeerUnavailable:
            return 0

    def free_bytes(self) -> int | None:
        try:
            return self.inner.free_bytes()
        except ArrayliftError:
            return None

    def close(self) -> None:
        with self._marking:
            if self._is_open and not self._is_unsure:
                self._local.remove(OPEN, label="cache-mark", missing_ok=True)
                self._is_open = False
        self._local.close()
        self.inner.close()

    # -- fetching ---------------------------------------------------------------------------

    def _fetch(self, name: str) -> None:
        parts = self._fetch_head(name) if name.startswith(CONTAINERS) else [self.inner.get(name)]
        self._local.put(name, parts, label="cache")

    def _fetch_head(self, name: str) -> Sequence[Buffer]:
        try:
            page = self.inner.get(name, 0, HEADER_BYTES)
            header = decode_header(page, _id_of(name))
            return [page, self.inner.get(name, header.directory_offset, header.record_count * RECORD_BYTES)]
        except (Corruption, WrongState) as error:
            _log.warning("container_head_not_cached", name=name, why=error.message)
            return [b""]


def _head_of(parts: Sequence[Buffer], name: str) -> Sequence[Buffer]:
    """Header page and directory of a container that was just put."""
    (data,) = parts
    view = memoryview(data)
    header = decode_header(view[:HEADER_BYTES], _id_of(name))
    at = header.directory_offset
    return [view[:HEADER_BYTES], view[at : at + header.record_count * RECORD_BYTES]]


def _id_of(name: str) -> ContainerId:
    try:
        return ContainerId(int(name.rpartition("/")[2].partition(".")[0], 16))
    except ValueError as error:
        raise Corruption(f"{name} is no name of a container", subject=name) from error
