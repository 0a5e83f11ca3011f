"""Arraylift itself: one array and one target as processes on loopback, mutual TLS on.

What a guest would have done to its volumes (fill them, write a day's changes) is done beforehand
and not measured. A backup is measured from the request for its snapshot to its receipt, a restore
from its grant to the receipt of the new volume.
Callers: benchmarks.rounds, one thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arraylift import pki
from arraylift.cli import processes, transfers, volume_data
from arraylift.cli.connection import OPERATOR_NAME, OPERATOR_ROLE, Connection
from arraylift.cli.local_files import SourceImage
from arraylift.config import child_environment
from arraylift.errors import ArrayliftError
from arraylift.ids import random_id
from arraylift.sizes import MIB
from arraylift.v1 import backup_logic_pb2, common_pb2, image_pb2, target_admin_pb2, volume_pb2
from benchmarks import usage
from benchmarks.disks import Disk, Disks
from benchmarks.peers import BACKUPS, DISK_OF, Work
from benchmarks.usage import Usage

READY_SECONDS_MAX = 30.0
VOLUME_OF = {"A0": "a", "A1": "a", "A2": "a", "B0": "b"}
RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class _Daemon:
    """One daemon's process and a connection to it."""

    process: processes.ProcessRecord
    connection: Connection


class Arraylift:
    """See ``Peer`` for what each method promises."""

    name = "arraylift"

    def __init__(self) -> None:
        self._daemons: dict[str, _Daemon] = {}
        self.figures: dict[Work, dict[str, float]] = {}
        """What the receipts said, and CPU seconds of each process."""

    # -- life -----------------------------------------------------------------------------------

    def begin(self, scratch: Path, disks: Disks) -> None:
        self._scratch = scratch
        self._disks = disks
        self._image_id = ""
        self._pki = scratch / "pki"
        self._pki.mkdir()
        pki.init_ca(str(self._pki))
        for role, name in (("array", "array1"), ("target", "target1"), (OPERATOR_ROLE, OPERATOR_NAME)):
            pki.issue(str(self._pki), role, name)
        self.repository = scratch / "target1"
        self._start("array", "primary_array", "array1")
        self._start("target", "dedup_target", "target1")
        for noun in self._daemons:
            self._wait_until_ready(noun)
        for name in ("A0", "B0"):
            with SourceImage(disks[name].path) as source:
                volume_data.import_volume(self._array, source, VOLUME_OF[name], lambda _: None)

    def _start(self, noun: str, module: str, name: str) -> None:
        port = _free_port()
        config = self._scratch / f"{name}.toml"
        settings = {
            "name": name,
            "listen": f"127.0.0.1:{port}",
            "state": str(self._scratch / name),
            "pki": str(self._pki),
            "log_level": "warning",
        }
        if noun == "array":
            settings["nbd_listen"] = ""
        config.write_text(
            "".join(f'{key} = "{value}"\n' for key, value in settings.items()), encoding="utf-8"
        )
        log = os.open(self._scratch / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = processes.spawn(["-m", module, "--config", str(config)], child_environment(), log)
        finally:
            os.close(log)
        self._daemons[noun] = _Daemon(process, Connection(noun, f"127.0.0.1:{port}", self._pki))

    def _wait_until_ready(self, noun: str) -> None:
        daemon, deadline = self._daemons[noun], time.monotonic() + READY_SECONDS_MAX
        while True:
            try:
                if daemon.connection.is_serving():
                    return
            except ArrayliftError:
                if time.monotonic() > deadline or processes.exited_within(daemon.process, 0.05):
                    log = self._scratch / f"{noun}1.log"
                    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise ArrayliftError(f"the {noun} did not start: {said}") from None

    def end(self) -> None:
        for daemon in self._daemons.values():
            daemon.connection.close()
            processes.stop(daemon.process)
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


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
