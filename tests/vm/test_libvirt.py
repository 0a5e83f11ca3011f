"""Guests of a libvirt host as they are: adopted, captured while they write, backed up, restored."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import ArrayliftError, NotFound, PeerUnavailable, WrongState
from arraylift.guest.build import Guest
from arraylift.ids import VmSnapshotId, random_id
from arraylift.v1 import backup_logic_pb2
from arraylift.v1 import vm_pb2 as pb
from arraylift.vm import convert
from hostagent.libvirt.build import LibvirtPlaces, build
from hostagent.vm_store import VmStore
from hostagent.vm_types import VmRecord, VmState
from tests.e2e.cluster import FULL_READ, Sent, last_of
from tests.e2e.daemon import Daemon, free_port, wait_until
from tests.e2e.disks import differing_spans, random_disk
from tests.e2e.host_cluster import HOST, fsck
from tests.e2e.house import House
from tests.e2e.running import shown_when_failing
from tests.vm.libvirtd import Libvirtd, guest_xml

BITMAP = backup_logic_pb2.CHANGE_SOURCE_BITMAP
WEB = 'web & "ö"'
"""A name that XML, shells and paths each have something against."""

CDROM = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"


class Daemons(House):
    """All five, whose host adopts that libvirtd's guests."""

    def __init__(self, home: Path, libvirtd: Libvirtd) -> None:
        self._libvirtd = libvirtd
        super().__init__(home)

    def _daemon(self, module: str, role: str, name: str, **settings: object) -> Daemon:
        if role == "host":
            settings |= {
                "driver": "libvirt",
                "libvirt_uri": self._libvirtd.uri,
                "libvirt_exports": str(self._libvirtd.exports),
            }
        return super()._daemon(module, role, name, **settings)


class LibvirtHouse:
    """A libvirtd with a guest of the admin's, and daemons that adopt it."""

    def __init__(self, guest: Guest) -> None:
        self.libvirtd = Libvirtd()
        self.home = Path(tempfile.mkdtemp(prefix="alh-"))
        self.cluster = Daemons(self.home, self.libvirtd)
        boot, first, second = guest.write_qcow2(self.libvirtd.folder / "disks")
        raw = second.with_suffix(".raw")
        subprocess.run(["qemu-img", "convert", "-O", "raw", second, raw], check=True)
        self.disks = [(boot, "qcow2"), (first, "qcow2"), (raw, "raw")]
        self.cluster.tls("host", HOST)
        self.libvirtd.give_credentials(self.cluster.pki, HOST)

    def start(self) -> None:
        self.libvirtd.start()
        self.libvirtd.define(guest_xml(WEB, self.disks, more=CDROM))
        self.libvirtd.virsh("start", WEB)
        self.cluster.start()
        self.libvirtd.wait_for_agent(WEB)

    def close(self) -> None:
        self.cluster.close()
        self.libvirtd.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # -- looks ----------------------------------------------------------------------------------

    def vms(self) -> dict[str, pb.Vm]:
        return {vm.config.name: vm for vm in self.cluster.ask("ListVms", pb.ListVmsRequest()).vms}

    def vm(self, name: str = WEB) -> pb.Vm:
        return self.vms()[name]

    def is_on(self, name: str) -> bool:
        vms = self.vms()
        return name in vms and vms[name].power == pb.POWER_STATE_ON

    def has_job(self, name: str = WEB) -> bool:
        return self.libvirtd.virsh("backup-dumpxml", name, check=False).returncode == 0

    def checkpoints(self, name: str = WEB) -> list[str]:
        return self.libvirtd.virsh("checkpoint-list", name, "--name", "--topological").stdout.split()

    def bytes_of(self, disk: pb.DiskSnapshot) -> bytes:
        """What qemu-img reads from an export, for comparison."""
        into = self.home / "reference.raw"
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", disk.foreign.uri, str(into)]
        subprocess.run(command, check=True)
        return into.read_bytes()

    # -- acts -----------------------------------------------------------------------------------

    def capture(self, vm: pb.Vm, name: str, since: pb.VmSnapshot | None = None) -> pb.VmSnapshot:
        states = (
            [pb.DiskState(disk_name=one.disk_name, state=one.state) for one in since.disks] if since else []
        )
        return self.cluster.snapshot_vm(vm, name, changes_since=states)

    def send(self, disk: pb.DiskSnapshot, image: str) -> Sent:
        """As the backup server has the gateway do it."""
        transfer = self.cluster.grant(image)
        request = backup_logic_pb2.SendForeignDiskRequest(
            uri=disk.foreign.uri,
            target_address=self.cluster.target.address,
            transfer_id=transfer[0],
            grant=transfer[1],
            state=disk.state,
        )
        if disk.foreign.HasField("bitmap"):
            request.bitmap.CopyFrom(disk.foreign.bitmap)
        return last_of(list(self.cluster.messages(self.cluster.backup_logic.SendForeignDisk, request)))

    def release(self, snapshot: pb.VmSnapshot) -> None:
        request = pb.DeleteVmSnapshotRequest(vm_snapshot_id=snapshot.vm_snapshot_id)
        self.cluster.ask("DeleteVmSnapshot", request)

    def power(self, vm: pb.Vm, *, on: bool, **how: Any) -> pb.Vm:
        if on:
            return self.cluster.ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id)).vm  # type: ignore[no-any-return]
        return self.cluster.ask("PowerOff", pb.PowerOffRequest(vm_id=vm.vm_id, **how)).vm  # type: ignore[no-any-return]

    def clean(self) -> None:
        """No job, nothing in the folder of exports: as it is between backups."""
        wait_until(lambda: not self.has_job(), "the backup job ends")
        wait_until(lambda: os.listdir(self.libvirtd.exports) == [], "the folder of exports is empty")


