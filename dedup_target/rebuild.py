"""Bring the index in line with the containers, at every start.

The index is a cache (law 4), so whatever is wrong with it is mended here without a person:
containers without a mark are added from their directories; if the index cannot be opened,
is known to be damaged, or speaks of containers that are gone, it is made anew.
Invariants:
  Y1 afterwards every container on disk has a mark, no mark is without its container, and
     each entry names a record that is there and not quarantined.
  Y2 the result has the same fingerprints as one made from nothing.
  Y3 a crash in the middle leaves an index that the next start finishes.
Callers: the storage unit, once, before anything else uses the index.
Format: docs/formats/index-v2.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from arraylift.durable import Files
from arraylift.errors import Corruption, NotFound
from arraylift.ids import ContainerId
from arraylift.logs import get_logger
from dedup_target.container_format import SealedContainer, subject_of
from dedup_target.container_store import ContainerStore
from dedup_target.quarantine import Quarantine
from dedup_target.segment_index import SegmentIndex

_LOG = get_logger("rebuild")

CONTAINERS_AT_ONCE = 16
"""Directories held at a time, 1.75 MiB each at most; their records share a batch."""

Progress = Callable[[int, int], None]
"""Called with (containers done, containers to do)."""


class IndexOpener(Protocol):
    """Opens or makes the index, and throws it away."""

    def open(self) -> SegmentIndex:
        """Raises Corruption if only throwing it away helps; other errors need a person."""
        ...

    def destroy(self) -> None:
        """REQUIRES the index closed."""
        ...

    def open_next(self) -> SegmentIndex:
        """An empty index beside the current one; what lay there is gone."""
        ...

    def switch(self) -> None:
        """Durable: every later start opens what lies there."""
        ...

    def destroy_other(self) -> None:
        """Remove what is not current. REQUIRES it closed."""
        ...


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What a start found and did."""

    rebuilt: str = ""
    """Why the index was made anew; empty if it was not."""
    containers_added: int = 0
    containers_gone: tuple[ContainerId, ...] = ()
    """Containers that the index knew and the disk no longer has."""
    containers_damaged: tuple[ContainerId, ...] = ()
    """Their directory, or all of them, could not be read; see the log for each."""
    records_forgotten: int = 0
    """Entries that pointed at quarantined records."""


class DamageMark:
    """A file that says: make the index anew at the next start."""

    def __init__(self, files: Files, path: str) -> None:
        self._files = files
        self._path = path

    def set(self, why: str) -> None:
        """Durable on return. Any thread."""
        if not self._files.exists(self._path):
            _LOG.error("index_damaged", why=why)
            self._files.publish(self._path, [why.encode()], label="index-mark")

    def is_set(self) -> bool:
        return self._files.exists(self._path)

    def clear(self) -> None:
        self._files.remove(self._path, label="index-mark-remove", missing_ok=True)


def bring_up_index(
    opener: IndexOpener,
    containers: ContainerStore,
    quarantine: Quarantine,
    mark: DamageMark,
    *,
    progress: Progress | None = None,
    before_anew: Callable[[], None] = lambda: None,
) -> tuple[SegmentIndex, ReconcileReport]:
    """Open the index and make Y1 true. ``before_anew`` is called before an old index goes: nobody can
    see afterwards what it had. Raises what ``opener.open`` raises besides Corruption."""
    on_disk = set(containers.containers())
    index, gone, why = _open_if_sound(opener, on_disk, mark)
    report = None
    if index is not None:
        report, why = _reconciled(index, containers, quarantine, progress)
    if index is None or report is None:
        _LOG.warning("index_rebuild_started", why=why, container_count=len(on_disk))
        # From here until the fresh index is open, a crash must not leave half of the old one.
        mark.set(why)
        before_anew()
        opener.destroy()
        index = opener.open()
        mark.clear()
        report, met = _reconciled(index, containers, quarantine, progress)
        if report is None:
            raise Corruption(f"a fresh index is damaged: {met}", next_step="check the disk that it lies on")
    return index, replace(report, rebuilt=why, containers_gone=gone)


def _reconciled(
    index: SegmentIndex, containers: ContainerStore, quarantine: Quarantine, progress: Progress | None
) -> tuple[ReconcileReport | None, str]:
    """Return (report, ""), or (None, why) where a read met damage in the index, which is closed then."""
    try:
        return reconcile(index, containers, quarantine, progress=progress), ""
    except Corruption as error:
        index.close()
        return None, error.message
    except BaseException:
        index.close()
        raise


def _open_if_sound(
    opener: IndexOpener, on_disk: set[ContainerId], mark: DamageMark
) -> tuple[SegmentIndex | None, tuple[ContainerId, ...], str]:
    """Return (index, containers gone, why not): no index where it has to be made anew."""
    if mark.is_set():
        return None, (), "a read found it damaged"
    try:
        index = opener.open()
    except Corruption as error:
        return None, (), error.message
    gone = tuple(sorted(index.indexed_containers() - on_disk))
    if gone:
        index.close()
        return None, gone, f"it speaks of {len(gone)} containers that are gone, e.g. {subject_of(gone[0])}"
    return index, (), ""


def reconcile(
    index: SegmentIndex,
    containers: ContainerStore,
    quarantine: Quarantine,
    *,
    progress: Progress | None = None,
) -> ReconcileReport:
    """Add what has no mark, oldest first (I2), and forget quarantined records."""
    missing = sorted(set(containers.containers()) - index.indexed_containers())
    damaged: list[ContainerId] = []
    for start in range(0, len(missing), CONTAINERS_AT_ONCE):
        group = []
        for container in missing[start : start + CONTAINERS_AT_ONCE]:
            sealed = _read(containers, container, damaged)
            if sealed is not None:
                group.append(without(sealed, quarantine.bad_of(container)))
        index.add_containers(group)
        if progress:
            progress(min(start + CONTAINERS_AT_ONCE, len(missing)), len(missing))
    forgotten = sum(
        index.forget_records(tenant, container, fingerprints)
        for container, tenant, fingerprints in quarantine.records()
    )
    if missing:
        _LOG.info("index_reconciled", containers_added=len(missing), containers_damaged=len(damaged))
    return ReconcileReport(
        containers_added=len(missing) - len(damaged),
        containers_damaged=tuple(damaged),
        records_forgotten=forgotten,
    )


def _read(
    containers: ContainerStore, container: ContainerId, damaged: list[ContainerId]
) -> SealedContainer | None:
    try:
        sealed = containers.read_directory(container)
    except (Corruption, NotFound) as error:
        # Nothing of it can be trusted: it stays on disk for repair, or was lost while we ran, and gets
        # no mark, so every start looks again.
        _LOG.error("container_unreadable", container=subject_of(container), why=error.message)
        damaged.append(container)
        return None
    if sealed.damage:
        damaged.append(container)
    return sealed


def without(sealed: SealedContainer, bad: frozenset[bytes]) -> SealedContainer:
    """The container without its quarantined records: they must not hide a healthy older copy."""
    if not bad:
        return sealed
    fingerprints = sealed.directory["fingerprint"].tolist()
    kept = np.array([fingerprint not in bad for fingerprint in fingerprints], dtype=np.bool_)
    return replace(sealed, directory=sealed.directory[kept], kept=kept)
