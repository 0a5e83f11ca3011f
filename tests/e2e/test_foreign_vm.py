"""A VM with a disk on an array and one on foreign storage, backed up and restored by the server.

Its host is played by this process, by the VM API and by a real QEMU's exports: what is shown is what the
server makes of them, with real arrays and a real target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.ids import random_id
from arraylift.rpc.channel import call
from arraylift.rpc.server import RpcServer
from arraylift.sizes import KIB, MIB
from arraylift.v1 import backup_logic_pb2, common_pb2, vm_pb2, volume_pb2
from arraylift.v1 import backup_pb2 as pb
from tests.e2e.cluster import ARRAY, CALL_SECONDS
from tests.e2e.disks import differing_spans, random_disk
from tests.e2e.house import House, running_house
from tests.e2e.qemu import Qemu
from tests.fakes.peers import vm_handlers
from tests.fakes.world import World
from tests.programs import need

SIZE = 24 * MIB
FULL_READ, SUPPLIED = backup_logic_pb2.CHANGE_SOURCE_FULL_READ, backup_logic_pb2.CHANGE_SOURCE_SUPPLIED
BIRTHS, BITMAP = backup_logic_pb2.CHANGE_SOURCE_BIRTHS, backup_logic_pb2.CHANGE_SOURCE_BITMAP


class PlayedHost(World):
    """One VM ``mixed``: disk0 is a volume, disk1 QEMU's. Snapshots and exports are real."""

    def __init__(self, house: House, qemu: Qemu) -> None:
        super().__init__()
        self._house, self._qemu = house, qemu
        self.content = {"disk0": bytearray(random_disk(SIZE, seed=1)), "disk1": bytearray(SIZE)}
        house.import_disk("mixed-disk0", self.content["disk0"])
        disks = [
            vm_pb2.Disk(
                name="disk0",
                array=ARRAY,
                array_address=house.array.address,
                volume_name="mixed-disk0",
                size_bytes=SIZE,
            ),
            vm_pb2.Disk(name="disk1", foreign=str(qemu.disk), size_bytes=SIZE),
        ]
        config = vm_pb2.VmConfig(name="mixed", cpus=1, memory_bytes=64 * MIB, disks=disks, firmware="bios")
        vm_id = random_id()
        vm = vm_pb2.Vm(vm_id=vm_id, config=config, power=vm_pb2.POWER_STATE_ON, host="host9", revision=1)
        self.vms = {vm_id: vm}
        self.changed: list[tuple[int, int]] = []
        self._bitmaps: dict[str, str] = {}
        """The bitmap that began at an instant, by the lineage that names it."""
        self._uris: dict[str, str] = {}

    def write(self, disk: str, offset: int, data: bytes | bytearray) -> None:
        """As its guest would."""
        if disk == "disk1":
            self._qemu.write(offset, data, self.content[disk])
            return
        self._house.write("mixed-disk0", offset, data, disk=self.content[disk])
        self.changed.append((offset, len(data)))

    def forget_bitmaps(self) -> None:
        """As after a crash of the VMM."""
        self._bitmaps = {}

    def frozen(self) -> dict[str, bytes]:
        return {name: bytes(content) for name, content in self.content.items()}

    def _disk_snapshot(self, disk: vm_pb2.Disk, since: common_pb2.SourceState | None) -> vm_pb2.DiskSnapshot:
        made = vm_pb2.DiskSnapshot(disk_name=disk.name, size_bytes=SIZE)
        if disk.foreign:
            made.state.CopyFrom(common_pb2.SourceState(pool_id=random_id(), lineage_id=random_id(), birth=1))
            began, ended = f"b{random_id()}", self._bitmaps.get(since.lineage_id, "") if since else ""
            made.foreign.uri = self._qemu.freeze(begin_bitmap=began, end_bitmap=ended)
            self._bitmaps[made.state.lineage_id] = began
            if ended and since is not None:
                made.foreign.bitmap.name = ended
                made.foreign.bitmap.since.CopyFrom(since)
            return made
        request = volume_pb2.CreateSnapshotsRequest(volume_names=[disk.volume_name], name=random_id())
        (taken,) = call(self._house.volumes.CreateSnapshots, request, peer=ARRAY).snapshots
        made.array, made.array_address, made.volume_name = disk.array, disk.array_address, disk.volume_name
        made.snapshot_id = taken.snapshot_id
        made.state.CopyFrom(taken.state)
        if since is not None:
            made.changes.since.CopyFrom(since)
            made.changes.offsets = b"".join(at.to_bytes(8, "little") for at, _ in sorted(self.changed))
            made.changes.lengths = b"".join(size.to_bytes(8, "little") for _, size in sorted(self.changed))
        self.changed = []
        return made

    def delete_snapshot(self, request: vm_pb2.DeleteVmSnapshotRequest) -> object:
        known = self.vm_snapshots.get(request.vm_snapshot_id)
        for disk in known.disks if known is not None else ():
            if disk.foreign.uri:
                self._qemu.release(disk.foreign.uri)
            else:
                asked = volume_pb2.DeleteSnapshotRequest(snapshot_id=disk.snapshot_id, missing_ok=True)
                call(self._house.volumes.DeleteSnapshot, asked, peer=ARRAY, timeout_seconds=CALL_SECONDS)
        return super().delete_snapshot(request)


