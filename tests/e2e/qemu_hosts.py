"""A host agent with the driver qemu beside a real array, and a look at what it leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arraylift.errors import ArrayliftError, PeerUnavailable
from arraylift.ids import random_id
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import vm_pb2 as pb
from arraylift.v1 import volume_pb2
from tests.e2e.cluster import ARRAY
from tests.e2e.daemon import free_port, wait_until
from tests.e2e.host_cluster import HostCluster
from tests.e2e.running import shown_when_failing
from tests.programs import need

GUEST_BYTES = 64 * MIB


class QemuHosts(HostCluster):
    """One host; its guests have empty disks and find nothing to start from, which takes no time."""

    def __init__(self, home: Path, **settings: object) -> None:
        super().__init__(home)
        self.nbd_port = free_port()
        self.configure("array", nbd_listen=f"127.0.0.1:{self.nbd_port}")
        self.configure("host", driver="qemu", **settings)

    def configure(self, which: str, **settings: object) -> None:
        daemon = {"array": self.array, "host": self.host}[which]
        lines = daemon.config_path.read_text().splitlines()
        kept = [line for line in lines if line.split(" = ")[0] not in settings]
        told = [
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
            for key, value in settings.items()
        ]
        daemon.config_path.write_text("\n".join([*kept, *told]) + "\n")

    def close(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()

    # -- looks ----------------------------------------------------------------------------------

    def processes(self, vm_id: str = "") -> list[int]:
        """QEMUs that hold a lock file of this host."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with suppress(OSError):
                    if "qemu-system" not in Path(f"/proc/{name}/cmdline").read_text():
                        continue
                    links = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
                    if any(link.startswith(f"{self.host.state}/qemu/{vm_id}") for link in links):
                        found.append(int(name))
        return found

    def exports(self) -> list[volume_pb2.Export]:
        return list(call(self.volumes.ListExports, volume_pb2.ListExportsRequest(), peer=ARRAY).exports)

    def _can_list(self) -> bool:
        with suppress(ArrayliftError):
            self.exports()
            return True
        return False

    def wait_array(self) -> None:
        """Until our connection to it is back."""
        wait_until(self._can_list, "the array answers")

    def vm(self, vm_id: str) -> pb.Vm:
        found: pb.Vm = self.ask("GetVm", pb.GetVmRequest(vm_id=vm_id)).vm
        return found

    def is_on(self, vm_id: str) -> bool:
        return self.vm(vm_id).power == pb.POWER_STATE_ON

    def agrees(self, vm_id: str) -> bool:
        """Record, process and exports say the same."""
        vm, processes, exports = self.vm(vm_id), self.processes(vm_id), self.exports()
        mine = [one for one in exports if vm_id in one.name]
        if vm.power == pb.POWER_STATE_ON:
            return len(processes) == 1 and {one.volume_name for one in mine} == {
                disk.volume_name for disk in vm.config.disks
            }
        return not processes and not mine

    def wait_agreed(self, vm_id: str) -> None:
        wait_until(lambda: self.agrees(vm_id), "record, process and exports agree", seconds=30)

    # -- VMs ------------------------------------------------------------------------------------

    def make(
        self, name: str = "web1", *, disks: int = 2, firmware: str = "bios", network: str = "lan"
    ) -> str:
        """A VM that is off; returns its id."""
        config = pb.VmConfig(
            name=name,
            cpus=1,
            memory_bytes=GUEST_BYTES,
            disks=[self.disk(f"d{number}", size_bytes=MIB) for number in range(disks)],
            networks=[pb.NetworkInterface(network=network)],
            firmware=firmware,
        )
        return str(self.ask("CreateVm", pb.CreateVmRequest(vm_id=random_id(), config=config)).vm.vm_id)

    def on(self, vm_id: str) -> None:
        self.ask("PowerOn", pb.PowerOnRequest(vm_id=vm_id))

    def on_when_it_can(self, vm_id: str) -> None:
        """As soon as the host's own connection to the array is back."""

        def started() -> bool:
            with suppress(PeerUnavailable):
                self.on(vm_id)
                return True
            return False

        wait_until(started, "the VM starts", seconds=30)

    def off(self, vm_id: str) -> None:
        """By force: nothing in these guests hears the power button."""
        self.ask("PowerOff", pb.PowerOffRequest(vm_id=vm_id, force=True))

    def revive(self) -> None:
        """Start the host agent again after it died, and wait for our connection."""
        self.host.wait_dead()
        self.arm_host("")


@contextmanager
def running_hosts(home: Path, **settings: object) -> Iterator[QemuHosts]:
    need("qemu-system-x86_64")
    hosts = QemuHosts(home, **settings)
    with shown_when_failing(hosts):
        try:
            hosts.start()
            yield hosts
        finally:
            hosts.close()
