"""A host agent beside a real array, and what an operator does with VMs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arraylift import pki
from arraylift.errors import ArrayliftError
from arraylift.ids import random_id
from arraylift.rpc.channel import call, connect, stream
from arraylift.v1 import vm_pb2 as pb
from arraylift.v1 import vm_pb2_grpc, volume_pb2
from hostagent.debugfs import find_program
from tests.e2e.cluster import ARRAY, CALL_SECONDS, Cluster
from tests.e2e.daemon import Daemon, wait_until

HOST = "host1"


class HostCluster(Cluster):
    """An array and a host agent; the target is not started. ``settings``: more of the host's."""

    def __init__(self, home: Path, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(home)
        pki.issue(str(self.pki), "host", HOST)
        self.host = Daemon(
            "hostagent", HOST, home=home, pki=self.pki, settings={"vcenter": "", **(settings or {})}
        )
        self._host_channel = connect(self.host.address, pki.load(str(self.pki), "operator", "admin"), "host")
        self.vms = vm_pb2_grpc.VmServiceStub(self._host_channel)

    def start(self) -> None:
        self.array.launch()
        self.host.start()
        self.array.wait_started()

    def close(self) -> None:
        self._host_channel.close()
        self.host.close()
        super().close()

    def logs(self) -> str:
        return f"{super().logs()}\n==== {HOST}\n{self.host.log_tail()}"

    def arm_host(self, failpoints: str) -> None:
        """Start the host agent, and wait until our connection is back: the next call is to reach it."""
        self.host.start(failpoints=failpoints)
        wait_until(lambda: not self.host.running or self._hears(), f"{HOST} answers")

    def _hears(self) -> bool:
        with contextlib.suppress(ArrayliftError):
            self.ask("ListVms", pb.ListVmsRequest())
            return True
        return False

    # -- VMs ------------------------------------------------------------------------------------

    def disk(self, name: str, *, volume: str = "", size_bytes: int = 0) -> pb.Disk:
        return pb.Disk(
            name=name,
            array=ARRAY,
            array_address=self.array.address,
            volume_name=volume,
            size_bytes=size_bytes,
        )

    def create_vm(self, name: str, *disks: pb.Disk, vm_id: str = "", on: bool = False) -> pb.Vm:
        config = pb.VmConfig(name=name, cpus=2, memory_bytes=1 << 30, disks=disks)
        vm: pb.Vm = self.ask("CreateVm", pb.CreateVmRequest(vm_id=vm_id or random_id(), config=config)).vm
        started: pb.Vm = self.ask("PowerOn", pb.PowerOnRequest(vm_id=vm.vm_id)).vm if on else vm
        return started

    def ask(self, method: str, request: object, *, seconds: float = CALL_SECONDS) -> Any:
        """One call that answers once."""
        return call(getattr(self.vms, method), request, peer=HOST, timeout_seconds=seconds)

    def snapshot_vm(self, vm: pb.Vm, name: str = "job", **more: object) -> pb.VmSnapshot:
        request = pb.CreateVmSnapshotRequest(vm_id=vm.vm_id, name=name, **more)  # type: ignore[arg-type]
        made: pb.VmSnapshot = self.ask("CreateVmSnapshot", request).snapshot
        return made

    def array_snapshots(self) -> list[volume_pb2.Snapshot]:
        """All of the array's."""
        request = volume_pb2.ListSnapshotsRequest()
        return list(call(self.volumes.ListSnapshots, request, peer=ARRAY).snapshots)

    # -- guest files ----------------------------------------------------------------------------

    def put(self, vm: pb.Vm, path: str, data: bytes, *, mode: int = 0) -> pb.GuestFile:
        header = pb.GuestPath(vm_id=vm.vm_id, path=path)

        def messages() -> Iterator[pb.PutGuestFileRequest]:
            yield pb.PutGuestFileRequest(header=header, mode=mode)
            for start in range(0, len(data), 1 << 20):
                yield pb.PutGuestFileRequest(data=data[start : start + (1 << 20)])
            yield pb.PutGuestFileRequest(last=True)

        made: pb.GuestFile = self.ask("PutGuestFile", messages()).file
        return made

    def get(self, vm: pb.Vm, path: str) -> bytes:
        request = pb.GetGuestFileRequest(file=pb.GuestPath(vm_id=vm.vm_id, path=path))
        pieces = list(stream(self.vms.GetGuestFile, request, peer=HOST, timeout_seconds=CALL_SECONDS))
        data = b"".join(piece.data for piece in pieces)
        assert pieces[0].file.size_bytes == len(data)
        return data

    def entries(self, vm: pb.Vm, path: str) -> list[pb.GuestFile]:
        request = pb.ListGuestFilesRequest(directory=pb.GuestPath(vm_id=vm.vm_id, path=path))
        return list(self.ask("ListGuestFiles", request).files)

    def remove(self, vm: pb.Vm, path: str) -> None:
        request = pb.RemoveGuestFileRequest(file=pb.GuestPath(vm_id=vm.vm_id, path=path))
        self.ask("RemoveGuestFile", request)


def make_ext4(path: Path, size_bytes: int, files: dict[str, bytes]) -> bytearray:
    """The bytes of a fresh ext4 file system with these files in its root."""
    source = path.with_suffix(".root")
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    with path.open("wb") as image:
        image.truncate(size_bytes)
    command = [find_program("mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(source), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return bytearray(path.read_bytes())


def fsck(path: Path, disk: bytes | bytearray) -> None:
    """Fail unless e2fsck finds nothing to mend."""
    path.write_bytes(disk)
    done = subprocess.run(
        [find_program("e2fsck"), "-fn", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
