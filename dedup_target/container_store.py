"""Seal containers, read them, number them, remove them.

Owns: every byte below ``<unit>/containers`` and the high-water mark beside it.
Invariants:
  S1 a sealed container never changes; it is whole on disk, under its name, when ``seal``
     returns (laws 1 and 2).
  S2 a container id is given out once, whatever is deleted and whenever the power fails:
     the high-water mark is durable before an id below it is used.
  S3 every record that leaves this module matched its checksum.
  S4 buffers, caches and reads ahead have stated limits.
Callers: any thread. A buffer belongs to whoever acquired it.
Formats: docs/formats/container-v1.md, docs/formats/unit-v2.md
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xxhash

from arraylift import envelope
from arraylift.errors import ArrayliftError, Corruption, NotFound, Overloaded
from arraylift.ids import ContainerId, KeyId, TenantId, UnitId
from arraylift.logs import get_logger
from arraylift.sizes import CONTAINER_BYTES, MIB
from dedup_target import record_runs
from dedup_target.container_buffer import DIRECTORY_BYTES_MAX, ContainerBuffer, StoredRecord
from dedup_target.container_format import (
    HEADER_BYTES,
    RECORD_BYTES,
    Kind,
    SealedContainer,
    damaged,
    decode_directory,
    decode_header,
    scan_frames,
    subject_of,
)
from dedup_target.loading_cache import LoadingCache
from dedup_target.segment_index import Locator
from dedup_target.unit_backend import UnitBackend

__all__ = [
    "ContainerLimits",
    "ContainerStats",
    "ContainerStore",
    "LoadedContainer",
    "SealedContainer",
    "StoredRecord",
    "name_of",
    "sweep",
]

_LOG = get_logger("container_store")

FOLDER = "containers"
SUFFIX = ".alc"
HIGH_WATER_NAME = "high-water.alu"
HIGH_WATER_MAGIC = b"ALHIGHWM"
IDS_RESERVED = 256
"""Ids made durable at once: one small publish for every 4 GiB of containers."""

IDS_SKIPPED_WITHOUT_MARK = 1 << 20
"""Distance to the newest container seen where the mark is lost: 16 TiB of deleted containers."""

_FOLDER_SHIFT = 12


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """Bounds of one store's memory."""

    buffers_max: int = 8
    buffer_wait_seconds: float = 30.0
    cache_bytes_max: int = 96 * MIB
    """Whole containers that are kept; those being loaded come on top."""
    directory_cache_bytes_max: int = 8 * MIB
    readers: int = 2
    """Containers that are read ahead at once."""
    prefetch_max: int = 4
    """Containers that are read ahead or wait for it."""
    whole_from_bytes: int = 4 * MIB
    """From this much on a container is read whole and kept; for less, only what is wanted of it."""


@dataclass(frozen=True, slots=True)
class ContainerStats:
    container_count: int
    buffers_in_use: int
    buffer_bytes: int
    cache_bytes: int


class LoadedContainer:
    """A whole container in memory; views of it stay valid after it left the cache."""

    __slots__ = ("_checks", "_data", "sealed")

    def __init__(self, sealed: SealedContainer, data: bytes) -> None:
        self.sealed = sealed
        self._data = memoryview(data)
        directory = sealed.directory
        checks = zip(directory["stored_bytes"].tolist(), directory["checksum"].tolist(), strict=True)
        self._checks = dict(zip(directory["offset"].tolist(), checks, strict=True))

    def view(self, offset: int, stored_bytes: int) -> memoryview:
        """Return the stored bytes of the record at ``offset``. Raises Corruption (S3)."""
        data = self._data[offset : offset + stored_bytes]
        return _checked(self.sealed.container_id, data, self._checks.get(offset))

    def frames_problem(self) -> str:
        """What is wrong with the frames, from which the directory could be had again; or empty."""
        try:
            scan = scan_frames(self._data, self.sealed.container_id)
        except Corruption as error:
            return error.message
        same = scan.directory.tobytes() == self.sealed.directory.tobytes()
        return "" if same else "its frames do not hold the records of its directory"


