"""A center, three hosts and a bad network: VMs are moved while everything dies, is lost, late and doubled.

Real: the center's inventory with its database, moves and steps; the hosts' records, machines and migrations
over disks that crash. Fake: VMMs and the network. After every message the law is checked: at most one host
can run a VM, and none runs on two. ``settle`` lets everything be well and checks the rest: each migration
ends by itself, exactly one host can run each VM, the inventory shows it there, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from arraylift.errors import ArrayliftError, PeerUnavailable, StoreFailed
from arraylift.ids import MigrationId, VmId
from arraylift.vm.types import PowerState, Vm, VmConfig
from hostagent.migration import HandOver
from hostagent.vm_types import VmState
from tests.fakes.disk import PowerCut
from tests.fakes.hosts import FakeHost
from tests.fakes.vmms import FakeVolumes, Vmms
from tests.unit.vcenter.material import GIB, Center, vm_id_of
from vcenter.live_inventory import SILENCE_SECONDS
from vcenter.migration import Migration
from vcenter.migration_steps import MigrationSteps, Progress, Waits
from vcenter.model import Host, Report
from vcenter.moves import Moves
from vcenter.routing import HandedOver, MemorySent, Router

HOSTS = ("a", "b", "c")
VMS = tuple(vm_id_of(number) for number in (1, 2))
SETTLE_ROUNDS = 40
FATES = ("ok", "lost", "unanswered", "late", "twice", "killed", "cut")
"""Of one message: nothing wrong; never arrives; its answer never does; arrives later; arrives twice; the host
agent, or the host's power, is gone in the middle of it."""

T = TypeVar("T")
GONE = PeerUnavailable("no answer came")


@dataclass
class Fate:
    """What happens to the next message; ``writes`` until a crash, ``disk`` chooses one it may leave."""

    kind: str = "ok"
    writes: int = 0
    disk: int = 0


