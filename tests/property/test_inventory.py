"""The inventory against a dict: reports repeated, reordered, of hosts that restart, are lost, removed and
forget; VMs that move; direct answers; the center killed and opened again at any moment."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arraylift.errors import NotFound, WrongState
from arraylift.ids import VmId
from arraylift.vm.types import PowerState, Vm
from tests.unit.vcenter.material import Center, make_vm, report, vm_id_of
from vcenter.event_log import Event
from vcenter.live_inventory import HOLD_SECONDS, SILENCE_SECONDS
from vcenter.model import Report

HOSTS = ("h1", "h2", "h3")
NUMBERS = range(1, 4)

hosts = st.sampled_from(HOSTS)
numbers = st.sampled_from(list(NUMBERS))
powers = st.sampled_from([PowerState.OFF, PowerState.ON])
names = st.sampled_from(["", "web", "db"])


@dataclass
class ModelHost:
    """What the center should know of a host."""

    sequence: int = 0
    lost: bool = False
    heard: float = 0.0
    claims: dict[VmId, tuple[Vm, int]] = field(default_factory=dict)
    """VM and the tick at which that claim last changed."""


class InventoryMachine(RuleBasedStateMachine):
    """The real hosts (what runs where), the network (reports under way), the center, and its model."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where that is possible: this is about what is kept, not about power cuts.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = tempfile.TemporaryDirectory(prefix="arraylift-test-", dir=memory)
        self.center = Center(Path(self.folder.name) / "state")
        self.real: dict[str, dict[VmId, Vm]] = {name: {} for name in HOSTS}
        self.sequence = dict.fromkeys(HOSTS, 0)
        self.under_way: list[Report] = []
        self.model: dict[str, ModelHost] = {}
        self.tick = 0
        self.watched: dict[VmId, Vm] = {}
        self.watched_revision = self.center.live.now.revision
        for host in HOSTS[:2]:
            self.register(host)

    def teardown(self) -> None:
        self.center.store.close()
        self.folder.cleanup()

    # -- what happens on hosts ------------------------------------------------------------------

    @rule(host=hosts, number=numbers, power=powers, name=names)
    def change_vm(self, host: str, number: int, power: PowerState, name: str) -> None:
        old = self.real[host].get(vm_id_of(number))
        revision = old.revision + 1 if old else 1
        self.real[host][vm_id_of(number)] = make_vm(number, host, power=power, revision=revision, name=name)

    @rule(host=hosts, number=numbers)
    def drop_vm(self, host: str, number: int) -> None:
        self.real[host].pop(vm_id_of(number), None)

    @rule(source=hosts, goal=hosts, number=numbers)
    def move_vm(self, source: str, goal: str, number: int) -> None:
        vm = self.real[source].pop(vm_id_of(number), None)
        if vm is not None:
            self.real[goal][vm.vm_id] = replace(vm, host=goal, revision=vm.revision + 1)

    # -- the network ----------------------------------------------------------------------------

    @rule(host=hosts)
    def send_report(self, host: str) -> None:
        self.sequence[host] += 1
        self.under_way.append(report(host, self.sequence[host], *self.real[host].values()))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        """Any report under way, whatever its age; perhaps once more later."""
        index = data.draw(st.integers(0, len(self.under_way) - 1))
        self._arrive(self.under_way[index] if again else self.under_way.pop(index))

    def _arrive(self, arriving: Report) -> None:
        model = self.model.get(arriving.host)
        if model is None:
            try:
                self.center.live.report(arriving)
            except NotFound:
                return
            raise AssertionError("a report of an unknown host was taken")
        assert self.center.live.report(arriving) == (arriving.sequence > model.sequence)
        if arriving.sequence > model.sequence:
            model.sequence, model.lost = arriving.sequence, False
            model.heard = self.center.clock.seconds
            self._listing(arriving.host, {vm.vm_id: vm for vm in arriving.vms})

    @rule(host=hosts)
    def report_at_once(self, host: str) -> None:
        self.send_report(host)
        self._arrive(self.under_way.pop())

    @rule(host=hosts)
    def register(self, host: str) -> None:
        self.center.add_hosts(host)
        self.model.setdefault(host, ModelHost(heard=self.center.clock.seconds))

    @rule(host=hosts, sure=st.sampled_from([False, False, True]))
    def remove_host(self, host: str, sure: bool) -> None:
        if sure and host in self.model:
            self.center.live.remove_host(host)
            del self.model[host]
            self.tick += 1

    # -- what the center asks -------------------------------------------------------------------

    @rule(host=hosts)
    def synchronize(self, host: str) -> None:
        if host in self.model:
            self.center.live.synchronize(host, lambda _host: list(self.real[host].values()))
            self._listing(host, dict(self.real[host]))

    @rule(host=hosts, number=numbers)
    def answer(self, host: str, number: int) -> None:
        """The host answers about a VM; holds are let lapse, they have tests of their own."""
        vm = self.real[host].get(vm_id_of(number))
        if host in self.model and vm is not None:
            known = self.model[host].claims.get(vm.vm_id)
            self.center.live.apply_vm(vm)
            self.center.clock.seconds += HOLD_SECONDS
            if known is None or known[0].revision <= vm.revision:
                self._claim(host, vm)

    @rule(seconds=st.sampled_from([1.0, SILENCE_SECONDS / 2, SILENCE_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.center.clock.seconds += seconds
        expected = {
            name
            for name, host in self.model.items()
            if not host.lost and self.center.clock.seconds - host.heard >= SILENCE_SECONDS
        }
        assert set(self.center.live.mark_silent()) == expected
        for name in expected:
            self.model[name].lost = True

    @rule()
    def crash(self) -> None:
        """What was answered is there; silence is counted anew; unwritten heartbeats are forgotten."""
        before = self.center.live.now
        self.center.reopen()
        after = self.center.live.now
        assert (after.revision, after.shown, after.claims) == (before.revision, before.shown, before.claims)
        for name, host in self.model.items():
            assert after.hosts[name].sequence <= host.sequence
            host.sequence = after.hosts[name].sequence
            host.heard = self.center.clock.seconds

    # -- the model ------------------------------------------------------------------------------

    def _listing(self, host: str, said: dict[VmId, Vm]) -> None:
        claims = self.model[host].claims
        for vm_id in claims.keys() - said.keys():
            del claims[vm_id]
        for vm in said.values():
            self._claim(host, vm)

    def _claim(self, host: str, vm: Vm) -> None:
        self.tick += 1
        claims = self.model[host].claims
        if vm.vm_id not in claims or claims[vm.vm_id][0] != vm:
            claims[vm.vm_id] = (vm, self.tick)

    def _expected(self) -> dict[VmId, Vm]:
        found: dict[VmId, tuple[bool, int, Vm]] = {}
        for host in self.model.values():
            for vm_id, (vm, tick) in host.claims.items():
                shown = replace(vm, power=PowerState.UNKNOWN) if host.lost else vm
                rank = (vm.power is PowerState.ON, tick, shown)
                if vm_id not in found or rank[:2] > found[vm_id][:2]:
                    found[vm_id] = rank
        return {vm_id: shown for vm_id, (_, _, shown) in found.items()}

    @invariant()
    def shows_what_the_model_shows(self) -> None:
        now = self.center.live.now
        expected = self._expected()
        assert dict(now.shown) == expected
        assert {name: host.lost for name, host in now.hosts.items()} == {
            name: host.lost for name, host in self.model.items()
        }
        by_name: dict[str, list[VmId]] = {}
        for vm in expected.values():
            by_name.setdefault(vm.config.name, []).append(vm.vm_id)
        assert {name: sorted(ids) for name, ids in now.ids_by_name.items()} == {
            name: sorted(ids) for name, ids in by_name.items()
        }
        for name, ids in by_name.items():
            try:
                assert [now.vm_named(name).vm_id] == ids
            except WrongState:
                assert len(ids) > 1

    @invariant()
    def a_watcher_that_applies_every_event_sees_the_same(self) -> None:
        live = self.center.live
        event = live.changes_after(self.watched_revision)
        if event is None:  # only after a restart: the log begins anew
            event = Event(live.now.revision, tuple(live.now.shown.values()), (), listing=True)
            self.watched = {}
        assert event.revision >= self.watched_revision
        self.watched.update((vm.vm_id, vm) for vm in event.vms)
        for vm_id in event.gone:
            self.watched.pop(vm_id, None)
        self.watched_revision = event.revision
        assert self.watched == dict(live.now.shown)

    @rule()
    def every_configuration_shown_is_the_last_in_its_history(self) -> None:
        for vm in self.center.live.now.shown.values():
            last = self.center.store.history(vm.vm_id, count=1)[0].past
            assert (last.config, last.host, last.removed) == (vm.config, vm.host, False)


TestInventory = InventoryMachine.TestCase
TestInventory.settings = settings(stateful_step_count=40)