@pytest.fixture
def played(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, PlayedHost]]:
    need("qemu-system-x86_64", "qemu-img")
    qemu = Qemu(tmp_path_factory.mktemp("q"), SIZE)  # a short name: sockets lie in it
    try:
        with running_house(tmp_path, registered_hosts=True) as house:
            host = PlayedHost(house, qemu)
            server = RpcServer("127.0.0.1:0", house.tls("host", "host9"), vm_handlers(host, "host9"))
            server.start()
            try:
                house.add_peer(pb.PEER_KIND_HOST, "host9", server.address)
                yield house, host
            finally:
                server.stop(0)
    finally:
        qemu.close()


def sources(backup: pb.Backup) -> list[int]:
    return [disk.change_source for disk in backup.disks]


def check(house: House, backup: pb.Backup, frozen: dict[str, bytes]) -> None:
    for disk in backup.disks:
        assert differing_spans(house.image_bytes(disk.image_id), frozen[disk.disk_name]) == []


def test_a_disk_here_and_a_disk_there(played: tuple[House, PlayedHost]) -> None:
    house, host = played
    for span in range(6):
        host.write("disk1", span * 3 * MIB + 9 * KIB, random_disk(300 * KIB, seed=span))
    first, frozen = house.backup(house.back_up_vm("mixed", direct=True).backup_id), host.frozen()
    assert sources(first) == [FULL_READ, FULL_READ]
    assert [disk.array for disk in first.disks] == [ARRAY, ARRAY]
    check(house, first, frozen)

    host.write("disk0", 5 * MIB, random_disk(64 * KIB, seed=20))
    host.write("disk1", 2 * MIB, random_disk(64 * KIB, seed=21))
    job, frozen = house.back_up_vm("mixed", direct=True), host.frozen()
    second = house.backup(job.backup_id)
    assert sources(second) == [BIRTHS, BITMAP]
    assert job.figures.spans_read + job.figures.spans_sampled <= 2 + 8
    check(house, second, frozen)

    host.write("disk0", 11 * MIB, random_disk(64 * KIB, seed=22))
    (job_id,) = house.start_backup("mixed", direct=True, change_source=SUPPLIED)
    frozen = host.frozen()
    third = house.backup(house.succeeded(job_id).backup_id)
    assert sources(third) == [SUPPLIED, BITMAP]
    check(house, third, frozen)

    # The VMM knows nothing of a backup that was taken away: everything is read, nothing is guessed.
    house.ask_server("DeleteBackup", pb.DeleteBackupRequest(backup_id=third.backup_id))
    host.write("disk1", 8 * MIB, random_disk(64 * KIB, seed=23))
    host.forget_bitmaps()
    job, frozen = house.back_up_vm("mixed", direct=True), host.frozen()
    fourth = house.backup(job.backup_id)
    assert sources(fourth) == [BIRTHS, FULL_READ]
    check(house, fourth, frozen)

    job = house.restore_vm(fourth.backup_id, as_name="landed", host="host1", direct=True)
    vm = house.all_vms()["landed"]
    assert vm.vm_id == job.result_vm_id
    assert [(disk.array, disk.foreign) for disk in vm.config.disks] == [(ARRAY, ""), (ARRAY, "")]
    house.check_vm(vm, frozen)
    assert house.array_snapshots() == [], "VM snapshots and their exports went with their jobs"
    assert host.vm_snapshots == {}