@pytest.fixture(scope="module")
def house(guest: Guest) -> Iterator[LibvirtHouse]:
    made = LibvirtHouse(guest)
    with shown_when_failing(made.cluster):
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_an_admins_guest_is_adopted_as_it_is(house: LibvirtHouse) -> None:
    wait_until(lambda: WEB in house.vms(), "the guest is adopted")
    vm = house.vm()
    assert vm.power == pb.POWER_STATE_ON
    assert vm.vm_id == vm.config.uuid.replace("-", "")
    assert (vm.config.cpus, vm.config.memory_bytes, vm.config.firmware) == (1, 192 << 20, "bios")
    assert [(disk.name, disk.foreign) for disk in vm.config.disks] == [
        (target, str(path)) for target, (path, _) in zip(("vda", "vdb", "vdc"), house.disks, strict=True)
    ]
    assert [disk.size_bytes >> 20 for disk in vm.config.disks] == [128, 64, 64]
    assert vm.config.tags["left-out"] == "hdc: cdrom"
    with pytest.raises(WrongState, match="belongs to the admin"):
        house.cluster.ask("DeleteVm", pb.DeleteVmRequest(vm_id=vm.vm_id))


def test_a_guest_that_writes_is_backed_up_whole_and_by_its_bitmaps(house: LibvirtHouse) -> None:
    vm = house.vm()
    house.libvirtd.run(WEB, "writer start; sleep 1; echo one >/data1/note; sync")
    first = house.capture(vm, "first")
    assert first.level >= pb.CONSISTENCY_LEVEL_FILESYSTEM
    assert 0 < first.frozen_ns < 10_000_000_000
    frozen = [house.bytes_of(disk) for disk in first.disks]
    house.libvirtd.run(
        WEB, "dd if=/dev/urandom of=/data1/later bs=64k count=40 2>/dev/null; sync; writer stop"
    )
    for disk, content in zip(first.disks, frozen, strict=True):
        sent = house.send(disk, f"web/{disk.disk_name}")
        assert sent.change_source == FULL_READ
        assert differing_spans(house.cluster.image_bytes(sent.image_id), content) == []
    fsck(house.home / "data1.img", frozen[1])
    house.release(first)
    house.clean()

    second = house.capture(vm, "second", since=first)
    sources = []
    for disk in second.disks:
        content = house.bytes_of(disk)
        sent = house.send(disk, f"web/{disk.disk_name}")
        sources.append(sent.change_source)
        assert differing_spans(house.cluster.image_bytes(sent.image_id), content) == [], disk.disk_name
        if disk.disk_name == "vdb":
            assert sent.figures.spans_read < 48, "the bitmap said what to read"
    assert sources == [BITMAP, BITMAP, FULL_READ], "raw files keep no bitmaps"
    house.release(second)
    house.clean()


