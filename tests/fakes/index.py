"""The segment index in memory; passes the same contract suite as the real one.

``batches`` counts the atomic batches written, and ``on_batch`` is called after each, so that a
crash test can keep what was durable at that moment (``copy``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.errors import WrongState
from arraylift.ids import ContainerId, Fingerprint, TenantId
from dedup_target.container_format import SealedContainer
from dedup_target.segment_index import (
    ContainerMark,
    Entries,
    IndexTotals,
    Locator,
    SegmentIndex,
    entries_of,
    keys_of,
    locator_of,
    mark_of,
    prefix_of,
    sum_marks,
    values_of,
)


class MemorySegmentIndex:
    """SegmentIndex over a dict."""

    def __init__(self, on_batch: Callable[[MemorySegmentIndex], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._entries: dict[bytes, bytes] = {}
        self._marks: dict[ContainerId, ContainerMark] = {}
        self._on_batch = on_batch
        self._closed = False

    def copy(self) -> MemorySegmentIndex:
        """The same content, as another process would find it."""
        with self._lock:
            other = MemorySegmentIndex()
            other._entries, other._marks = self._entries.copy(), self._marks.copy()
            return other

    def get_many(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator | None]:
        self._check_open()
        prefix = prefix_of(tenant)
        values = [self._entries.get(prefix + fingerprint) for fingerprint in fingerprints]
        return [None if value is None else locator_of(value) for value in values]

    def contains_many(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        self._check_open()
        keys = keys_of(tenant, np.frombuffer(packed, dtype="V32"))
        return np.array([key in self._entries for key in keys], dtype=np.bool_)

    def find_many(self, tenant: TenantId, packed: Buffer) -> Entries:
        self._check_open()
        return entries_of(map(self._entries.get, keys_of(tenant, np.frombuffer(packed, dtype="V32"))))

    def add_containers(self, sealed: Sequence[SealedContainer]) -> None:
        self._check_open()
        with self._lock:
            for one in sealed:
                keys = keys_of(one.tenant, one.directory["fingerprint"])
                self._entries.update(zip(keys, values_of(one), strict=True))
                self._marks[one.container_id] = mark_of(one)
            self._batch_done()

    def remove_container(self, container: ContainerId, fingerprints: Sequence[bytes]) -> None:
        with self._lock:
            mark = self._marks.pop(container, None)
            if mark:
                self._forget(mark.tenant, container, fingerprints)
                self._batch_done()

    def forget_records(self, tenant: TenantId, container: ContainerId, fingerprints: Sequence[bytes]) -> int:
        with self._lock:
            count = self._forget(tenant, container, fingerprints)
            self._batch_done()
            return count

    def take_over(self, fresh: SegmentIndex, ready: Callable[[], None]) -> None:
        self._check_open()
        assert isinstance(fresh, MemorySegmentIndex)
        with self._lock:
            ready()
            self._entries, self._marks = fresh._entries, fresh._marks
            fresh.close()

    def indexed_containers(self) -> set[ContainerId]:
        return set(self._marks)

    def marks(self) -> dict[ContainerId, ContainerMark]:
        return self._marks.copy()

    def totals(self) -> IndexTotals:
        return sum_marks(self._marks.values())

    def entries(self) -> Iterator[tuple[TenantId, Fingerprint, Locator]]:
        self._check_open()
        for key, value in sorted(self._entries.items()):
            yield TenantId(int.from_bytes(key[:8], "big")), Fingerprint(key[8:]), locator_of(value)

    def count(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        self._closed = True

    def _forget(self, tenant: TenantId, container: ContainerId, fingerprints: Sequence[bytes]) -> int:
        prefix, count = prefix_of(tenant), 0
        for fingerprint in fingerprints:
            value = self._entries.get(prefix + fingerprint)
            if value is not None and locator_of(value).container == container:
                del self._entries[prefix + fingerprint]
                count += 1
        return count

    def _batch_done(self) -> None:
        if self._on_batch:
            self._on_batch(self)

    def _check_open(self) -> None:
        if self._closed:
            raise WrongState("the index is closed")
