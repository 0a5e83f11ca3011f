"""Which volumes and snapshots are served by NBD under which names, and who is connected.

Owns: the table of exports and the list of open devices.
Invariants:
  X1 an export names a volume by its id: a later volume of the same name is not served for it.
  X2 what is exported is not deleted: a snapshot is pinned while it is, a volume is guarded by ``hold``.
  X3 an export that is being removed, or whose volume is, is opened by nobody; ``remove``
     returns when nobody has it open any more.
  X4 nobody opens a volume for writing while it is replaced, or written through VolumeService.
  X5 nobody exports a volume while it is made smaller.
  X6 no caller with a certificate has more than ``connections_per_caller`` devices open: whoever leaves
     connections idle is in the way of nobody but itself.
Callers: the VolumeService edge and connections of the NBD server, any thread; the pool, by
``refuse_if_open``, ``kept_unopened`` and ``kept_unexported``. Lock order: gate and commit lock of the
pool, this lock, the pool's map lock.
Format: docs/formats/exports-v1.md
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from arraylift.durable import Files
from arraylift.errors import AlreadyExists, DeadlineExceeded, NotFound, Overloaded, WrongState
from arraylift.ids import SnapshotId, VolumeId, check_name
from arraylift.logs import get_logger
from arraylift.nbd.access import Caller, may_write
from arraylift.nbd.device import Listed
from primary_array.export_table import ExportRecord, ExportTable
from primary_array.pin import Pin
from primary_array.pool import Pool
from primary_array.pool_device import PoolDevice
from primary_array.pool_types import SnapshotInfo, VolumeInfo

REMOVAL_SECONDS_MAX = 30.0
"""How long ``remove`` waits for connections to end: each finishes the request that it is at."""

CONNECTIONS_PER_CALLER = 192

_log = get_logger("exports")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """An export as it stands. ``volume_name`` is empty where the volume is gone."""

    record: ExportRecord
    volume_name: str
    connection_count: int


@dataclass(frozen=True, slots=True)
class _Opened:
    record: ExportRecord
    volume_name: str
    read_only: bool
    caller: Caller
    hang_up: Callable[[], None]


class ArrayExports:
    """Exports (arraylift.nbd.device) over one pool."""

    def __init__(
        self,
        pool: Pool,
        files: Files,
        directory: str,
        *,
        connections_per_caller: int = CONNECTIONS_PER_CALLER,
    ) -> None:
        """Read the table. Raises Corruption, WrongState."""
        self._pool = pool
        self._connections_per_caller = connections_per_caller
        self._table = ExportTable(files, directory)
        self._changed = threading.Condition(threading.Lock())
        self._opened: dict[int, _Opened] = {}
        self._serial = 0
        self._removing: set[str] = set()
        self._held: set[VolumeId] = set()
        self._replaced: Counter[str] = Counter()
        """How often a volume is written by another way, or replaced, right now, by name (X4)."""
        self._cut: set[str] = set()
        """Names of volumes that are made smaller right now (X5)."""
        self._pins: dict[str, Pin] = {}
        self._names: dict[VolumeId, str] = {}
        """Under which names volumes were found; they have no other."""
        for record in self._table.all():
            try:
                self._pin(record)
            except NotFound:  # it stays in the table, and opens for nobody
                _log.warning("export_without_snapshot", export=record.name, snapshot=record.snapshot_id)
        pool.refuse_changes_under(self.refuse_if_open, self.kept_unopened, self.kept_unexported)

    def _pin(self, record: ExportRecord) -> None:
        """X2. Raises NotFound, WrongState (the snapshot is being deleted)."""
        if record.snapshot_id is not None:
            self._pins[record.name] = self._pool.pin(record.snapshot_id)

    # -- the table ------------------------------------------------------------------------------

    def create(
        self, name: str, *, volume_name: str = "", snapshot_id: SnapshotId | None = None, read_only: bool
    ) -> ExportInfo:
        """Serve a volume, or a snapshot, durably. Repeating it changes nothing.

        Raises InvalidRequest, NotFound, AlreadyExists (other settings), WrongState, Overloaded, OutOfSpace.
        """
        check_name(name, "an export name")
        with self._changed:
            if snapshot_id is None:
                volume_id = self._pool.volume(volume_name).volume_id
            else:
                volume_id, read_only = self._pool.get_snapshot(snapshot_id).volume_id, True
            record = ExportRecord(name, volume_id, snapshot_id, read_only)
            found = self._table.find(name)
            if found is not None and (found != record or name in self._removing):
                raise AlreadyExists(f"export {name} exists already", subject=name)
            if found is None:
                if volume_id in self._held:
                    raise WrongState("the volume is being removed", subject=name)
                if snapshot_id is None and volume_name in self._cut:  # X5
                    raise WrongState(f"volume {volume_name} is being changed", next_step="repeat it")
                self._add(record)
            return self._info(record)

    def _add(self, record: ExportRecord) -> None:
        self._pin(record)
        try:
            self._table.put(record)
        except BaseException:
            self._unpin(record.name)
            raise

    def _unpin(self, name: str) -> None:
        pin = self._pins.pop(name, None)
        if pin is not None:
            pin.release()

    def infos(self) -> list[ExportInfo]:
        """All, by name."""
        with self._changed:
            self._learn_names()
            return [self._info(record) for record in self._table.all()]

    def _info(self, record: ExportRecord) -> ExportInfo:
        count = sum(opened.record == record for opened in self._opened.values())
        volume = self._volume(record.volume_id)
        return ExportInfo(record, volume.name if volume else "", count)

    def _volume(self, volume_id: VolumeId) -> VolumeInfo | None:
        """X1."""
        if volume_id not in self._names:
            self._learn_names()
        try:
            found = self._pool.volume(self._names.get(volume_id, ""))
        except NotFound:
            return None
        return found if found.volume_id == volume_id else None

    def _learn_names(self) -> None:
        self._names = {info.volume_id: info.name for info in self._pool.volumes()}

    def remove(self, name: str) -> None:
        """End the export's connections, then forget it (X3).

        Raises NotFound, DeadlineExceeded (a connection does not end; the export stays), OutOfSpace.
        """
        with self._changed:
            record = self._table.find(name)
            if record is None or name in self._removing:
                raise NotFound(f"there is no export {name}", subject=name)
            self._removing.add(name)
            try:
                self._hang_up(record)
                self._table.remove(name)
                self._unpin(name)
            finally:
                self._removing.discard(name)

    def _hang_up(self, record: ExportRecord) -> None:
        """Lock held; it is let go while this waits."""
        for opened in self._opened.values():
            if opened.record == record:
                opened.hang_up()

        def nobody() -> bool:
            return all(opened.record != record for opened in self._opened.values())

        if not self._changed.wait_for(nobody, REMOVAL_SECONDS_MAX):
            raise DeadlineExceeded(
                f"a connection to export {record.name} does not end",
                subject=record.name,
                next_step="repeat it; if it stays so, restart the array",
            )

    # -- volumes that are changed as a whole ----------------------------------------------------

    @contextmanager
    def hold(self, volume_name: str) -> Iterator[None]:
        """Admit neither exports nor connections of a volume while the caller removes it.

        Raises NotFound, and WrongState where it is exported, or held already.
        """
        with self._changed:
            volume_id = self._pool.volume(volume_name).volume_id
            if volume_id in self._held:
                raise WrongState(f"volume {volume_name} is being removed", subject=volume_name)
            for record in self._table.all():
                if record.volume_id == volume_id:
                    raise _exported(volume_name, record)
            self._held.add(volume_id)
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(volume_id)

    def refuse_if_open(self, volume_name: str) -> None:
        """Raise WrongState if somebody has the volume open for writing; unknown names are nobody's."""
        with self._changed:
            self._refuse_if_open(volume_name)

    def _refuse_if_open(self, volume_name: str) -> None:
        for opened in self._opened.values():
            if opened.volume_name == volume_name and not opened.read_only:
                raise WrongState(
                    f"volume {volume_name} is open for writing through export {opened.record.name}",
                    subject=volume_name,
                    next_step="end its clients first: stop the VM, or remove the export",
                )

    @contextmanager
    def kept_unopened(self, volume_name: str) -> Iterator[None]:
        """The same, and admit no writer before this ends (X4)."""
        with self._changed:
            self._refuse_if_open(volume_name)
            self._replaced[volume_name] += 1
        try:
            yield
        finally:
            with self._changed:
                self._replaced[volume_name] -= 1
                if not self._replaced[volume_name]:
                    del self._replaced[volume_name]

    @contextmanager
    def kept_unexported(self, volume_name: str) -> Iterator[None]:
        """Raise WrongState if the living volume is exported; let nobody export it before this ends (X5)."""
        with self._changed:
            volume_id = self._pool.volume(volume_name).volume_id
            for record in self._table.all():
                if record.volume_id == volume_id and record.snapshot_id is None:
                    raise _exported(volume_name, record)
            self._cut.add(volume_name)
        try:
            yield
        finally:
            with self._changed:
                self._cut.discard(volume_name)

    # -- what the NBD server asks ---------------------------------------------------------------

    def listed(self, caller: Caller) -> Sequence[Listed]:
        may_write(caller)
        with self._changed:
            records = self._table.all()
        return [Listed(record.name, _described(record)) for record in records]

    def open(self, name: str, caller: Caller, hang_up: Callable[[], None]) -> PoolDevice:
        read_only = not may_write(caller)
        with self._changed:
            record = self._table.find(name)
            if record is None or name in self._removing:  # X3
                raise NotFound(f"there is no export {name}", subject=name)
            read_only = read_only or record.read_only
            if record.volume_id in self._held:
                raise WrongState(f"the volume of export {name} is being removed", subject=name)
            info = self._source(record)
            volume_name = info.volume_name if isinstance(info, SnapshotInfo) else info.name
            if volume_name in self._replaced and not read_only:  # X4
                raise WrongState(f"volume {volume_name} is being changed", next_step="repeat it")
            self._check_share(caller)
            self._serial += 1
            number = self._serial
            self._opened[number] = _Opened(record, volume_name, read_only, caller, hang_up)

        def closed() -> None:
            with self._changed:
                del self._opened[number]
                self._changed.notify_all()

        return PoolDevice(self._pool, info, read_only=read_only, closed=closed)

    def _check_share(self, caller: Caller) -> None:
        """X6; lock held. Raises Overloaded."""
        count = sum(opened.caller == caller for opened in self._opened.values())
        if caller is not None and count >= self._connections_per_caller:
            raise Overloaded(
                f"{caller} has {count} connections, as many as one may have",
                subject=str(caller),
                next_step="end some, or raise nbd_connections",
            )

    def _source(self, record: ExportRecord) -> VolumeInfo | SnapshotInfo:
        """X1."""
        if record.snapshot_id is not None:
            return self._pool.get_snapshot(record.snapshot_id)
        volume = self._volume(record.volume_id)
        if volume is None:
            raise NotFound(f"the volume of export {record.name} is gone", subject=record.name)
        return volume

    def close(self) -> None:
        """Let the snapshots go; the NBD server has stopped."""
        assert not self._opened, "devices are open"
        for name in list(self._pins):
            self._unpin(name)


def _exported(volume_name: str, record: ExportRecord) -> WrongState:
    return WrongState(
        f"volume {volume_name} is exported as {record.name}",
        subject=volume_name,
        next_step="remove its exports first",
    )


def _described(record: ExportRecord) -> str:
    what = "volume" if record.snapshot_id is None else "snapshot"
    return f"{what}, read-only" if record.read_only else what