def test_what_nobody_needs_goes_and_what_is_asked_for_stays(house: LibvirtHouse) -> None:
    vm = house.vm()
    house.libvirtd.virsh("checkpoint-create-as", WEB, "admins-own", "--diskspec", "vdc,checkpoint=no")
    base = house.capture(vm, "base")
    house.release(base)
    for number in range(6):
        again = house.capture(vm, f"again-{number}", since=base)
        assert again.disks[0].foreign.HasField("bitmap"), number
        assert not again.disks[2].foreign.HasField("bitmap")
        house.release(again)
    ours = [name for name in house.checkpoints() if name.startswith("arraylift-")]
    assert len(ours) <= 4
    assert f"arraylift-{base.vm_snapshot_id}" in ours
    assert "admins-own" in house.checkpoints()
    house.libvirtd.virsh("checkpoint-delete", WEB, "admins-own")
    held = house.capture(vm, "held")
    with pytest.raises(WrongState, match="another backup"):
        house.capture(vm, "too-many")
    house.release(held)


def test_going_back_to_a_snapshot_is_no_change_that_a_bitmap_has_seen(house: LibvirtHouse) -> None:
    """F1: with a snapshot inside the images, nothing is vouched for. And a guest without an agent is captured
    as if its power had failed."""
    disk = house.libvirtd.folder / "disks/plain.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "10M"], check=True)
    house.libvirtd.give()
    house.libvirtd.define(guest_xml("plain", [(disk, "qcow2")], memory_mib=32))
    house.libvirtd.virsh("start", "plain")
    wait_until(lambda: house.is_on("plain"), "it is adopted")
    vm = house.vm("plain")
    base = house.capture(vm, "before")
    assert base.level == pb.CONSISTENCY_LEVEL_CRASH
    house.release(base)
    again = house.capture(vm, "again", since=base)
    assert again.disks[0].foreign.HasField("bitmap")
    house.release(again)
    house.libvirtd.virsh("snapshot-create-as", "plain", "s1")
    refused = house.libvirtd.virsh("snapshot-revert", "plain", "s1", check=False)
    assert "active dirty bitmaps" in refused.stderr, "QEMU does not go back behind a bitmap"
    after = house.capture(vm, "after", since=base)
    assert not after.disks[0].foreign.HasField("bitmap")
    house.release(after)
    house.libvirtd.virsh("snapshot-delete", "plain", "s1")
    later = house.capture(vm, "later", since=base)
    assert not later.disks[0].foreign.HasField("bitmap"), "its checkpoints went with the snapshot"
    house.release(later)
    house.libvirtd.virsh("destroy", "plain", check=False)
    house.libvirtd.virsh("undefine", "plain", "--checkpoints-metadata")
    wait_until(lambda: "plain" not in house.vms(), "it is gone")


@pytest.mark.parametrize("point", ["vm-snapshot.export.before", "vm-snapshot.export.after"])
def test_a_host_agent_that_dies_leaves_no_export_and_no_frozen_guest(house: LibvirtHouse, point: str) -> None:
    vm, before = house.vm(), set(house.checkpoints())
    house.cluster.host.stop()
    house.cluster.arm_host(f"{point}=kill")
    with pytest.raises(ArrayliftError):
        house.capture(vm, f"dies-{point}")
    wait_until(lambda: not house.cluster.host.running, "it has died")
    house.cluster.host.start()
    house.clean()
    assert house.libvirtd.agent(WEB, "guest-fsfreeze-status") == "thawed"
    wait_until(lambda: set(house.checkpoints()) <= before, "its checkpoint is gone")
    assert house.cluster.ask("ListVmSnapshots", pb.ListVmSnapshotsRequest()).snapshots == []


