"""Arraylift itself: one array and one target as processes on loopback, mutual TLS on.

What a guest would have done to its volumes (fill them, write a day's changes) is done beforehand
and not measured. A backup is measured from the request for its snapshot to its receipt, a restore
from its grant to the receipt of the new volume.
Callers: benchmarks.rounds, one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arraylift.cli import transfers, volume_data
from arraylift.cli.connection import Connection
from arraylift.cli.local_files import SourceImage
from arraylift.errors import ArrayliftError
from arraylift.ids import random_id
from arraylift.sizes import MIB
from arraylift.v1 import backup_logic_pb2, common_pb2, image_pb2, target_admin_pb2, volume_pb2
from benchmarks import daemons, usage
from benchmarks.daemons import Daemon
from benchmarks.disks import Disk, Disks
from benchmarks.peers import BACKUPS, DISK_OF, Work
from benchmarks.usage import Usage

VOLUME_OF = {"A0": "a", "A1": "a", "A2": "a", "B0": "b"}
RESTORED = "restored"


class Arraylift:
    """See ``Peer`` for what each method promises."""

    name = "arraylift"

    def __init__(self) -> None:
        self._daemons: dict[str, Daemon] = {}
        self.figures: dict[Work, dict[str, float]] = {}
        """What the receipts said, and CPU seconds of each process."""

    # -- life -----------------------------------------------------------------------------------

    def begin(self, scratch: Path, disks: Disks) -> None:
        self._scratch = scratch
        self._disks = disks
        self._image_id = ""
        pki_directory = daemons.make_pki(scratch)
        self.repository = scratch / "target1"
        for noun, module in (("array", "primary_array"), ("target", "dedup_target")):
            name = f"{noun}1"
            self._daemons[noun] = daemons.start(
                noun, module, name, scratch=scratch, pki_directory=pki_directory
            )
        for daemon in self._daemons.values():
            daemons.wait_until_ready(daemon, scratch=scratch)
        for name in ("A0", "B0"):
            with SourceImage(disks[name].path) as source:
                volume_data.import_volume(self._array, source, VOLUME_OF[name], lambda _: None)

    def end(self) -> None:
        for daemon in self._daemons.values():
            daemons.stop(daemon)
        self._daemons.clear()

    @property
    def _array(self) -> Connection:
        return self._daemons["array"].connection

    @property
    def _target(self) -> Connection:
        return self._daemons["target"].connection

    # -- work -----------------------------------------------------------------------------------

    def prepare(self, work: Work) -> None:
        disk = self._disks[DISK_OF[work]]
        if work in {Work.DAY_1, Work.DAY_2}:
            changed = volume_data.Difference(disk.changed)
            with SourceImage(disk.path) as source:
                name = VOLUME_OF[disk.name]
                volume_data.write_differences(self._array, name, source, changed, lambda _: None)

    def reads(self, work: Work) -> Sequence[Path]:
        if work in {Work.RESTORE, Work.PIECE}:
            return [self.repository]
        return [self._scratch / "array1"]

    def run(self, work: Work) -> Usage | None:
        before = self._cpu_by_process()
        if work is Work.PIECE:
            self._read_piece()  # connections and tree are warm for the second
        used = usage.timed(lambda: self._do(work), lambda: sum(self._cpu_by_process().values()))
        after = self._cpu_by_process()
        cpu = {f"{name}_cpu_seconds": after[name] - before.get(name, 0.0) for name in after}
        self.figures[work] = {**cpu, **self._receipt_figures}
        return used

    def _do(self, work: Work) -> None:
        self._receipt_figures: dict[str, float] = {}
        if work in BACKUPS or work is Work.UNCHANGED:
            self._back_up(VOLUME_OF[DISK_OF[work]], full_read=work is Work.UNCHANGED)
        elif work is Work.RESTORE:
            receipt = transfers.restore_image(
                self._target, self._array, self._image_id, volume_name=RESTORED, on_spans=lambda *_: None
            )
            self._receipt_figures = _plain(receipt.figures)
        else:
            self._read_piece()

    def _back_up(self, volume: str, *, full_read: bool) -> None:
        array, target = self._array, self._target
        request = volume_pb2.CreateSnapshotsRequest(volume_names=[volume])
        (snapshot,) = array.call(array.volumes.CreateSnapshots, request).snapshots
        if not full_read:
            receipt = transfers.send_snapshot(
                array,
                target,
                snapshot.snapshot_id,
                image_name=volume,
                full=False,
                on_spans=lambda *_: None,
            )
            self._image_id, self._receipt_figures = receipt.receipt_id, _plain(receipt.figures)
            return
        transfer_id = random_id()
        grant = target.call(
            target.admin.CreateGrant,
            target_admin_pb2.CreateGrantRequest(transfer_id=transfer_id, array="array1", image_name=volume),
        )
        sending = backup_logic_pb2.SendSnapshotRequest(
            snapshot_id=snapshot.snapshot_id,
            target_address=target.address,
            transfer_id=transfer_id,
            grant=grant.grant,
            change_source=backup_logic_pb2.CHANGE_SOURCE_FULL_READ,
        )
        with array.stream(array.backup_logic.SendSnapshot, sending) as responses:
            *_, last = responses
        self._receipt_figures = _plain(last.figures)

    def _read_piece(self) -> None:
        disk = self._disks[DISK_OF[Work.PIECE]]
        offset = disk.size_bytes // 3 // MIB * MIB
        request = image_pb2.ReadRangeRequest(image_id=self._image_id, offset=offset, length=MIB)
        parts = []
        with self._target.stream(self._target.images.ReadRange, request) as responses:
            for response in responses:
                parts.append(response.data or bytes(response.zero_bytes))
        with SourceImage(disk.path) as source:
            if b"".join(parts) != source.read(offset, MIB):
                raise ArrayliftError("a range of the image differs from the disk")

    # -- figures --------------------------------------------------------------------------------

    def _processes(self) -> dict[str, list[int]]:
        (array, *workers), target = (usage.tree_of(self._daemons[n].process.pid) for n in ("array", "target"))
        return {"array": [array], "array_workers": workers, "target": target}

    def _cpu_by_process(self) -> dict[str, float]:
        return {name: sum(map(usage.cpu_seconds_of, pids)) for name, pids in self._processes().items()}

    def peak_memory_bytes(self) -> dict[str, int]:
        """Return the peak of each daemon; for workers, that of the largest."""
        return {
            name: max(map(usage.peak_memory_of, pids)) for name, pids in self._processes().items() if pids
        }

    def restored(self, disk: Disk) -> bool:
        volume = volume_data.get_volume(self._array, RESTORED)
        with SourceImage(disk.path) as source:
            return not volume_data.differences(self._array, volume, source, lambda _: None).ranges


def _plain(figures: common_pb2.TransferFigures) -> dict[str, float]:
    return {field.name: value for field, value in figures.ListFields()}