class Network:
    """What the center asks of hosts (HostCalls), over fakes. ``sent`` is every message ever sent."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.fates: list[Fate] = []
        self.sent: list[Callable[[], object]] = []

    def list_vms(self, host: Host, *, seconds: float) -> Sequence[Vm]:
        return self._ask(host, lambda there: there.told(), replayed=False)

    def expect_vm(self, host: Host, migration: Migration, config: VmConfig, *, seconds: float) -> str:
        return self._ask(
            host,
            lambda there: there.migrations.expect(
                migration.vm_id,
                migration.migration_id,
                config,
                revision=migration.revision,
                live=migration.live,
            ),
        )

    def hand_over_vm(
        self, host: Host, migration: Migration, *, seconds: float
    ) -> Iterator[MemorySent | HandedOver]:
        asked = HandOver(
            migration.vm_id,
            migration.migration_id,
            migration.revision,
            live=migration.live,
            address=migration.address,
        )
        done = self._ask(host, lambda there: there.migrations.hand_over(asked, lambda _: None))
        yield MemorySent(1, 0)
        yield HandedOver(done.firmware_variables, done.downtime_ns)

    def accept_vm(self, host: Host, migration: Migration, *, seconds: float) -> Vm:
        def accept(there: FakeHost) -> Vm:
            vm = there.migrations.accept(
                migration.vm_id, migration.migration_id, migration.firmware_variables
            )
            return vm.told(there.name)

        return self._ask(host, accept)

    def abandon_migration(self, host: Host, migration: Migration, *, seconds: float) -> None:
        self._ask(host, lambda there: there.migrations.abandon(migration.vm_id, migration.migration_id))

    def finish_migration(self, host: Host, migration: Migration, *, seconds: float) -> None:
        self._ask(host, lambda there: there.migrations.finish(migration.vm_id, migration.migration_id))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked in this story")

    def _ask(self, host: Host, ask: Callable[[FakeHost], T], *, replayed: bool = True) -> T:
        """One message, as the next fate has it."""
        world, name = self._world, host.name

        def deliver() -> T:
            if name in world.dead:
                raise GONE
            try:
                return ask(world.hosts[name])
            finally:
                world.check()

        if replayed:
            self.sent.append(deliver)
        fate = self.fates.pop(0) if self.fates else Fate()
        if fate.kind in ("lost", "late"):  # what is late may come at any time: see ``replay``
            raise GONE
        if fate.kind in ("killed", "cut"):
            return self._crash(name, deliver, fate)
        if fate.kind == "twice":
            world.ignore(deliver)
        answer = deliver()
        if fate.kind == "unanswered":
            raise GONE
        return answer

    def _crash(self, name: str, deliver: Callable[[], T], fate: Fate) -> T:
        there = self._world.hosts[name]
        there.files.crash_after(fate.writes)
        try:
            answer = deliver()
        except PowerCut:
            self._world.crash_host(name, power=fate.kind == "cut", disk=fate.disk)
            raise GONE from None
        finally:
            there.files.kernel.crash_at = None
        return answer


class World:
    """Everything. ``close`` removes its folder."""

    def __init__(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = tempfile.TemporaryDirectory(prefix="arraylift-test-", dir=memory)
        self.vmms, self.volumes = Vmms(), FakeVolumes()
        self.hosts = {name: FakeHost(name, self.vmms, self.volumes) for name in HOSTS}
        self.dead: set[str] = set()
        self.center = Center(Path(self.folder.name) / "state")
        self.network = Network(self)
        self.sequences = dict.fromkeys(HOSTS, 0)
        self.drawn = 0
        self.center.add_hosts(*HOSTS)
        for number, vm_id in enumerate(VMS):
            self.hosts["a"].make(vm_id, f"vm{number}", on=bool(number))
        self._open_center()
        for name in HOSTS:
            self.report(name)

    def _open_center(self) -> None:
        self.moves = Moves(self.center.store)
        router = Router(self.center.live, self.network, self.moves)
        self.steps = MigrationSteps(router, self.moves)
        self.runs: dict[MigrationId, Progress] = {}
        for migration, _ in self.moves.all():
            if migration.phase.value == "finish":
                self.center.live.depart(migration.vm_id, migration.source)
            self.runs[migration.migration_id] = Progress(migration)

    def close(self) -> None:
        self.center.store.close()
        self.folder.cleanup()

    # -- the law --------------------------------------------------------------------------------

    def who(self, vm_id: VmId) -> list[str]:
        """Hosts that can run it; those gone for good cannot."""
        return [name for name in self.living() if self.hosts[name].can_run(vm_id)]

    def living(self) -> list[str]:
        return [name for name in HOSTS if name not in self.dead]

    def check(self) -> None:
        for vm_id in VMS:
            assert len(self.who(vm_id)) <= 1, f"VM {vm_id} can be run by {self.who(vm_id)}"
            running = [host for host, one in self.vmms.running if one == vm_id]
            assert len(running) <= 1, f"VM {vm_id} runs on {running}"

    # -- what people do -------------------------------------------------------------------------

    def begin(self, vm_id: VmId, destination: str, *, live: bool) -> None:
        """MigrateVm, as far as it is decided at the center."""
        vm = self.center.live.now.shown.get(vm_id)
        if vm is None or vm.host == destination:
            return
        self.drawn += 1
        migration = Migration(
            MigrationId(f"{self.drawn:032x}"),
            vm_id,
            vm.config.name,
            vm.host,
            destination,
            live=live,
            revision=vm.revision,
            memory_bytes=vm.config.memory_bytes,
            began_at_ns=self.drawn,
        )
        try:
            self.moves.begin(migration)
        except StoreFailed:
            self.restart_center()
        except ArrayliftError:
            return  # it moves already
        else:
            self.runs[migration.migration_id] = Progress(migration, vm.config)

    def power(self, vm_id: VmId, *, on: bool) -> None:
        """At every host, whatever it says."""
        for name in self.living():
            machines = self.hosts[name].machines
            self.ignore(partial(machines.power_on if on else machines.power_off, vm_id))
        self.check()

    def bury(self, name: str) -> None:
        """A host is gone for good, and an operator, who knows, has it forgotten. The last two stay."""
        if len(self.dead) < len(HOSTS) - 2 and name not in self.dead:
            self.vmms.power_cut(name)
            self.dead.add(name)
            try:
                self.center.live.remove_host(name)
            except StoreFailed:
                self.restart_center()
                self.ignore(lambda: self.center.live.remove_host(name))

    # -- what happens ---------------------------------------------------------------------------

    def step(self, index: int, fates: Sequence[Fate]) -> None:
        """One of the migrations goes a step."""
        if not self.runs:
            return
        migration_id = list(self.runs)[index % len(self.runs)]
        self.network.fates = list(fates)
        try:
            if not self.steps.take(self.runs[migration_id]):
                del self.runs[migration_id]
        except Waits:
            pass
        except StoreFailed:
            self.restart_center()
        self.network.fates = []
        self.check()

    def replay(self, index: int) -> None:
        """A message that was ever sent arrives, perhaps not for the first time."""
        if self.network.sent:
            self.ignore(self.network.sent[index % len(self.network.sent)])

    def crash_host(self, name: str, *, power: bool, disk: int = 0) -> None:
        if name in self.dead:
            return
        if power:
            self.hosts[name].power_cut(disk)
        else:
            self.hosts[name].kill()
        self.check()

    def restart_center(self) -> None:
        """Or a crash: what is not in the database is gone."""
        self.center.failpoints.arm("")
        self.center.reopen()
        self._open_center()

    def arm_center(self, commits: int, side: str) -> None:
        """The center dies at one of its next commits, before or after it."""
        self.center.failpoints.arm(f"inventory.commit.{side}=eio@{commits + 1}")

    def report(self, name: str) -> None:
        """A host's report arrives."""
        if name in self.dead:
            return
        host = self.hosts[name]
        host.machines.notice()
        self.sequences[name] += 1
        told = Report(name, self.sequences[name], tuple(host.told()), 16 * GIB, 8 * GIB, 8)
        try:
            self.center.add_hosts(name)
            self.center.live.report(told)
        except StoreFailed:
            self.restart_center()

    def silence(self) -> None:
        """No host is heard for long."""
        self.center.clock.seconds += SILENCE_SECONDS
        try:
            self.center.live.mark_silent()
        except StoreFailed:
            self.restart_center()

    def ignore(self, act: Callable[[], object]) -> None:
        """Do something whose refusal is fine."""
        with contextlib.suppress(ArrayliftError):
            act()

    # -- the end --------------------------------------------------------------------------------

    def settle(self) -> None:
        """All that live are well and heard. Those of a host that is dead for good wait for ever."""
        self.center.failpoints.arm("")
        for _ in range(SETTLE_ROUNDS):
            for name in HOSTS:
                self.report(name)
            for index in range(len(self.runs)):
                self.step(index, ())
        for migration, _ in self.moves.all():
            assert {migration.source, migration.destination} & self.dead, f"{migration} does not end"
            assert migration.is_left_over, f"{migration} does not settle"
        for name in HOSTS:
            self.report(name)
        self._check_settled()

    def _check_settled(self) -> None:
        for vm_id in VMS:
            who = self.who(vm_id)
            shown = self.center.live.now.shown.get(vm_id)
            if not who:
                assert self.dead, f"nobody can run VM {vm_id}"
                assert shown is None
                continue
            (name,) = who
            assert shown is not None
            assert shown.host == name, f"VM {vm_id} is shown on {shown.host}, and is on {name}"
            host = self.hosts[name]
            assert (shown.power is PowerState.ON) == ((name, vm_id) in self.vmms.running)
            assert host.machines.power_on(vm_id).state is VmState.ON
            self.check()
        for name in self.living():
            for vm in self.hosts[name].store.vms.all():
                assert vm.state is not VmState.EXPECTED, f"host {name} keeps a place for {vm.vm_id}"
                assert vm.move is None, f"host {name} still moves {vm.vm_id}"
        assert not self.vmms.incoming, f"a VMM still waits: {self.vmms.incoming}"
        assert not self.vmms.sent, f"a guest that was sent stands still: {self.vmms.sent}"