def test_an_export_outlives_libvirtd_and_the_host_agent(house: LibvirtHouse) -> None:
    vm = house.vm()
    held = house.capture(vm, "outlives")
    content = house.bytes_of(held.disks[1])
    house.cluster.host.kill()
    house.libvirtd.kill()
    assert house.bytes_of(held.disks[1]) == content
    house.cluster.host.start()
    with pytest.raises((PeerUnavailable, NotFound)):
        house.capture(vm, "without-libvirtd")
    assert house.vm().power == pb.POWER_STATE_ON, "what nobody says is not guessed"
    house.libvirtd.start()
    sent = house.send(held.disks[1], "web/outlives")
    assert differing_spans(house.cluster.image_bytes(sent.image_id), content) == []
    house.release(held)
    house.clean()


def test_a_libvirtd_that_hangs_hangs_no_call(house: LibvirtHouse) -> None:
    vm = house.vm()
    house.libvirtd.signal(signal.SIGSTOP)
    try:
        with pytest.raises(ArrayliftError):
            house.cluster.ask("PowerOff", pb.PowerOffRequest(vm_id=vm.vm_id), seconds=50)
        assert WEB in house.vms()
    finally:
        house.libvirtd.signal(signal.SIGCONT)
    wait_until(lambda: house.libvirtd.virsh("domstate", WEB).stdout.strip() == "running", "it goes on")
    held = _until_captured(house, vm, "after-hang")
    house.release(held)


def _until_captured(house: LibvirtHouse, vm: pb.Vm, name: str) -> pb.VmSnapshot:
    made: list[pb.VmSnapshot] = []

    def attempt() -> bool:
        with contextlib.suppress(ArrayliftError):
            made.append(house.capture(vm, name))
        return bool(made)

    wait_until(attempt, "the host agent reaches libvirt again", seconds=60)
    return made[0]


def test_files_are_put_into_the_guest_and_read(house: LibvirtHouse) -> None:
    vm = house.vm()
    house.cluster.put(vm, "/etc/from-outside", bytes(range(250)) * 4000, mode=0o600)
    assert house.cluster.get(vm, "/etc/from-outside") == bytes(range(250)) * 4000
    assert house.libvirtd.run(WEB, "wc -c </etc/from-outside").strip() == "1000000"
    assert "from-outside" in "".join(entry.path for entry in house.cluster.entries(vm, "/etc"))


def test_the_admins_changes_are_noticed(house: LibvirtHouse) -> None:
    other = house.libvirtd.folder / "disks/other.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", other, "10M"], check=True)
    house.libvirtd.give()
    house.libvirtd.define(guest_xml("second", [(other, "qcow2")]))
    wait_until(lambda: "second" in house.vms(), "a new guest is adopted", seconds=5)
    second = house.vm("second")
    house.libvirtd.virsh("setvcpus", "second", "1", "--config")
    house.libvirtd.virsh("setmaxmem", "second", "100M", "--config")
    wait_until(
        lambda: house.vm("second").config.memory_bytes == 100 << 20, "its memory is noticed", seconds=15
    )
    assert house.vm("second").revision > second.revision
    house.libvirtd.virsh("domrename", "second", "third")
    wait_until(lambda: {"third"} == house.vms().keys() - {WEB}, "its name is noticed", seconds=15)
    assert house.vm("third").vm_id == second.vm_id
    house.libvirtd.virsh("start", "third")
    wait_until(lambda: house.vm("third").power == pb.POWER_STATE_ON, "it is on", seconds=5)
    house.power(house.vm("third"), on=False, force=True)
    assert house.vm("third").power == pb.POWER_STATE_OFF
    house.libvirtd.virsh("undefine", "third")
    wait_until(lambda: "third" not in house.vms(), "it is gone", seconds=15)


