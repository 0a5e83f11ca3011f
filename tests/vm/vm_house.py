"""Five daemons whose hosts run real guests under QEMU, and what tests ask of those guests."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from arraylift.errors import NotFound
from arraylift.guest.build import Guest
from arraylift.ids import random_id
from arraylift.sizes import MIB
from arraylift.v1 import vm_pb2
from tests.e2e.daemon import Daemon, free_port, wait_until
from tests.e2e.host_cluster import HOST
from tests.e2e.house import House
from tests.e2e.running import shown_when_failing
from tests.vm.plain_qemu import BOOT_SECONDS

MEMORY_BYTES = 256 * MIB
TASK_SECONDS = 60.0
DISK_NAMES = ("boot", "data1", "data2")
_PIECE_BYTES = 1 << 20

FILES = "find /srv /data1 /data2 /etc -type f ! -path '*/writer/*' ! -name writer | sort | xargs sha256sum"
"""In a guest: a line for each file that nobody writes to."""


class VmHouse(House):
    """Hosts with the driver qemu; arrays keep their NBD port over a restart."""

    def __init__(self, home: Path, *, kinds: int = 1) -> None:
        super().__init__(home, kinds=kinds, registered_hosts=True)
        for array in self.arrays.values():
            text = array.config_path.read_text()
            array.config_path.write_text(text.replace('"127.0.0.1:0"', f'"127.0.0.1:{free_port()}"'))
        self._numbers = itertools.count(1)

    def _daemon(self, module: str, role: str, name: str, **settings: object) -> Daemon:
        more = {"driver": "qemu"} if role == "host" else {}
        return super()._daemon(module, role, name, **settings, **more)

    def close(self) -> None:
        """The guests outlive their host agents, so they go first."""
        try:
            for name in self.hosts:
                self._end_guests(name)
        finally:
            super().close()

    def _end_guests(self, host: str) -> None:
        daemon = self.hosts[host]
        if not daemon.running:
            daemon.start()
        at = self.of(host=host)
        wait_until(at._hears, f"{host} answers on our connection")
        for vm in at.ask("ListVms", vm_pb2.ListVmsRequest()).vms:
            at.ask("PowerOff", vm_pb2.PowerOffRequest(vm_id=vm.vm_id, force=True))

    def logs(self) -> str:
        consoles = [
            f"==== {path.relative_to(self.home)}\n{_tail(path)}"
            for name in self.hosts
            for path in sorted(self.hosts[name].state.glob("qemu/*/*.log"))
        ]
        return "\n".join([super().logs(), *consoles])

    # -- guests ---------------------------------------------------------------------------------

    def make_guest(self, name: str, guest: Guest, *, firmware: str = "bios", host: str = HOST) -> vm_pb2.Vm:
        """A VM that is off, with the guest's three disks in volumes of the array."""
        disks = []
        for disk, image in zip(DISK_NAMES, guest.disks, strict=True):
            volume = f"{name}-{disk}"
            self.import_pieces(volume, image.stat().st_size, _pieces(image))
            disks.append(self.disk(disk, volume=volume))
        config = vm_pb2.VmConfig(
            name=name,
            cpus=1,
            memory_bytes=MEMORY_BYTES,
            disks=disks,
            networks=[vm_pb2.NetworkInterface(network="lan")],
            firmware=firmware,
        )
        at = self.of(host=host)
        made: vm_pb2.Vm = at.ask("CreateVm", vm_pb2.CreateVmRequest(vm_id=random_id(), config=config)).vm
        self.wait_managed(name)
        return made

    def boot(self, vm: vm_pb2.Vm) -> vm_pb2.Vm:
        """Start it and wait until its agent answers."""
        boots = self.boots(vm)
        at = self.of(host=vm.host)
        on: vm_pb2.Vm = at.ask("PowerOn", vm_pb2.PowerOnRequest(vm_id=vm.vm_id), seconds=BOOT_SECONDS).vm
        self.wait_booted(on, boots + 1)
        return on

    def boots(self, vm: vm_pb2.Vm) -> int:
        """How often it has booted on its host, to its agent."""
        return self.console(vm).count("GUEST-READY")

    def wait_booted(self, vm: vm_pb2.Vm, boots: int) -> None:
        """Wait until it has booted so often."""
        name = vm.config.name
        wait_until(lambda: self.boots(vm) >= boots, f"{name} boots", seconds=BOOT_SECONDS)

    def power_off(self, vm: vm_pb2.Vm, *, force: bool = False) -> vm_pb2.Vm:
        request = vm_pb2.PowerOffRequest(vm_id=vm.vm_id, grace_seconds=60, force=force)
        off: vm_pb2.Vm = self.of(host=vm.host).ask("PowerOff", request, seconds=90).vm
        return off

    def console_path(self, vm: vm_pb2.Vm) -> Path:
        return self.hosts[vm.host].state / "qemu" / vm.vm_id / "console.log"

    def console(self, vm: vm_pb2.Vm) -> str:
        """What the guest has said, over all its starts on its host."""
        path = self.console_path(vm)
        return path.read_text(errors="replace") if path.exists() else ""

    def run_in(self, vm: vm_pb2.Vm, script: str, *, seconds: float = TASK_SECONDS) -> str:
        """Have the guest run a script, which must succeed; returns what it said."""
        at, name = self.of(host=vm.host), f"/run/tasks/task{next(self._numbers)}"
        at.put(vm, f"{name}.sh", script.encode())
        at.put(vm, f"{name}.go", b"")
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(NotFound):
                status = at.get(vm, f"{name}.status")
                break
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {script}"
            time.sleep(0.1)
        said = at.get(vm, f"{name}.out").decode()
        assert status == b"0\n", f"{script}: {status!r} {said}"
        return said

    def write_rounds(self, vm: vm_pb2.Vm, *, least: int) -> list[int]:
        """Wait until the guest's writer has done so many rounds more; returns where its disks stand."""
        return [int(line) for line in self.run_in(vm, f"writer more {least}").split()]


@contextlib.contextmanager
def running_vm_house(home: Path, *, kinds: int = 1) -> Iterator[VmHouse]:
    """A house that is started, and ended with all its guests; a failing test shows logs and consoles."""
    house = VmHouse(home, kinds=kinds)
    with shown_when_failing(house):
        try:
            house.start()
            yield house
        finally:
            house.close()


def _pieces(image: Path) -> Iterator[tuple[int, bytes]]:
    with image.open("rb") as file:
        offset = 0
        while data := file.read(_PIECE_BYTES):
            if data.count(0) != len(data):
                yield offset, data
            offset += len(data)


def _tail(path: Path, lines: int = 40) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def said(text: str, key: str) -> str:
    """A value of the guest's last GUEST-BOOTED line."""
    line = next(line for line in reversed(text.splitlines()) if "GUEST-BOOTED" in line)
    words: Sequence[str] = line.split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))
