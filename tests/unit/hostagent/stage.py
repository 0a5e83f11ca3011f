"""A host agent's use cases over fake arrays, with a clock and a guest that tests turn."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from arraylift.durable import RealFiles
from arraylift.errors import NotFound, WrongState
from arraylift.ids import VmId, random_id
from arraylift.rpc.channels import Channels
from arraylift.sizes import MIB
from arraylift.vm.types import ConsistencyLevel, Disk, NetworkInterface, VmConfig
from hostagent.change_tracking import ChangeTracker
from hostagent.foreign_disks import ForeignDisks
from hostagent.live_move import LiveMover
from hostagent.locks import KeyedLocks
from hostagent.machines import Machines
from hostagent.peers import CHANNELS_MAX, ArrayVolumes
from hostagent.vm_snapshots import VmSnapshots
from hostagent.vm_store import VmStore
from hostagent.vm_types import GuestFile, VmRecord
from tests.unit.hostagent.fake_array import FakeArray
from tests.wire.stage import House


class ManualClock:
    """Stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000


class FakeDriver:
    """A guest that is a dictionary of files; keeps the driver's contract."""

    name = "fake"

    def __init__(self) -> None:
        self.tracker: ChangeTracker | None = None
        self.foreign: ForeignDisks | None = None
        self.mover: LiveMover | None = None
        self.kept: ConsistencyLevel | None = None
        self.level = ConsistencyLevel.FILESYSTEM
        self.freeze_error: Exception | None = None
        self.running: set[VmId] = set()
        self.frozen: set[VmId] = set()
        self.freezes = self.thaws = 0
        self.files: dict[tuple[VmId, str], bytes] = {}
        self.detached: set[tuple[VmId, str]] = set()
        self.variables: dict[VmId, bytes] = {}
        self.released: list[VmId] = []

    def resume(self, vm: VmRecord) -> None:
        self.running.add(vm.vm_id)
        self.frozen.discard(vm.vm_id)

    start = resume

    def sweep(self, *, running: Collection[VmId], known: Collection[VmId]) -> None:
        self.running &= set(running)

    def stop(self, vm: VmRecord, *, grace_seconds: float, force: bool) -> None:
        self.running.discard(vm.vm_id)

    def is_running(self, vm_id: VmId) -> bool:
        return vm_id in self.running

    def freeze(self, vm: VmRecord, *, timeout_seconds: float) -> ConsistencyLevel:
        self.freezes += 1
        self.frozen.add(vm.vm_id)
        if self.freeze_error is not None:
            raise self.freeze_error
        return self.level

    def thaw(self, vm_id: VmId) -> None:
        self.thaws += 1
        self.frozen.discard(vm_id)

    def kept_level(self, vm: VmRecord, reached: ConsistencyLevel) -> ConsistencyLevel:
        assert vm.vm_id not in self.frozen
        return reached if self.kept is None else self.kept

    def attach(self, vm: VmRecord, disk: Disk) -> None:
        self.detached.discard((vm.vm_id, disk.name))

    def detach(self, vm: VmRecord, disk: Disk) -> None:
        self.detached.add((vm.vm_id, disk.name))

    def firmware_variables(self, vm: VmRecord) -> bytes:
        return self.variables.get(vm.vm_id, b"")

    def release(self, vm: VmRecord) -> None:
        assert vm.vm_id not in self.running
        self.released.append(vm.vm_id)

    def forget(self, vm: VmRecord) -> None:
        self.files = {key: data for key, data in self.files.items() if key[0] != vm.vm_id}

    def put_file(self, vm: VmRecord, disk: Disk, path: str, *, source: str, mode: int) -> GuestFile:
        self._check(vm, disk)
        self.files[vm.vm_id, path] = Path(source).read_bytes()
        return self._file(vm, path)

    def get_file(self, vm: VmRecord, disk: Disk, path: str, *, into: str) -> GuestFile:
        self._check(vm, disk)
        found = self._file(vm, path)
        Path(into).write_bytes(self.files[vm.vm_id, path])
        return found

    def list_files(self, vm: VmRecord, disk: Disk, path: str) -> list[GuestFile]:
        self._check(vm, disk)
        return [self._file(vm, name) for owner, name in sorted(self.files) if owner == vm.vm_id]

    def remove_file(self, vm: VmRecord, disk: Disk, path: str) -> None:
        self._check(vm, disk)
        self._file(vm, path)
        del self.files[vm.vm_id, path]

    def _check(self, vm: VmRecord, disk: Disk) -> None:
        if vm.vm_id not in self.running:
            raise WrongState("off")
        if (vm.vm_id, disk.name) in self.detached:
            raise NotFound("no such disk any more")

    def _file(self, vm: VmRecord, path: str) -> GuestFile:
        if (vm.vm_id, path) not in self.files:
            raise NotFound(path)
        return GuestFile(path, len(self.files[vm.vm_id, path]), 0o100644, 0, 0, 0)


class Stage:
    """Two arrays, one host. ``reopen`` is what a restart is."""

    def __init__(self, state: Path, house: House) -> None:
        self.state = str(state / "host")
        self.clock = ManualClock()
        self.driver = FakeDriver()
        self.arrays = [FakeArray(house, "a1"), FakeArray(house, "a2")]
        self.channels = Channels(house.identity("host", "host1"), channels_max=CHANNELS_MAX)
        self.volumes = ArrayVolumes(self.channels, call_seconds=2.0)
        self.changes = 0
        self._open()

    def _open(self) -> None:
        locks = KeyedLocks("VM")
        self.store = VmStore(RealFiles(), self.state)
        common = (self.store, self.driver, self.volumes, locks)
        self.machines = Machines(*common, clock=self.clock, changed=self._count)
        self.snapshots = VmSnapshots(*common, clock=self.clock)

    def _count(self) -> None:
        self.changes += 1

    def reopen(self) -> None:
        self.snapshots.close()
        self.store.close()
        self._open()

    def close(self) -> None:
        self.snapshots.close()
        self.channels.close()
        self.store.close()
        for array in self.arrays:
            array.close()

    # -- requests -------------------------------------------------------------------------------

    def disk(self, name: str, array: int = 0, *, volume: str = "", size_bytes: int = MIB) -> Disk:
        one = self.arrays[array]
        return Disk(name, one.name, one.address, volume, 0 if volume else size_bytes)

    def vm(self, name: str = "web1", *disks: Disk, on: bool = True) -> VmRecord:
        chosen = disks or (self.disk("a", 0), self.disk("b", 1))
        vm = self.machines.create(VmId(random_id()), config(name, *chosen))
        return self.machines.power_on(vm.vm_id) if on else vm

    def records(self) -> int:
        return len(self.store.snapshots.all())

    def labels(self) -> list[str]:
        return [label for array in self.arrays for label in array.labels()]


def config(name: str, *disks: Disk) -> VmConfig:
    return VmConfig(name, "", 1, MIB, disks, (NetworkInterface("", "lan"),), (), "")


@contextmanager
def staged(state: Path, house: House) -> Iterator[Stage]:
    stage = Stage(state, house)
    try:
        yield stage
    finally:
        stage.close()