# -- histories by chance ------------------------------------------------------------------------


def run_history(seed: int, steps: int) -> World:
    """One world's life, as ``seed`` has it; raises AssertionError. The caller closes it."""
    chance = random.Random(seed)
    world = World()
    try:
        for _ in range(steps):
            _one_event(world, chance)
        world.settle()
    except AssertionError as error:
        world.close()
        raise AssertionError(f"history {seed}: {error}") from error
    except BaseException:
        world.close()
        raise
    return world


def random_fate(chance: random.Random) -> Fate:
    kind = chance.choice(FATES) if chance.random() < 0.5 else "ok"
    return Fate(kind, chance.randrange(12), chance.randrange(16))


def _one_event(world: World, chance: random.Random) -> None:
    what = chance.random()
    host, vm_id = chance.choice(HOSTS), chance.choice(VMS)
    if what < 0.5:
        world.step(chance.randrange(8), [random_fate(chance) for _ in range(3)])
    elif what < 0.62:
        world.begin(vm_id, host, live=chance.random() < 0.5)
    elif what < 0.70:
        world.replay(chance.randrange(1 << 16))
    elif what < 0.78:
        world.report(host)
    elif what < 0.84:
        world.power(vm_id, on=chance.random() < 0.6)
    elif what < 0.89:
        world.crash_host(host, power=chance.random() < 0.5, disk=chance.randrange(16))
    elif what < 0.93:
        world.arm_center(chance.randrange(4), chance.choice(("before", "after")))
    elif what < 0.97:
        world.restart_center()
    elif what < 0.99:
        world.silence()
    else:
        world.bury(host)


def moved(world: World) -> int:
    """How many of its VMs are elsewhere than they began."""
    return sum(world.who(vm_id) != ["a"] for vm_id in VMS)