class ContainerStore:
    """The containers of one storage unit."""

    def __init__(
        self,
        backend: UnitBackend,
        unit_id: UnitId,
        limits: ContainerLimits | None = None,
        *,
        container_bytes: int = CONTAINER_BYTES,
    ) -> None:
        """Open what is on disk. Call ``sweep`` first after a crash."""
        self._backend = backend
        self._unit_id = unit_id
        self.container_bytes = container_bytes
        self._limits = limits or ContainerLimits()
        self._lock = threading.Lock()
        self._ids = {found for folder in backend.list(FOLDER) for found in self._list_folder(folder)}
        self._reserved = self._next_id = self._recover_mark()
        self._free: list[ContainerBuffer] = []
        self._filling: set[ContainerId] = set()
        """Ids of buffers that are not released."""
        self._made = 0
        self._slots = threading.BoundedSemaphore(self._limits.buffers_max)
        self._cache = LoadingCache(bytes_max=self._limits.cache_bytes_max, load=self._load)
        self._directories = LoadingCache(
            bytes_max=self._limits.directory_cache_bytes_max, load=self._load_directory
        )
        self._prefetcher = ThreadPoolExecutor(self._limits.readers, thread_name_prefix="container-prefetch")
        self._prefetching = threading.BoundedSemaphore(self._limits.prefetch_max)

    # -- writing ----------------------------------------------------------------------------

    def acquire(self, *, tenant: TenantId, key_id: KeyId, kind: Kind) -> ContainerBuffer:
        """Return an empty buffer with an id of its own; give it back with ``release``.

        Waits up to ``buffer_wait_seconds``, then raises Overloaded.
        """
        if not self._slots.acquire(timeout=self._limits.buffer_wait_seconds):
            raise Overloaded(
                f"all {self._limits.buffers_max} container buffers are in use",
                next_step="repeat later, or run fewer transfers at once",
            )
        container_id = None
        try:
            container_id = self._allocate()
            with self._lock:
                buffer = self._free.pop() if self._free else None
                self._made += buffer is None
            buffer = buffer or ContainerBuffer(self._unit_id, self.container_bytes)
        except BaseException:
            with self._lock:
                self._filling -= {container_id}
            self._slots.release()
            raise
        buffer.begin(container_id, tenant, key_id, kind)
        return buffer

    def seal(self, buffer: ContainerBuffer) -> SealedContainer:
        """Write the container durably (S1) and return its directory; the buffer stays acquired.

        Raises OutOfSpace (buffer intact, may be repeated) and StoreFailed.
        """
        assert buffer.record_count, "an empty container is released, not sealed"
        container_id = buffer.container_id
        data = buffer.finish()
        self._backend.put(name_of(container_id), [data], label="container")
        with self._lock:
            self._ids.add(container_id)
        return SealedContainer(
            container_id, buffer.kind, buffer.tenant, buffer.key_id, buffer.directory(), len(data)
        )

    def release(self, buffer: ContainerBuffer) -> None:
        """Give the buffer back; records that were not sealed are gone."""
        with self._lock:
            assert all(buffer is not free for free in self._free), "released twice"
            self._filling.discard(buffer.container_id)
            self._free.append(buffer)
        self._slots.release()

    def remove(self, container_id: ContainerId) -> None:
        """Delete a container that no index entry and no root needs. Raises NotFound.

        It is none of ours from now on: where the removal fails it may be there, or not, and whoever
        makes the index anew must not take it in; the next start looks.
        """
        with self._lock:
            self._ids.discard(container_id)
        self._cache.drop(container_id)
        self._directories.drop(container_id)
        self._backend.remove(name_of(container_id), label="container-remove")

    # -- reading ----------------------------------------------------------------------------

    def containers(self) -> list[ContainerId]:
        """Ids of all containers on disk, ascending."""
        with self._lock:
            return sorted(self._ids)

    def holds(self, container_id: ContainerId) -> bool:
        """Whether there is such a container, as far as this store knows."""
        with self._lock:
            return container_id in self._ids

    def read_record(self, locator: Locator) -> StoredRecord:
        """Read one record, without the rest of its container. Raises Corruption, NotFound."""
        container_id = locator.container
        loaded = self._cache.peek(container_id)
        if loaded:
            data = loaded.view(locator.offset, locator.stored_bytes)
        else:
            directory = self._directories.get(container_id).directory
            slot = int(np.searchsorted(directory["offset"], locator.offset))
            check = None
            if slot < len(directory) and int(directory["offset"][slot]) == locator.offset:
                check = int(directory["stored_bytes"][slot]), int(directory["checksum"][slot])
            raw = self._backend.get(name_of(container_id), locator.offset, locator.stored_bytes)
            data = _checked(container_id, memoryview(raw), check)
        return StoredRecord(data, locator.plain_bytes, locator.codec)

    def read_records(self, container_id: ContainerId, locators: Sequence[Locator]) -> list[memoryview]:
        """Read many records of one container; returns their stored bytes, in order.

        Takes a container that is kept or being loaded, loads one of which much is wanted, and reads
        of others only the records, neighbours in one piece. Raises Corruption, NotFound.
        """
        loaded = self._cache.get_if_started(container_id)
        if loaded is None:
            if sum(locator.stored_bytes for locator in locators) < self._limits.whole_from_bytes:
                return self._read_runs(container_id, locators)
            loaded = self._cache.get(container_id)
        return [loaded.view(locator.offset, locator.stored_bytes) for locator in locators]

    def read_container(self, container_id: ContainerId) -> LoadedContainer:
        """Return a whole container, from the cache if it is there. Raises Corruption, NotFound."""
        return self._cache.get(container_id)

    def read_fresh(self, container_id: ContainerId) -> LoadedContainer:
        """Return a whole container as it lies in the unit now, past the caches. Raises as the others."""
        return self._load(container_id)[0]

    @property
    def settled_end(self) -> ContainerId:
        """Every container below this id is sealed, or will never be."""
        with self._lock:
            return min(self._filling, default=ContainerId(self._next_id))

    def read_directory(self, container_id: ContainerId) -> SealedContainer:
        """Return a container's directory, rebuilt from its frames if it is damaged.

        Raises Corruption if nothing of it is whole, NotFound.
        """
        return self._directories.get(container_id)

    @property
    def whole_from_bytes(self) -> int:
        """See ContainerLimits: who reads ahead asks for whole containers from this much on."""
        return self._limits.whole_from_bytes

    def prefetch(self, container_ids: Iterable[ContainerId]) -> None:
        """Start loading containers that will be read soon; a hint, dropped above ``prefetch_max``."""
        for container_id in container_ids:
            if self._cache.peek(container_id):
                continue
            if not self._prefetching.acquire(blocking=False):
                return
            self._prefetcher.submit(self._prefetch_one, container_id)

    def verify(self, container_id: ContainerId) -> list[bytes]:
        """Return the fingerprints of records whose bytes do not match their checksum."""
        sealed = self.read_directory(container_id)
        loaded = LoadedContainer(sealed, self._backend.get(name_of(container_id)))
        bad = []
        for record in sealed.directory:
            try:
                loaded.view(int(record["offset"]), int(record["stored_bytes"]))
            except Corruption:
                bad.append(record["fingerprint"].tobytes())
        return bad

    # -- life -------------------------------------------------------------------------------

    def stats(self) -> ContainerStats:
        with self._lock:
            in_use = self._made - len(self._free)
            return ContainerStats(
                len(self._ids),
                in_use,
                self._made * (self.container_bytes + DIRECTORY_BYTES_MAX),
                self._cache.kept_bytes,
            )

    def close(self) -> None:
        """Stop reading ahead and write the exact high-water mark, so that ids leave no gap."""
        self._prefetcher.shutdown(wait=True, cancel_futures=True)
        self._cache.clear()
        self._directories.clear()
        with self._lock:
            if self._reserved != self._next_id:
                self._publish_mark(self._next_id)

    def _list_folder(self, folder: str) -> Iterable[ContainerId]:
        for name in self._backend.list(f"{FOLDER}/{folder}"):
            number = _id_of(name)
            if number is None or _folder_of(number) != folder:
                _LOG.warning("foreign_file_ignored", folder=folder, name=name)
                continue
            yield number

    # -- numbers ----------------------------------------------------------------------------

    def _allocate(self) -> ContainerId:
        with self._lock:
            if self._next_id >= self._reserved:
                self._publish_mark(self._next_id + IDS_RESERVED)
            allocated = ContainerId(self._next_id)
            self._next_id += 1
            self._filling.add(allocated)
            assert allocated < self._reserved, "S2"
            return allocated

    def _publish_mark(self, mark: int) -> None:
        body = envelope.canonical_json({"next_container_id": f"{mark:016x}"})
        self._backend.put(HIGH_WATER_NAME, [envelope.encode(HIGH_WATER_MAGIC, body)], label="high-water")
        self._reserved = mark

    def _recover_mark(self) -> int:
        behind_newest = max(self._ids, default=0) + 1
        try:
            fields = envelope.decode_json(
                HIGH_WATER_MAGIC,
                self._backend.get(HIGH_WATER_NAME),
                what="high-water mark",
                keys=frozenset({"next_container_id"}),
            )
            return max(int(fields["next_container_id"], 16), behind_newest)
        except NotFound:
            if not self._ids:
                return 1
            lost = "missing"
        except (Corruption, ValueError, TypeError):
            lost = "damaged"
        _LOG.error("high_water_mark_lost", state=lost, ids_skipped=IDS_SKIPPED_WITHOUT_MARK)
        return behind_newest + IDS_SKIPPED_WITHOUT_MARK

    # -- loading ----------------------------------------------------------------------------

    def _read_runs(self, container_id: ContainerId, locators: Sequence[Locator]) -> list[memoryview]:
        checks = record_runs.checks(self._directories.get(container_id).directory, locators)
        name, found = name_of(container_id), [memoryview(b"")] * len(locators)
        for run in record_runs.plan(locators):
            data = memoryview(self._backend.get(name, run.start, run.end - run.start))
            for place in run.places:
                at, size = locators[place].offset - run.start, locators[place].stored_bytes
                found[place] = _checked(container_id, data[at : at + size], checks[place])
        return found

    def _load(self, container_id: ContainerId) -> tuple[LoadedContainer, int]:
        data = self._backend.get(name_of(container_id))
        view = memoryview(data)
        sealed = _sealed_of(container_id, len(data), lambda offset, length: view[offset : offset + length])
        return LoadedContainer(sealed, data), len(data)

    def _load_directory(self, container_id: ContainerId) -> tuple[SealedContainer, int]:
        name = name_of(container_id)
        sealed = _sealed_of(
            container_id,
            self._backend.size(name),
            lambda offset, length: memoryview(self._backend.get(name, offset, length)),
        )
        return sealed, sealed.directory.nbytes + 256

    def _prefetch_one(self, container_id: ContainerId) -> None:
        try:
            self._cache.get(container_id)
        except ArrayliftError as error:  # whoever really needs it meets the error himself
            _LOG.info("prefetch_failed", container=subject_of(container_id), error=str(error))
        finally:
            self._prefetching.release()


