"""All five daemons as processes, several of a kind where asked, and what an operator does with them."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from arraylift import pki
from arraylift.errors import AlreadyExists, ArrayliftError, NotFound, PeerUnavailable
from arraylift.ids import random_id
from arraylift.rpc.channel import call, stream
from arraylift.v1 import backup_pb2 as pb
from arraylift.v1 import (
    backup_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    target_admin_pb2_grpc,
    virtual_center_pb2,
    virtual_center_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from backup_server.job_rules import safety_name
from tests.e2e.cluster import ARRAY, CALL_SECONDS, TARGET
from tests.e2e.daemon import Daemon, wait_until
from tests.e2e.disks import differing_spans
from tests.e2e.host_cluster import HOST, HostCluster
from tests.e2e.running import shown_when_failing

CENTER, SERVER = "vcenter1", "server1"
JOB_SECONDS = 60.0
PATIENCE_SECONDS = 30.0
SAFETY = safety_name("")
"""How the names of such snapshots begin."""
ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class Kept:
    """A backup, and the content of its VM's disks when it was made."""

    backup_id: str
    disks: dict[str, bytes]


class House(HostCluster):
    """A virtual center, a backup server, hosts, arrays and targets; ``of`` speaks to further ones."""

    def __init__(
        self,
        home: Path,
        *,
        kinds: int = 1,
        registered_hosts: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """``kinds`` hosts, arrays and targets. ``registered_hosts``: known to the server, for direct mode."""
        super().__init__(home)
        self._registered_hosts = registered_hosts
        numbers = range(2, kinds + 1)
        names = {
            "host": [HOST, *(f"host{number}" for number in numbers)],
            "array": [ARRAY, *(f"array{number}" for number in numbers)],
            "target": [TARGET, *(f"target{number}" for number in numbers)],
        }
        self.center = self._daemon("vcenter", "vcenter", CENTER)
        self.server = self._daemon(
            "backup_server",
            "server",
            SERVER,
            vcenter=self.center.address,
            patience_seconds=patience_seconds,
        )
        self.host = self._daemon("hostagent", "host", HOST, vcenter=self.center.address)
        self.hosts = {HOST: self.host}
        self.arrays, self.targets = {ARRAY: self.array}, {TARGET: self.target}
        for name in names["host"][1:]:
            self.hosts[name] = self._daemon("hostagent", "host", name, vcenter=self.center.address)
        for name in names["array"][1:]:
            self.arrays[name] = self._daemon("primary_array", "array", name)
        for name in names["target"][1:]:
            self.targets[name] = self._daemon("dedup_target", "target", name)
        self._operator = self.tls("operator", "admin")
        self._stubs: dict[str, dict[str, Any]] = {}
        for name, daemon in {**self.hosts, **self.arrays, **self.targets}.items():
            self._stubs[name] = _stubs(name, self.channel(daemon, self._operator))
        self.__dict__.update(self._stubs[HOST])
        self.backups = backup_pb2_grpc.BackupServiceStub(self.channel(self.server, self._operator))
        self.inventory = virtual_center_pb2_grpc.VirtualCenterServiceStub(
            self.channel(self.center, self._operator)
        )

    def _daemon(self, module: str, role: str, name: str, **settings: object) -> Daemon:
        if not (self.pki / f"{role}-{name}.pem").exists():
            pki.issue(str(self.pki), role, name)
        more = {"log_level": "info", **settings}
        return Daemon(module, name, home=self.home, pki=self.pki, settings=more)

    # -- life -----------------------------------------------------------------------------------

    @property
    def daemons(self) -> list[Daemon]:
        """All of them."""
        return [
            self.center,
            *self.arrays.values(),
            *self.targets.values(),
            *self.hosts.values(),
            self.server,
        ]

    def start(self) -> None:
        for daemon in self.daemons:
            daemon.launch()
        for daemon in self.daemons:
            daemon.wait_started()
        for kind, daemons in ((pb.PEER_KIND_ARRAY, self.arrays), (pb.PEER_KIND_TARGET, self.targets)):
            for name, daemon in daemons.items():
                self.add_peer(kind, name, daemon.address)
        if self._registered_hosts:
            for name, daemon in self.hosts.items():
                self.add_peer(pb.PEER_KIND_HOST, name, daemon.address)
        wait_until(lambda: self.hosts_alive() == sorted(self.hosts), "all hosts report to the center")

    def close(self) -> None:
        with ThreadPoolExecutor(len(self.daemons)) as pool:
            list(pool.map(Daemon.close, self.daemons))
        super().close()

    def logs(self) -> str:
        return "\n".join(f"==== {one.name}\n{one.log_tail()}" for one in self.daemons)

    def of(self, *, host: str = HOST, array: str = ARRAY, target: str = TARGET) -> Self:
        """The same house, whose calls go to these hosts, arrays and targets."""
        other = copy.copy(self)
        for name in (host, array, target):
            other.__dict__.update(self._stubs[name])
        other.array = self.arrays[array]
        return other

    def disk_on(self, array: str, name: str, volume: str) -> vm_pb2.Disk:
        """A disk of a VM to be made: an existing volume of that array."""
        return vm_pb2.Disk(
            name=name, array=array, array_address=self.arrays[array].address, volume_name=volume
        )

    # -- the virtual center ---------------------------------------------------------------------

    def ask_center(self, method: str, request: object) -> Any:
        return call(getattr(self.inventory, method), request, peer=CENTER, timeout_seconds=CALL_SECONDS)

    def hosts_alive(self) -> list[str]:
        """Hosts that report to the center, by name."""
        try:
            found = self.ask_center("ListHosts", virtual_center_pb2.ListHostsRequest()).hosts
        except PeerUnavailable:
            return []
        return sorted(host.name for host in found if host.state == virtual_center_pb2.HOST_STATE_ALIVE)

    def managed_vms(self) -> dict[str, vm_pb2.Vm]:
        """VMs that the center shows, by name."""
        request = virtual_center_pb2.ListManagedVmsRequest()
        return {vm.config.name: vm for vm in self.ask_center("ListManagedVms", request).vms}

    def wait_managed(self, *names: str) -> None:
        """Wait until the center shows these VMs."""
        wait_until(lambda: set(names) <= set(self.managed_vms()), f"the center shows {names}")

    def all_vms(self) -> dict[str, vm_pb2.Vm]:
        """VMs that the hosts have, by name."""
        found: dict[str, vm_pb2.Vm] = {}
        for name in self.hosts:
            for vm in self.of(host=name).ask("ListVms", vm_pb2.ListVmsRequest()).vms:
                assert vm.config.name not in found, f"two VMs {vm.config.name}"
                found[vm.config.name] = vm
        return found

    # -- jobs -----------------------------------------------------------------------------------

    def ask_server(self, method: str, request: object) -> Any:
        return call(getattr(self.backups, method), request, peer=SERVER, timeout_seconds=CALL_SECONDS)

    def add_peer(self, kind: int, name: str, address: str) -> None:
        request = pb.AddPeerRequest(kind=kind, name=name, address=address)  # type: ignore[arg-type]
        self.ask_server("AddPeer", request)

    def start_backup(self, *vms: str, **more: object) -> list[str]:
        """Ids of the jobs."""
        request = pb.StartBackupRequest(vms=vms, **more)  # type: ignore[arg-type]
        return list(self.ask_server("StartBackup", request).job_ids)

    def start_restore(self, backup_id: str, **more: object) -> str:
        """The job's id."""
        request = pb.StartRestoreRequest(backup_id=backup_id, **more)  # type: ignore[arg-type]
        made: str = self.ask_server("StartRestore", request).job_id
        return made

    def job(self, job_id: str) -> pb.Job:
        found: pb.Job = self.ask_server("GetJob", pb.GetJobRequest(job_id=job_id)).job
        return found

    def wait_job(self, job_id: str, *, seconds: float = JOB_SECONDS) -> pb.Job:
        """The job when it has ended; the server may be away meanwhile."""
        deadline = time.monotonic() + seconds
        job = pb.Job()
        while job.state not in ENDED:
            assert time.monotonic() < deadline, f"not ended within {seconds:.0f} s: {job}"
            with contextlib.suppress(PeerUnavailable):
                job = self.job(job_id)
            if job.state not in ENDED:
                time.sleep(0.05)
        return job

    def succeeded(self, job_id: str, *, seconds: float = JOB_SECONDS) -> pb.Job:
        """Likewise, and it must have succeeded."""
        job = self.wait_job(job_id, seconds=seconds)
        assert job.state == pb.JOB_STATE_SUCCEEDED, f"{job.error_text} {job.error} {job.steps}"
        return job

    def back_up_vm(self, vm: str, **more: object) -> pb.Job:
        """One backup, start to end."""
        (job_id,) = self.start_backup(vm, **more)
        return self.succeeded(job_id)

    def restore_vm(self, backup_id: str, **more: object) -> pb.Job:
        """One restore, start to end."""
        return self.succeeded(self.start_restore(backup_id, **more))

    def backup(self, backup_id: str) -> pb.Backup:
        found: pb.Backup = self.ask_server("GetBackup", pb.GetBackupRequest(backup_id=backup_id)).backup
        return found

    def backup_list(self, vm: str = "") -> list[pb.Backup]:
        """Newest first."""
        return list(self.ask_server("ListBackups", pb.ListBackupsRequest(vm=vm)).backups)

    def files(self, backup_id: str, path: str, disk: str = "") -> list[pb.BackupFile]:
        """A directory inside a backup."""
        request = pb.ListFilesRequest(backup_id=backup_id, disk_name=disk, path=path)
        return list(self.ask_server("ListFiles", request).files)

    def file(self, backup_id: str, path: str, disk: str = "") -> tuple[pb.BackupFile, bytes]:
        """A file out of a backup."""
        request = pb.GetFileRequest(backup_id=backup_id, disk_name=disk, path=path)
        pieces = list(
            stream(self.backups.GetFile, request, peer=SERVER, timeout_seconds=CALL_SECONDS),
        )
        return pieces[0].file, b"".join(piece.data for piece in pieces)

    # -- contents -------------------------------------------------------------------------------

    def vm_bytes(self, vm: vm_pb2.Vm) -> dict[str, bytes]:
        """What is on a VM's disks now, by disk."""
        return {
            disk.name: bytes(self.of(array=disk.array).volume_bytes(disk.volume_name))
            for disk in vm.config.disks
        }

    def keep(self, vm: vm_pb2.Vm, **more: object) -> Kept:
        """Back a VM up that nobody writes to."""
        disks = self.vm_bytes(vm)
        return Kept(self.back_up_vm(vm.config.name, **more).backup_id, disks)

    def check_images(self, kept: Kept) -> None:
        """Every byte of a backup's images, read at its target, is what it was."""
        backup = self.backup(kept.backup_id)
        at = self.of(target=backup.target)
        assert [disk.disk_name for disk in backup.disks] == list(kept.disks)
        for disk in backup.disks:
            assert differing_spans(at.image_bytes(disk.image_id), kept.disks[disk.disk_name]) == []

    def check_restore(self, kept: Kept, *, as_name: str, **more: object) -> vm_pb2.Vm:
        """Restore a backup as a new VM; every byte of its disks is what it was."""
        job = self.restore_vm(kept.backup_id, as_name=as_name, **more)
        vm = self.all_vms()[as_name]
        assert vm.vm_id == job.result_vm_id
        self.check_vm(vm, kept.disks)
        return vm

    def check_vm(self, vm: vm_pb2.Vm, disks: dict[str, bytes]) -> None:
        """Every byte of a VM's disks."""
        found = self.vm_bytes(vm)
        assert list(found) == list(disks)
        for name, content in disks.items():
            assert differing_spans(found[name], content) == [], f"disk {name} of {vm.config.name}"

    def power(self, name: str) -> int:
        """Of a VM, as its host says."""
        return int(self.all_vms()[name].power)

    def check_safeties(self, job: pb.Job, disks: dict[str, bytes]) -> None:
        """The job names snapshots that hold these bytes, and there are no others of that kind."""
        assert {one.disk_name for one in job.safeties} == set(disks)
        for one in job.safeties:
            content = self.of(array=one.array).volume_bytes(snapshot_id=one.snapshot_id)
            assert differing_spans(content, disks[one.disk_name]) == []
        found = {one.snapshot_id for array in self.arrays for one in self.safeties_on(array)}
        assert found == {one.snapshot_id for one in job.safeties}

    def safeties_on(self, array: str) -> list[volume_pb2.Snapshot]:
        """What restores in place left there."""
        return [one for one in self.of(array=array).array_snapshots() if is_safety(one)]

    def drop_safeties(self) -> None:
        """Delete all of them."""
        for array in self.arrays:
            at = self.of(array=array)
            for one in self.safeties_on(array):
                request = volume_pb2.DeleteSnapshotRequest(snapshot_id=one.snapshot_id)
                call(at.volumes.DeleteSnapshot, request, peer=array, timeout_seconds=CALL_SECONDS)

    def delete_vm(self, name: str) -> None:
        """With its volumes."""
        vm = self.all_vms()[name]
        at = self.of(host=vm.host)
        at.ask("PowerOff", vm_pb2.PowerOffRequest(vm_id=vm.vm_id, force=True))
        at.ask("DeleteVm", vm_pb2.DeleteVmRequest(vm_id=vm.vm_id))

    # -- what may be left -----------------------------------------------------------------------

    def leftovers(self, *, volumes: Sequence[str] = ()) -> list[str]:
        """VM and volume snapshots, open transfers, images in no backup, volumes of no VM but ``volumes``."""
        vms = self.all_vms()
        left = [
            f"VM snapshot {one.name} on {host}"
            for host in self.hosts
            for one in self.of(host=host).ask("ListVmSnapshots", vm_pb2.ListVmSnapshotsRequest()).snapshots
        ]
        owned = {(disk.array, disk.volume_name) for vm in vms.values() for disk in vm.config.disks}
        for array in self.arrays:
            at = self.of(array=array)
            left += [
                f"snapshot {one.snapshot_id} on {array}" for one in at.array_snapshots() if not is_safety(one)
            ]
            names = {(array, name) for name in at.volume_names()} - owned - {(array, one) for one in volumes}
            left += [f"volume {name} on {array}" for _, name in sorted(names)]
        for target in self.targets:
            at = self.of(target=target)
            left += [f"open transfer on {target}"] * at.stats().open_transfer_count
            request = image_pb2.ListBackupManifestsRequest()
            named = {
                image.image_id
                for manifest in call(at.images.ListBackupManifests, request, peer=target).manifests
                for image in manifest.images
            }
            left += [f"image {one.name} on {target}" for one in at.image_list() if one.image_id not in named]
        return left

    def restore_is_open(
        self, volume_name: str, *, array: str = ARRAY, target: str = TARGET, group: bool = False
    ) -> bool:
        """Some restore holds that name, or with ``group`` that volume: granted, or with a draft."""
        at = self.of(array=array)
        transfer_id = random_id()
        request = volume_pb2.PrepareRestoreRequest(
            transfer_id=transfer_id, target=target, volume_name=volume_name, group_id=random_id() * group
        )
        try:
            call(at.volumes.PrepareRestore, request, peer=array, timeout_seconds=CALL_SECONDS)
        except AlreadyExists:
            return True
        revoke = volume_pb2.RevokeRestoreRequest(transfer_id=transfer_id)
        call(at.volumes.RevokeRestore, revoke, peer=array, timeout_seconds=CALL_SECONDS)
        return False

    def wait_nothing_left(self, *, volumes: Sequence[str] = (), seconds: float = JOB_SECONDS) -> None:
        """Wait for a state without leftovers; says which there are."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                left = self.leftovers(volumes=volumes)
            except (PeerUnavailable, NotFound) as error:
                left = [str(error)]
            if not left:
                return
            assert time.monotonic() < deadline, f"left after {seconds:.0f} s: {left}"
            time.sleep(0.1)


def is_safety(snapshot: volume_pb2.Snapshot) -> bool:
    """It keeps what a volume held before a restore in place: that stays."""
    return snapshot.name.startswith(SAFETY)


def _stubs(name: str, channel: grpc.Channel) -> dict[str, Any]:
    """Attributes of a house that are calls to this daemon."""
    if name.startswith("host"):
        return {"vms": vm_pb2_grpc.VmServiceStub(channel)}
    if name.startswith("array"):
        return {"volumes": volume_pb2_grpc.VolumeServiceStub(channel)}
    return {
        "images": image_pb2_grpc.ImageServiceStub(channel),
        "admin": target_admin_pb2_grpc.TargetAdminServiceStub(channel),
    }


@contextlib.contextmanager
def running_house(
    home: Path,
    *,
    kinds: int = 1,
    registered_hosts: bool = False,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[House]:
    """A house that is started, and ended whatever happens; a failing test shows its logs."""
    house = House(home, kinds=kinds, registered_hosts=registered_hosts, patience_seconds=patience_seconds)
    with shown_when_failing(house):
        try:
            house.start()
            yield house
        finally:
            house.close()


def refusal(work: Callable[[], object]) -> ArrayliftError:
    """The error that this call must end with."""
    try:
        work()
    except ArrayliftError as error:
        return error
    raise AssertionError("it was not refused")
