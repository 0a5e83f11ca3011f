"""Moves of running guests over QEMUs in memory: what each step does, again and after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arraylift.errors import DeadlineExceeded, NotFound, Overloaded, PeerUnavailable, WrongState
from arraylift.ids import MigrationId, VmId
from arraylift.sizes import MIB
from arraylift.vm.types import Disk, VmConfig
from hostagent.qemu import live_move
from hostagent.qemu.live_move import MovePlaces, QemuMover
from hostagent.qemu.vmm import Vmm
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.disk import FakeFiles
from tests.fakes.qemu import FakeProcesses, FakeQemu, FakeQemuMonitor, World

ID, OTHER = MigrationId("a" * 32), MigrationId("b" * 32)
DISKS = tuple(Disk(name, "a1", "a1:1", f"volume {name}", MIB) for name in ("root", "data"))
VM = VmRecord(VmId("1" * 32), VmConfig("web1", "u", 1, MIB, DISKS), VmState.ON, 1, "", ())


class Side:
    """One host; ``reopen`` is a restart of its agent."""

    def __init__(self, world: World, name: str, ports: range = range(7480, 7482)) -> None:
        self.world, self.name, self.ports = world, name, ports
        self.files = FakeFiles()
        self.left: list[VmId] = []
        self.reopen()

    def reopen(self) -> None:
        self.files = self.files.after_kill()
        processes = FakeProcesses(self.world)
        self.vmm = Vmm(
            self.files,
            f"/{self.name}",
            host=self.name,
            volumes=self.world,  # type: ignore[arg-type]
            launcher=processes,  # type: ignore[arg-type]
            processes=processes,  # type: ignore[arg-type]
            firmware=lambda _: b"",
            monitor_of=lambda path, _: FakeQemuMonitor(self.world, path),  # type: ignore[arg-type, return-value]
        )
        places = MovePlaces("0.0.0.0", self.name, self.ports, lambda host: f"{host}.host")
        self.mover = QemuMover(self.vmm, places, left=self.left.append)
        self.vmm.sweep(running=[VM.vm_id], known=[VM.vm_id])

    @property
    def lock_path(self) -> str:
        return f"/{self.name}/{VM.vm_id}/lock"

    @property
    def qemu(self) -> FakeQemu | None:
        return self.world.running.get(self.lock_path)

    def exports(self) -> int:
        return sum(export.split(".")[1] == self.name for _, export in self.world.exports)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_move, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(live_move, "END_SECONDS", 0.05)


@pytest.fixture
def sides() -> tuple[Side, Side]:
    world = World()
    old, new = Side(world, "old"), Side(world, "new")
    old.vmm.start(VM)
    return old, new


def sending(side: Side, address: str, migration_id: MigrationId = ID, seconds_max: int = 60):  # type: ignore[no-untyped-def]
    return side.mover.send(VM, migration_id, address, downtime_ms_max=500, seconds_max=seconds_max)


def moved(old: Side, new: Side, migration_id: MigrationId = ID) -> None:
    address = new.mover.expect(VM, migration_id)
    steps = sending(old, address, migration_id)
    assert next(steps).bytes_left == 9
    old.world.finish_sending(old.lock_path)
    list(steps)
    assert old.mover.is_sent(VM, migration_id)
    new.mover.accept(VM, migration_id)
    old.mover.let_go(VM, migration_id)


def test_it_is_on_one_host_after_the_other(sides: tuple[Side, Side]) -> None:
    old, new = sides
    for here, there, migration_id in ((old, new, ID), (new, old, OTHER)):
        moved(here, there, migration_id)
        assert here.qemu is None
        assert here.exports() == 0
        assert there.vmm.is_running(VM.vm_id)
        assert there.exports() == len(DISKS)
        assert here.left[-1] == VM.vm_id
        assert here.mover.downtime_ns(VM, migration_id) == 0, "forgotten with the guest"


def test_every_step_again_and_by_another_process_has_the_same_effect(sides: tuple[Side, Side]) -> None:
    old, new = sides
    address = new.mover.expect(VM, ID)
    waiting = new.qemu
    new.reopen()
    assert new.mover.expect(VM, ID) == address
    assert new.qemu is waiting, "one that waits is kept"
    assert not new.vmm.is_running(VM.vm_id)
    steps = sending(old, address)
    next(steps)
    old.reopen()
    again = sending(old, address)
    next(again)
    old.world.finish_sending(old.lock_path)
    for _ in range(2):
        list(again)
        assert old.mover.is_sent(VM, ID)
        assert old.mover.downtime_ns(VM, ID) == 7_000_000
        assert not old.vmm.is_running(VM.vm_id)
        old.reopen()
        again = sending(old, address)
    old.vmm.reap()
    assert old.qemu is not None
    assert old.qemu.status == "postmigrate", "only take_back lets it run"
    for _ in range(2):
        new.mover.accept(VM, ID)
        assert new.qemu is not None
        assert new.qemu.status == "running"
        new.reopen()
        assert new.vmm.is_running(VM.vm_id)
    for _ in range(2):
        old.mover.let_go(VM, ID)
        assert old.qemu is None


def test_completed_of_another_time_is_not_sent(sides: tuple[Side, Side]) -> None:
    old, new = sides
    moved(old, new)
    address = old.mover.expect(VM, OTHER)
    guest = new.vmm.guest(VM.vm_id)
    guest.folder.keep(replace(guest.record, outgoing=OTHER))  # killed before QEMU was told
    new.reopen()
    assert new.qemu is not None
    assert new.qemu.migration["status"] == "completed", "it came by a migration"
    assert not new.mover.is_sent(VM, OTHER)
    steps = sending(new, address, OTHER)
    next(steps)
    assert new.qemu.migration["status"] == "active"


@pytest.mark.parametrize("whole", [False, True])
def test_one_that_is_taken_back_runs_on(sides: tuple[Side, Side], whole: bool) -> None:
    old, new = sides
    address = new.mover.expect(VM, ID)
    steps = sending(old, address)
    next(steps)
    if whole:
        old.world.finish_sending(old.lock_path)
        list(steps)
    new.mover.dismiss(VM, OTHER)
    assert new.qemu is not None, "another migration's"
    new.mover.dismiss(VM, ID)
    if whole:
        old.reopen()
    for _ in range(2):
        old.mover.take_back(VM, ID)
        assert old.qemu is not None
        assert old.qemu.status == "running"
        assert old.vmm.is_running(VM.vm_id)
        assert not old.mover.is_sent(VM, ID)
    assert new.exports() == 0
    if not whole:
        with pytest.raises(WrongState, match="taken back"):
            list(steps)
    old.world.waiting.clear()
    moved(old, new, OTHER)


def test_what_ends_a_sending(sides: tuple[Side, Side]) -> None:
    old, new = sides
    address = new.mover.expect(VM, ID)
    with pytest.raises(DeadlineExceeded, match="faster than it can be sent"):
        list(sending(old, address, seconds_max=0))
    steps = sending(old, address)  # after a failure it is begun again
    next(steps)
    assert old.qemu is not None
    old.qemu.migration = {"status": "failed", "error-desc": "no route"}
    with pytest.raises(PeerUnavailable, match="no route"):
        list(steps)
    steps = sending(old, address)
    next(steps)
    old.world.running.clear()
    with pytest.raises(WrongState, match="went off"):
        list(steps)
    with pytest.raises(WrongState, match="is off"):
        list(sending(old, address))


def test_a_guest_that_did_not_come_whole_is_none(sides: tuple[Side, Side]) -> None:
    _, new = sides
    new.mover.expect(VM, ID)
    with pytest.raises(NotFound):
        new.mover.accept(VM, ID)
    assert new.qemu is None
    with pytest.raises(NotFound):
        new.mover.accept(VM, ID)
    assert new.exports() == 0


def test_a_machine_that_no_other_host_would_build_is_not_sent(sides: tuple[Side, Side]) -> None:
    old, new = sides
    guest = old.vmm.guest(VM.vm_id)
    guest.unplug(guest.record.disks[0])
    rest = replace(VM, config=replace(VM.config, disks=DISKS[1:]))
    with pytest.raises(WrongState, match="had disks taken away"):
        list(old.mover.send(rest, ID, "new:7480", downtime_ms_max=500, seconds_max=60))
    assert new.qemu is None


def test_ports_are_bounded() -> None:
    world = World()
    one, other = Side(world, "one", range(7480, 7481)), Side(world, "other", range(7480, 7481))
    one.mover.expect(VM, ID)
    with pytest.raises(Overloaded, match="no port is free"):
        other.mover.expect(VM, OTHER)
    assert other.qemu is None
    assert other.exports() == 0