def test_a_guest_that_is_off_is_exported_and_cannot_be_started_meanwhile(house: LibvirtHouse) -> None:
    vm = house.vm()
    base = house.capture(vm, "running")
    for disk in base.disks:
        house.send(disk, f"off/{disk.disk_name}")
    house.release(base)
    house.libvirtd.run(WEB, "dd if=/dev/urandom of=/data1/last bs=64k count=8 2>/dev/null; sync")
    house.power(vm, on=False, grace_seconds=60)
    assert house.vm().power == pb.POWER_STATE_OFF
    held = house.capture(vm, "off", since=base)
    assert (held.level, held.frozen_ns) == (pb.CONSISTENCY_LEVEL_FILESYSTEM, 0)
    with pytest.raises(WrongState, match="backup reads the disks"):
        house.power(vm, on=True)
    refused = house.libvirtd.virsh("start", WEB, check=False)
    assert refused.returncode != 0, "QEMU's lock holds the admin back as well"
    sources = []
    for disk, (path, kind) in zip(held.disks, house.disks, strict=True):
        sent = house.send(disk, f"off/{disk.disk_name}")
        sources.append(sent.change_source)
        raw = house.home / "off.raw"
        subprocess.run(["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", path, raw], check=True)
        assert differing_spans(house.cluster.image_bytes(sent.image_id), raw.read_bytes()) == []
    assert sources == [BITMAP, BITMAP, FULL_READ]
    house.cluster.host.kill()  # qemu-nbd outlives it, and is ended all the same
    house.cluster.host.start()
    assert house.bytes_of(held.disks[0])
    house.release(held)
    house.clean()
    assert house.power(vm, on=True).power == pb.POWER_STATE_ON
    house.libvirtd.wait_for_agent(WEB)


@pytest.mark.parametrize("on", [True, False])
def test_a_gateway_on_another_machine_reads_by_tls(house: LibvirtHouse, tmp_path: Path, on: bool) -> None:
    """Of a guest that is on by QEMU's certificate, of one that is off by the host's own."""
    disk = house.libvirtd.folder / "disks/tls.raw"
    disk.write_bytes(random_disk(3 << 20, seed=int(on)))
    house.libvirtd.give()
    house.libvirtd.define(guest_xml("tls", [(disk, "raw")], memory_mib=32))
    if on:
        house.libvirtd.virsh("start", "tls")
    wait_until(lambda: "tls" in house.vms(), "it is adopted")
    vm = convert.vm_from_pb(house.vm("tls"))
    record = VmRecord(vm.vm_id, vm.config, VmState.ON, 1, "", (), adopted=True)
    port = free_port()
    places = LibvirtPlaces(
        host=HOST,
        state=str(tmp_path),
        pki=str(house.cluster.pki),
        uri=house.libvirtd.uri,
        exports=str(house.libvirtd.exports),
        listen=f"127.0.0.1:{port}-{port + 3}",
    )
    store = VmStore(RealFiles(), str(tmp_path / "store"))
    made = build(places, store, _no_volumes(), RealFiles(), clock=SYSTEM_CLOCK, tls_name=str)
    snapshot = VmSnapshotId(random_id())
    foreign = made.driver.foreign
    foreign.prepare(record, snapshot, vm.config.disks, {})
    try:
        (told,) = foreign.begin(record, snapshot, vm.config.disks, {}, timeout_seconds=8)
        assert told.foreign is not None
        assert told.foreign.uri.startswith("nbds://127.0.0.1:")
        sent = house.send(convert.disk_snapshot_to_pb(told), "tls")
        assert differing_spans(house.cluster.image_bytes(sent.image_id), disk.read_bytes()) == []
        plain = told.foreign.uri.replace("nbds:", "nbd:")
        refused = subprocess.run(["qemu-img", "info", "-f", "raw", plain], capture_output=True, check=False)
        assert refused.returncode != 0, "never without TLS"
    finally:
        foreign.end(vm.vm_id, snapshot, told=True)
        store.close()
    house.libvirtd.virsh("destroy", "tls", check=False)
    house.libvirtd.virsh("undefine", "tls", "--checkpoints-metadata")
    wait_until(lambda: "tls" not in house.vms(), "it is gone")


def _no_volumes() -> Any:
    return None  # nothing here asks an array


