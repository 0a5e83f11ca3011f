"""VM snapshots: taken under one freeze, held by a lease, released on every array.

Invariants:
  N1 a durable record stands before an array is asked for anything, and goes only when no array holds
     a snapshot under its id: whatever a crash leaves can be found and is deleted.
  N2 the guest is frozen for the group calls only (freezing.py).
  N3 what is answered is durable; a READY record has every snapshot it names.
  N4 a lapsed lease fences before it frees: the record is RELEASING, durably, before a snapshot goes.
  N5 a group call whose outcome is unknown may still take effect: its record stays for SETTLE_SECONDS.
  N6 what changed is told in the answer and kept nowhere: a repeated call asks the VMM anew, and hears of
     no less.
Lock order: VM, then VM snapshot. Callers: the edge, any thread; ``reap`` on the reaper's thread.
Failpoints, in order: ``vm-snapshot.intent``, ``.freeze.before``, ``.freeze.after``, ``.group.before``,
``.group.after`` (once for each array), ``.thawed``, ``.recorded``; ``.release.marked``,
``.release.deleted``; and those of arraylift.durable under ``vm-snapshot``.
Source: claim 1 of the patent, its VM API 132.
Why: docs/decisions/0020-vm-snapshots-leave-a-record-first.md
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from arraylift.clock import Clock
from arraylift.errors import (
    ArrayliftError,
    Corruption,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    Overloaded,
    PeerUnavailable,
    WrongState,
)
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import SourceState, VmId, VmSnapshotId, check_name, random_id
from arraylift.logs import get_logger
from arraylift.outcome import attempt
from arraylift.vm.types import (
    LEASE_SECONDS,
    LEASE_SECONDS_MAX,
    LEASE_SECONDS_MIN,
    ConsistencyLevel,
    Disk,
    DiskSnapshot,
    DiskState,
)
from hostagent.driver import Driver
from hostagent.foreign_snapshots import ForeignSnapshots
from hostagent.freezing import FrozenGuest, frozen_guest
from hostagent.locks import KeyedLocks
from hostagent.machines import usable
from hostagent.tracked import marked, with_changes
from hostagent.vm_store import VmStore
from hostagent.vm_types import (
    FREEZE_SECONDS_MAX,
    VM_SNAPSHOTS_PER_VM_MAX,
    SnapshotRecord,
    SnapshotState,
    VmRecord,
)
from hostagent.volumes import TakenSnapshot, Volumes

SETTLE_SECONDS = 5.0
"""How long after a failed group call an array that answers again may still carry it out."""

GROUP_MARGIN_SECONDS = 1.0
"""Group calls end this long before the watchdog thaws."""

RETRY_SECONDS = 2.0
RELEASES_MAX = 4
"""Releases that the reaper runs at once: one array that hangs does not hold up the others."""

_REFUSED = (NotFound, InvalidRequest, WrongState, OutOfSpace, Overloaded)  # the array did nothing

_log = get_logger("vm_snapshots")


@dataclass(slots=True)
class _Care:
    """What this process knows of a record beyond its file; times are monotonic seconds."""

    lapses: float = 0.0
    settled: float = 0.0
    retry: float = 0.0
    running: bool = field(default=False)


class VmSnapshots:
    """All VM snapshots of this host."""

    def __init__(
        self,
        store: VmStore,
        driver: Driver,
        volumes: Volumes,
        vm_locks: KeyedLocks,
        *,
        clock: Clock,
        freeze_seconds_max: float = FREEZE_SECONDS_MAX,
    ) -> None:
        """Take over what a process before this one left: leases begin anew, half-made ones are undone."""
        self._store, self._driver, self._volumes, self._vm_locks = store, driver, volumes, vm_locks
        self._clock, self._freeze_seconds_max = clock, freeze_seconds_max
        self._locks = KeyedLocks("VM snapshot")
        self._lock = threading.Lock()
        self._care: dict[VmSnapshotId, _Care] = {}
        self._releases = ThreadPoolExecutor(RELEASES_MAX, thread_name_prefix="vm-snapshot-release")
        for snapshot in store.snapshots.all():
            self._restart_lease(snapshot)
            if snapshot.state is SnapshotState.TAKING:
                self._unsettle(snapshot.vm_snapshot_id)
                store.snapshots.put(replace(snapshot, state=SnapshotState.RELEASING))
                _log.warning("vm_snapshot_half_made", vm_snapshot=snapshot.vm_snapshot_id)

    # -- calls ----------------------------------------------------------------------------------

    def create(
        self,
        vm_id: VmId,
        name: str,
        *,
        level_min: ConsistencyLevel = ConsistencyLevel.UNSPECIFIED,
        lease_seconds: int = 0,
        exclude_disks: Sequence[str] = (),
        changes_since: Sequence[DiskState] = (),
    ) -> SnapshotRecord:
        """Take one, or return the one of that name with its lease restarted; tell what changed (N6).

        Raises NotFound, WrongState (level; nothing is left), PeerUnavailable, Overloaded, OutOfSpace.
        """
        check_name(name, "a VM snapshot name")
        lease_seconds = lease_seconds or LEASE_SECONDS
        if not LEASE_SECONDS_MIN <= lease_seconds <= LEASE_SECONDS_MAX:
            raise InvalidRequest(f"a lease is {LEASE_SECONDS_MIN} to {LEASE_SECONDS_MAX} s")
        with self._vm_locks.hold(vm_id):
            vm = usable(self._store.vms.get(vm_id))
            for known in self._of(vm_id):
                if known.name == name and self._renewed(known.vm_snapshot_id):
                    return with_changes(self._driver, vm, known, changes_since)
            intent = self._intent(vm, name, lease_seconds, exclude_disks)
            self._store.snapshots.put(intent)  # N1
            try:
                FAILPOINTS.hit("vm-snapshot.intent")
                since = {one.disk_name: one.state for one in changes_since}
                with marked(self._driver, vm) as settle:
                    ready = self._taken(vm, intent, level_min, since)
                    settle(ready.disks)
                self._store.firmware.put(ready.vm_snapshot_id, self._driver.firmware_variables(vm))
                self._restart_lease(ready)  # before the reaper can see it
                self._store.snapshots.put(ready)  # N3
            except BaseException as error:
                self._abandon(intent, at_once=isinstance(error, _REFUSED))
                raise
            FAILPOINTS.hit("vm-snapshot.recorded")
            told = with_changes(self._driver, vm, ready, changes_since)
        _log.info(
            "vm_snapshot_taken",
            vm=vm_id,
            vm_snapshot=ready.vm_snapshot_id,
            level=ready.level,
            frozen_ms=round(ready.frozen_ns / 1e6, 1),
            disks=len(ready.disks),
            disks_with_changes=sum(disk.changes is not None for disk in told.disks),
        )
        return told

    def get(self, vm_snapshot_id: VmSnapshotId) -> SnapshotRecord:
        """Raises NotFound, also for one whose lease has lapsed."""
        found = self._store.snapshots.get(vm_snapshot_id)
        if found.state is not SnapshotState.READY:
            raise NotFound(f"there is no {found.subject} any more", subject=found.subject)
        return found

    def firmware_variables(self, snapshot: SnapshotRecord) -> bytes:
        """As they were when it was taken."""
        return self._store.firmware.get(snapshot.vm_snapshot_id)

    def listed(self, vm_id: VmId | None) -> list[SnapshotRecord]:
        """Those that are READY, oldest first; of one VM or of all."""
        ready = (one for one in self._store.snapshots.all() if one.state is SnapshotState.READY)
        chosen = (one for one in ready if vm_id is None or one.vm_id == vm_id)
        return sorted(chosen, key=lambda one: (one.created_at_ns, one.vm_snapshot_id))

    def renew(self, vm_snapshot_id: VmSnapshotId) -> None:
        """Restart the lease. Raises NotFound."""
        with self._locks.hold(vm_snapshot_id):
            self._restart_lease(self.get(vm_snapshot_id))

    def _renewed(self, vm_snapshot_id: VmSnapshotId) -> bool:
        """Restart the lease of one that is READY still."""
        _, error = attempt(lambda: self.renew(vm_snapshot_id), "a lease's renewal")
        return error is None

    def delete(self, vm_snapshot_id: VmSnapshotId) -> None:
        """Delete it on every array; a missing one is no error.

        Raises PeerUnavailable, DeadlineExceeded (an array), WrongState (a transfer reads it): the rest is
        done, and the reaper goes on.
        """
        with self._locks.hold(vm_snapshot_id):
            snapshot = self._store.snapshots.find(vm_snapshot_id)
            if snapshot is not None:
                self._release(self._mark(snapshot))

    def release_all(self, vm_id: VmId) -> None:
        """For DeleteVm: refuse while there are any; finish those that are going. Raises as delete."""
        for snapshot in self._of(vm_id):
            if snapshot.state is SnapshotState.READY:
                raise WrongState(
                    f"the VM has VM snapshot {snapshot.name!r}",
                    subject=snapshot.subject,
                    next_step="delete its VM snapshots first, or let their leases lapse",
                )
            self.delete(snapshot.vm_snapshot_id)

    # -- taking ---------------------------------------------------------------------------------

    def _intent(self, vm: VmRecord, name: str, lease_seconds: int, exclude: Sequence[str]) -> SnapshotRecord:
        known = {disk.name for disk in vm.config.disks}
        strange = [disk for disk in exclude if disk not in known]
        if strange:
            raise InvalidRequest(f"{vm.subject} has no disk {strange[0]!r} to leave out", subject=vm.subject)
        if len(self._of(vm.vm_id)) >= VM_SNAPSHOTS_PER_VM_MAX:
            raise Overloaded(
                f"{vm.subject} has its {VM_SNAPSHOTS_PER_VM_MAX} VM snapshots",
                subject=vm.subject,
                next_step="delete some first",
            )
        chosen = [disk for disk in vm.config.disks if disk.name not in exclude]
        return SnapshotRecord(
            vm_snapshot_id=VmSnapshotId(random_id()),
            vm_id=vm.vm_id,
            name=name,
            state=SnapshotState.TAKING,
            level=None,
            frozen_ns=0,
            created_at_ns=self._clock.wall_ns(),
            config=replace(vm.config, disks=tuple(chosen)),
            addresses=tuple(sorted({disk.array_address for disk in chosen if not disk.foreign})),
            disks=(),
            lease_seconds=lease_seconds,
        )

    def _taken(
        self,
        vm: VmRecord,
        intent: SnapshotRecord,
        level_min: ConsistencyLevel,
        since: Mapping[str, SourceState],
    ) -> SnapshotRecord:
        foreign = ForeignSnapshots(self._driver, intent)
        foreign.prepare(vm, since)
        with frozen_guest(self._driver, vm, self._clock, seconds_max=self._freeze_seconds_max) as guest:
            exported = foreign.begin(vm, since, guest.left_seconds() - GROUP_MARGIN_SECONDS)
            taken = self._groups(intent, guest)
            created_at_ns = self._clock.wall_ns()
        FAILPOINTS.hit("vm-snapshot.thawed")
        if guest.level < level_min:
            raise WrongState(
                f"the snapshot of {vm.subject} reached {guest.level.name}, {level_min.name} was demanded",
                subject=vm.subject,
                next_step="ask for less, or look why the guest could not be frozen",
                level=guest.level.name,
            )
        return replace(
            intent,
            state=SnapshotState.READY,
            level=guest.level,
            frozen_ns=guest.frozen_ns,
            created_at_ns=created_at_ns,
            config=vm.config,
            disks=tuple(
                exported[disk.name] if disk.foreign else _disk_snapshot(disk, taken)
                for disk in intent.config.disks
            ),
        )

    def _groups(self, intent: SnapshotRecord, guest: FrozenGuest) -> dict[tuple[str, str], TakenSnapshot]:
        """One group on each array, all at once; by (address, volume)."""

        def take(address: str) -> tuple[list[TakenSnapshot] | None, ArrayliftError | None]:
            names = _volumes_on(intent, address)
            seconds = max(0.1, guest.left_seconds() - GROUP_MARGIN_SECONDS)
            FAILPOINTS.hit("vm-snapshot.group.before")
            made = attempt(
                lambda: self._volumes.snapshot_group(
                    address, names, intent.vm_snapshot_id, timeout_seconds=seconds
                ),
                f"snapshots on array {address}",
            )
            FAILPOINTS.hit("vm-snapshot.group.after")
            return made

        if len(intent.addresses) <= 1:
            results = [take(address) for address in intent.addresses]
        else:
            with ThreadPoolExecutor(len(intent.addresses), thread_name_prefix="vm-snapshot-group") as pool:
                results = list(pool.map(take, intent.addresses))
        errors = [error for _, error in results if error is not None]
        if errors:
            # An unknown outcome outweighs a refusal: it decides how the attempt is undone.
            raise _group_error(min(errors, key=lambda error: isinstance(error, _REFUSED)))
        taken = {
            (address, one.volume_name): one
            for address, (made, _) in zip(intent.addresses, results, strict=True)
            for one in made or ()
        }
        wanted = {(disk.array_address, disk.volume_name) for disk in intent.config.disks if not disk.foreign}
        if taken.keys() != wanted:
            raise Corruption("an array took other snapshots than it was asked for", subject=intent.subject)
        return taken

    def _abandon(self, intent: SnapshotRecord, *, at_once: bool) -> None:
        """Undo a snapshot that was not answered: now, if every array has spoken, else by the reaper."""
        if not at_once:
            self._unsettle(intent.vm_snapshot_id)
        _, error = attempt(lambda: self._undo(intent, at_once=at_once), "undo of a VM snapshot")
        if error is not None:
            _log.warning("vm_snapshot_undo_waits", vm_snapshot=intent.vm_snapshot_id, error=str(error))

    def _undo(self, intent: SnapshotRecord, *, at_once: bool) -> bool:
        with self._locks.hold(intent.vm_snapshot_id):
            releasing = self._mark(intent)
            if at_once:
                self._release(releasing)
        return True

    # -- releasing ------------------------------------------------------------------------------

    def reap(self) -> None:
        """Mark what has lapsed, and start or repeat releases. Every second or so; never waits."""
        now = self._clock.monotonic()
        for snapshot in self._store.snapshots.all():
            care = self._care_of(snapshot.vm_snapshot_id)
            lapsed = snapshot.state is SnapshotState.READY and care.lapses <= now
            going = snapshot.state is SnapshotState.RELEASING and care.retry <= now
            if (lapsed or going) and not care.running:
                care.running = True
                self._releases.submit(self._reap_one, snapshot.vm_snapshot_id, care)

    def _reap_one(self, vm_snapshot_id: VmSnapshotId, care: _Care) -> None:
        _, error = attempt(lambda: self._reap_locked(vm_snapshot_id, care), "release of a VM snapshot")
        care.retry = self._clock.monotonic() + RETRY_SECONDS
        care.running = False
        if error is not None:
            _log.warning("vm_snapshot_release_waits", vm_snapshot=vm_snapshot_id, error=str(error))

    def _reap_locked(self, vm_snapshot_id: VmSnapshotId, care: _Care) -> bool:
        with self._locks.hold(vm_snapshot_id):
            snapshot = self._store.snapshots.find(vm_snapshot_id)
            if snapshot is None:
                return False
            if snapshot.state is SnapshotState.READY:
                if care.lapses > self._clock.monotonic():
                    return False  # renewed meanwhile
                _log.info("vm_snapshot_lapsed", vm_snapshot=vm_snapshot_id)
                snapshot = self._mark(snapshot)
            if snapshot.state is SnapshotState.RELEASING:
                self._release(snapshot)
            return True

    def _mark(self, snapshot: SnapshotRecord) -> SnapshotRecord:
        """N4. Under the snapshot's lock."""
        if snapshot.state is not SnapshotState.RELEASING:
            snapshot = replace(snapshot, state=SnapshotState.RELEASING)
            self._store.snapshots.put(snapshot)
        FAILPOINTS.hit("vm-snapshot.release.marked")
        return snapshot

    def _release(self, snapshot: SnapshotRecord) -> None:
        """Delete on every array, then forget (N1). Under the snapshot's lock. Raises the first error."""
        care = self._care_of(snapshot.vm_snapshot_id)
        settled = care.settled <= self._clock.monotonic()  # before the arrays are asked
        errors: list[ArrayliftError] = []
        for address in snapshot.addresses:
            errors += self._release_on(address, snapshot)
        errors += ForeignSnapshots(self._driver, snapshot).end()
        if errors:
            raise errors[0]
        FAILPOINTS.hit("vm-snapshot.release.deleted")
        if settled:  # N5
            self._store.snapshots.remove(snapshot.vm_snapshot_id)
            self._store.firmware.remove(snapshot.vm_snapshot_id)
            with self._lock:
                self._care.pop(snapshot.vm_snapshot_id, None)
            _log.info("vm_snapshot_released", vm_snapshot=snapshot.vm_snapshot_id)

    def _release_on(self, address: str, snapshot: SnapshotRecord) -> list[ArrayliftError]:
        ids = [disk.snapshot_id for disk in snapshot.disks if disk.array_address == address]
        if not ids:  # half made: the label says which are ours
            names = _volumes_on(snapshot, address)
            found, error = attempt(
                lambda: self._volumes.snapshots_labelled(address, names, snapshot.vm_snapshot_id),
                f"search on array {address}",
            )
            if error is not None:
                return [error]
            ids = [one.snapshot_id for one in found or ()]
        errors = []
        for snapshot_id in ids:
            _, error = attempt(
                lambda snapshot_id=snapshot_id: self._volumes.delete_snapshot(address, snapshot_id),  # type: ignore[misc]
                f"deletion on array {address}",
            )
            if error is not None:
                errors.append(error)
                if not isinstance(error, WrongState):
                    break  # the array is away: the others would wait as long
        return errors

    # -- book-keeping ---------------------------------------------------------------------------

    def _of(self, vm_id: VmId) -> list[SnapshotRecord]:
        return [one for one in self._store.snapshots.all() if one.vm_id == vm_id]

    def _care_of(self, vm_snapshot_id: VmSnapshotId) -> _Care:
        with self._lock:
            return self._care.setdefault(vm_snapshot_id, _Care())

    def _restart_lease(self, snapshot: SnapshotRecord) -> None:
        care = self._care_of(snapshot.vm_snapshot_id)
        care.lapses = self._clock.monotonic() + snapshot.lease_seconds

    def _unsettle(self, vm_snapshot_id: VmSnapshotId) -> None:
        self._care_of(vm_snapshot_id).settled = self._clock.monotonic() + SETTLE_SECONDS

    def close(self) -> None:
        """Start no more releases; those under way end by their calls' deadlines."""
        self._releases.shutdown(wait=False, cancel_futures=True)


def _volumes_on(snapshot: SnapshotRecord, address: str) -> list[str]:
    disks = snapshot.config.disks
    return [disk.volume_name for disk in disks if disk.array_address == address and not disk.foreign]


def _disk_snapshot(disk: Disk, taken: dict[tuple[str, str], TakenSnapshot]) -> DiskSnapshot:
    one = taken[disk.array_address, disk.volume_name]
    return DiskSnapshot(
        disk.name,
        disk.array,
        disk.array_address,
        disk.volume_name,
        one.snapshot_id,
        one.size_bytes,
        one.state,
    )


def _group_error(error: ArrayliftError) -> ArrayliftError:
    if isinstance(error, DeadlineExceeded):
        return PeerUnavailable(
            f"an array did not take its snapshots while the guest stood still: {error.message}",
            subject=error.subject,
            next_step="retry; the guest runs on",
        )
    return error