def _sealed_of(
    container_id: ContainerId, file_bytes: int, read: Callable[[int, int], memoryview]
) -> SealedContainer:
    """Read header and directory through ``read(offset, length)``; fall back to the frames."""
    try:
        header = decode_header(read(0, min(HEADER_BYTES, file_bytes)), container_id)
        if header.file_bytes != file_bytes:
            raise damaged(container_id, f"it has {file_bytes} bytes instead of {header.file_bytes}")
        directory = decode_directory(
            read(header.directory_offset, header.record_count * RECORD_BYTES), header
        )
        return SealedContainer(container_id, header.kind, header.tenant, header.key_id, directory, file_bytes)
    except Corruption as error:
        scan = scan_frames(read(0, file_bytes), container_id)
        _LOG.error(
            "container_directory_rebuilt",
            container=subject_of(container_id),
            why=error.message,
            record_count=len(scan.directory),
            skipped_bytes=scan.skipped_bytes,
        )
        return SealedContainer(
            container_id, scan.kind, scan.tenant, scan.key_id, scan.directory, file_bytes, error.message
        )


def _checked(container_id: ContainerId, data: memoryview, check: tuple[int, int] | None) -> memoryview:
    """Return ``data`` if it is the record of (stored bytes, checksum) (S3)."""
    if check is None:
        raise damaged(container_id, "the index names a record that its directory does not have")
    if (len(data), xxhash.xxh3_64_intdigest(data)) != check:
        raise damaged(container_id, "a record's bytes do not match their checksum")
    return data


def name_of(container_id: int) -> str:
    """Name of a container's object in its unit."""
    return f"{FOLDER}/{_folder_of(container_id)}/{container_id:016x}{SUFFIX}"


def _folder_of(container_id: int) -> str:
    return f"{container_id >> _FOLDER_SHIFT:08x}"


def _id_of(name: str) -> ContainerId | None:
    digits = name.removesuffix(SUFFIX)
    if len(digits) != 16 or digits == name:
        return None
    try:
        number = int(digits, 16)
    except ValueError:
        return None
    return ContainerId(number) if f"{number:016x}" == digits else None


def sweep(backend: UnitBackend) -> int:
    """Remove what a crash left half written; returns how many files.

    The names of the folders become durable as well: a killed process may have made one, and a
    container that is sealed into it must not vanish with it.
    """
    return backend.sweep(FOLDER) + sum(backend.sweep(f"{FOLDER}/{folder}") for folder in backend.list(FOLDER))