def test_it_is_lost_and_restored_onto_the_array_by_the_server(house: LibvirtHouse) -> None:
    """Backed up through the virtual center, by its bitmaps the second time; restored, booted, looked into."""
    cluster, vm = house.cluster, house.vm()
    cluster.wait_managed(WEB)
    house.libvirtd.run(WEB, "mkdir -p /data1/kept; seq 100000 >/data1/kept/numbers; sync")
    cluster.back_up_vm(WEB)
    sums = house.libvirtd.run(WEB, "seq 5 >/data1/kept/few; sync; cd /data1/kept; sha256sum numbers few")
    job = cluster.back_up_vm(WEB)
    backup = cluster.backup(job.backup_id)
    assert backup.level >= pb.CONSISTENCY_LEVEL_FILESYSTEM
    read = {disk.disk_name: disk.figures.bytes_read >> 20 for disk in backup.disks}
    assert read["vda"] + read["vdb"] < 30, "its bitmaps said what to read"
    house.clean()
    assert cluster.ask("ListVmSnapshots", pb.ListVmSnapshotsRequest()).snapshots == []

    house.power(vm, on=False, force=True)  # its host is lost, but for our processes
    result = cluster.restore_vm(job.backup_id, as_name="restored")
    made = house.vm("restored")
    assert (made.vm_id, made.config.tags["machine"]) == (result.result_vm_id, vm.config.tags["machine"])
    assert all(disk.volume_name and not disk.foreign for disk in made.config.disks)
    assert made.config.uuid != vm.config.uuid
    house.power(made, on=True)
    assert sorted(house.vms()) == ["restored", WEB], "it is not adopted as well"
    house.libvirtd.wait_for_agent("restored")
    assert house.libvirtd.run("restored", "cd /data1/kept; sha256sum numbers few") == sums


def test_a_vm_of_ours_lives_on_the_array(house: LibvirtHouse) -> None:
    """After the one above: volumes come and go, it is backed up by the array itself, deleted whole."""
    cluster, made = house.cluster, house.vm("restored")
    cluster.import_disk("restored-extra", bytearray(8 << 20))
    extra = cluster.disk("extra", volume="restored-extra")
    cluster.ask("AttachVolume", pb.AttachVolumeRequest(vm_id=made.vm_id, disk=extra))
    wait_until(lambda: "vdd" in house.libvirtd.run("restored", "ls /sys/block"), "the disk is there")
    cluster.ask("DetachVolume", pb.DetachVolumeRequest(vm_id=made.vm_id, disk_name="extra"))
    wait_until(lambda: "vdd" not in house.libvirtd.run("restored", "ls /sys/block"), "it is gone")
    captured = cluster.snapshot_vm(made, "on-the-array")
    assert captured.level >= pb.CONSISTENCY_LEVEL_FILESYSTEM
    assert all(disk.snapshot_id for disk in captured.disks)
    house.release(captured)
    house.power(made, on=False, grace_seconds=60)
    cluster.ask("DeleteVm", pb.DeleteVmRequest(vm_id=made.vm_id))
    assert "restored" not in house.libvirtd.virsh("list", "--all", "--name").stdout.split()


def test_an_admins_guest_of_the_same_uuid_is_left_alone(house: LibvirtHouse) -> None:
    vm = house.vm()
    house.power(vm, on=True)
    volume = house.cluster.disk("root", volume="restored-extra")
    config = pb.VmConfig(name="twin", uuid=vm.config.uuid, cpus=1, memory_bytes=64 << 20, disks=[volume])
    twin = house.cluster.ask("CreateVm", pb.CreateVmRequest(vm_id=random_id(), config=config)).vm
    with pytest.raises(ArrayliftError, match="UUID"):
        house.power(twin, on=True)
    assert house.power(twin, on=False, force=True).power == pb.POWER_STATE_OFF
    house.cluster.ask("DeleteVm", pb.DeleteVmRequest(vm_id=twin.vm_id, keep_volumes=True))
    assert house.libvirtd.virsh("domstate", WEB).stdout.strip() == "running", "the admin's guest is untouched"
