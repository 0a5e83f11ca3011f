"""A real guest on volumes of the array, backed up while it writes, restored, booted again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from arraylift.guest.build import Guest
from arraylift.rpc.channel import call
from arraylift.v1 import backup_logic_pb2, vm_pb2, volume_pb2
from arraylift.v1 import backup_pb2 as pb
from tests.e2e.cluster import ARRAY, CALL_SECONDS
from tests.e2e.disks import differing_spans
from tests.e2e.host_cluster import HOST
from tests.vm.traces import Traces, read_traces
from tests.vm.vm_house import DISK_NAMES, FILES, VmHouse, running_vm_house, said

pytestmark = pytest.mark.timeout(300)
APPLICATION, FILESYSTEM = vm_pb2.CONSISTENCY_LEVEL_APPLICATION, vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM
FREEZE_SPANS_MAX = 3
"""A freeze brings superblock and journal of a file system up to date."""
SUPPLIED = backup_logic_pb2.CHANGE_SOURCE_SUPPLIED
FROZEN_NS_MAX = 10 * 10**9
COPIES_MAX = 10


@dataclass(frozen=True, slots=True)
class Web:
    """A house with one booted guest."""

    house: VmHouse
    vm: vm_pb2.Vm

    def run(self, script: str) -> str:
        return self.house.run_in(self.vm, script)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[Web]:
    with running_vm_house(tmp_path_factory.mktemp("house")) as house:
        yield Web(house, house.boot(house.make_guest("web", guest)))


def test_it_booted_from_volumes_that_the_array_serves(web: Web) -> None:
    text = web.house.console(web.vm)
    assert said(text, "firmware") == "bios"
    assert said(text, "uuid") == web.vm.config.uuid
    assert said(text, "macs") == web.vm.config.networks[0].mac
    exports = call(web.house.volumes.ListExports, volume_pb2.ListExportsRequest(), peer=ARRAY).exports
    assert {one.volume_name for one in exports} == {f"web-{name}" for name in DISK_NAMES}
    mounted = web.run("mount | grep ext4")
    assert [line.split()[2] for line in mounted.splitlines()] == ["/", "/data1", "/data2"]


def test_backups_while_it_writes_are_each_of_one_instant(web: Web, tmp_path: Path) -> None:
    before = [0, 0, 0]
    for _ in range(3):
        rounds = web.house.write_rounds(web.vm, least=5)
        job = web.house.back_up_vm("web")
        assert 0 < job.frozen_ns < FROZEN_NS_MAX
        backup = web.house.backup(job.backup_id)
        assert backup.level == APPLICATION
        traces = read_traces(_images(web.house, backup), tmp_path)
        assert traces.quiesced, traces
        assert list(traces.synced) >= rounds > before, "newer than what was written before it"
        before = rounds
    assert web.house.array_snapshots() == []


def test_copies_taken_otherwise_are_told_apart(web: Web, tmp_path: Path) -> None:
    """The control run: without it the test above could hold for want of anything to see."""
    web.house.write_rounds(web.vm, least=5)
    crash = _copy(web.house, tmp_path, [[f"web-{name}" for name in DISK_NAMES]])
    assert crash.of_one_instant, "a group of snapshots needs no freeze for that"
    assert not crash.frozen, f"nothing was frozen, yet nothing is missing: {crash}"

    for _ in range(COPIES_MAX):
        torn = _copy(web.house, tmp_path, [[f"web-{name}"] for name in DISK_NAMES], web)
        if not torn.of_one_instant:
            break
    else:
        pytest.fail("snapshots of one disk after the other are never of one instant")
    web.run("writer stop; writer forget")


def _images(house: VmHouse, backup: pb.Backup) -> list[bytearray]:
    assert [disk.disk_name for disk in backup.disks] == list(DISK_NAMES)
    return [house.image_bytes(disk.image_id) for disk in backup.disks]


def _copy(house: VmHouse, scratch: Path, groups: list[list[str]], web: Web | None = None) -> Traces:
    """Snapshots by the array alone, as many as there are groups; with ``web``, rounds are written between."""
    ids: list[str] = []
    for group in groups:
        request = volume_pb2.CreateSnapshotsRequest(volume_names=group)
        made = call(house.volumes.CreateSnapshots, request, peer=ARRAY, timeout_seconds=CALL_SECONDS)
        ids += [one.snapshot_id for one in made.snapshots]
        if web is not None:
            web.house.write_rounds(web.vm, least=2)
    copies = [house.volume_bytes(snapshot_id=snapshot_id) for snapshot_id in ids]
    for snapshot_id in ids:
        deleted = volume_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        call(house.volumes.DeleteSnapshot, deleted, peer=ARRAY, timeout_seconds=CALL_SECONDS)
    return read_traces(copies, scratch)


# -- the writer rests from here on ------------------------------------------------------------------


def test_an_incremental_has_what_the_guest_changed(web: Web) -> None:
    full = web.house.back_up_vm("web", full=True)
    web.run(
        "dd if=/dev/urandom of=/data1/fresh bs=1M count=3 2>/dev/null; "
        "rm /data2/00.txt; echo changed >/etc/motd"
    )
    digest = web.run("sha256sum </data1/fresh").split()[0]
    job = web.house.back_up_vm("web")
    assert web.house.backup(job.backup_id).incremental
    assert job.figures.spans_read < full.figures.spans_read / 2
    assert 3 << 20 <= job.figures.bytes_sent < 6 << 20
    assert web.house.backup(job.backup_id).level == FILESYSTEM, "no application was there to be told"
    assert hashlib.sha256(web.house.file(job.backup_id, "/fresh", "data1")[1]).hexdigest() == digest
    assert web.house.file(job.backup_id, "/etc/motd", "boot")[1] == b"changed\n"
    assert web.house.file(full.backup_id, "/00.txt", "data2")[1], "the older backup still has it"


def test_what_qemu_saw_change_is_all_that_changed(web: Web) -> None:
    """Since the last backup, by its dirty bitmaps; a backup that reads everything finds the same."""
    web.house.back_up_vm("web")
    web.run("dd if=/dev/urandom of=/data2/seen bs=1M count=2 2>/dev/null; rm /data1/fresh; sync")
    digest = web.run("sha256sum </data2/seen").split()[0]
    (job_id,) = web.house.start_backup("web", change_source=SUPPLIED)
    backup = web.house.backup(web.house.succeeded(job_id).backup_id)
    assert {disk.change_source for disk in backup.disks} == {SUPPLIED}
    assert hashlib.sha256(web.house.file(backup.backup_id, "/seen", "data2")[1]).hexdigest() == digest
    whole = web.house.backup(web.house.back_up_vm("web", full=True).backup_id)
    for seen, read in zip(_images(web.house, backup), _images(web.house, whole), strict=True):
        assert len(differing_spans(seen, read)) <= FREEZE_SPANS_MAX, "but what a freeze itself writes"


def test_what_qemu_saw_change_is_no_less_than_what_changed(web: Web) -> None:
    """Byte by byte, over writes, trims and journals of three file systems; and it is told at all."""
    host = web.house.of(host=HOST)
    snapshots: list[vm_pb2.VmSnapshot] = []
    held: list[list[bytearray]] = []
    for round_ in range(3):
        since = [
            vm_pb2.DiskState(disk_name=disk.disk_name, state=disk.state)
            for one in snapshots[:1]
            for disk in one.disks
        ]
        request = vm_pb2.CreateVmSnapshotRequest(vm_id=web.vm.vm_id, name=f"c{round_}", changes_since=since)
        made = host.ask("CreateVmSnapshot", request).snapshot
        held.append([web.house.volume_bytes(snapshot_id=disk.snapshot_id) for disk in made.disks])
        snapshots.append(made)
        web.run(
            f"dd if=/dev/urandom of=/data1/c{round_} bs=1M count=2 2>/dev/null; rm -f /data1/c0; sync; "
            f"fstrim /data1 2>/dev/null; echo {round_} >/data2/changed"
        )
    shares: list[float] = []
    for made, now in zip(snapshots[1:], held[1:], strict=True):
        for disk, old, new in zip(made.disks, held[0], now, strict=True):
            assert disk.HasField("changes")
            starts = np.frombuffer(disk.changes.offsets, "<u8").tolist()
            lengths = np.frombuffer(disk.changes.lengths, "<u8").tolist()
            differs = np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)
            seen = 0
            for start, length in zip(starts, lengths, strict=True):
                differs[start : start + length] = False
                seen += length
            assert not differs.any(), f"{disk.disk_name} changed where QEMU saw nothing"
            shares.append(seen / len(new))
    assert min(shares) < 0.5, "a trim is a write, but not of everything everywhere"
    assert max(shares) > 0
    for made in snapshots:
        host.ask("DeleteVmSnapshot", vm_pb2.DeleteVmSnapshotRequest(vm_snapshot_id=made.vm_snapshot_id))


def test_a_file_goes_back_into_the_running_guest(web: Web) -> None:
    digest = web.run("sha256sum </srv/files/33.bin")
    backup = web.house.back_up_vm("web")
    web.run("echo spoilt >/srv/files/33.bin")
    file, data = web.house.file(backup.backup_id, "/srv/files/33.bin", "boot")
    web.house.put(web.vm, "/srv/files/33.bin", data, mode=file.mode & 0o777)
    assert web.run("sha256sum </srv/files/33.bin") == digest


def test_a_restore_as_a_new_vm_boots_with_the_same_files(web: Web) -> None:
    files = web.run(FILES)
    assert len(files.splitlines()) > 90
    job = web.house.back_up_vm("web")
    restored = web.house.restore_vm(job.backup_id, as_name="web2")
    vm = web.house.all_vms()["web2"]
    assert vm.vm_id == restored.result_vm_id
    vm = web.house.boot(vm)
    try:
        text = web.house.console(vm)
        assert said(text, "uuid") == vm.config.uuid != web.vm.config.uuid
        assert said(text, "macs") == vm.config.networks[0].mac != web.vm.config.networks[0].mac
        assert web.house.run_in(vm, FILES) == files
    finally:
        web.house.delete_vm("web2")


def test_a_restore_in_place_brings_back_what_was_spoilt(web: Web) -> None:
    """Last: the guest of this module boots anew."""
    house, vm = web.house, web.vm
    files = web.run(FILES)
    job = house.back_up_vm("web")
    web.run("rm -r /srv/files; echo spoilt >/etc/motd; for f in /data1/*.bin; do echo spoilt >$f; done; sync")
    assert web.run(FILES) != files

    boots = house.boots(vm)
    done = house.restore_vm(job.backup_id, in_place=True, stop=True, start=True)
    assert done.result_vm_id == vm.vm_id
    house.wait_booted(vm, boots + 1)
    assert web.run(FILES) == files
    safety = [one.volume_name for one in house.array_snapshots()]
    assert sorted(safety) == sorted(f"web-{name}" for name in DISK_NAMES), "the spoilt state is kept"
