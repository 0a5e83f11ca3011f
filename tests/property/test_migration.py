"""At every instant at most one host can run a VM, and every migration ends by itself (decision 0099).

By hypothesis, which shrinks; by seeded histories, of which the campaign runs many; and with the rules
broken one by one, which the same histories must notice.
"""

from __future__ import annotations

import secrets

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hostagent.ended_migrations import EndedMigrations
from hostagent.migration import Migrations
from hostagent.vm_types import VmRecord
from tests import campaign
from tests.property.migration_world import FATES, HOSTS, VMS, Fate, World, moved, run_history
from vcenter.migration import Migration
from vcenter.migration_steps import MigrationSteps, Progress

NAME = "migrations"
STEPS = 60
HISTORIES, HISTORIES_IN_CAMPAIGN = 40, 20_000

fates = st.lists(st.builds(Fate, st.sampled_from(FATES), st.integers(0, 11), st.integers(0, 15)), max_size=3)
hosts = st.sampled_from(HOSTS)
vms = st.sampled_from(VMS)


class MigrationMachine(RuleBasedStateMachine):
    """A world that hypothesis plays with; it checks the law by itself after every message."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def teardown(self) -> None:
        try:
            self.world.settle()
        finally:
            self.world.close()

    @rule(vm_id=vms, destination=hosts, live=st.booleans())
    def begin(self, vm_id, destination, live) -> None:  # type: ignore[no-untyped-def]
        self.world.begin(vm_id, destination, live=live)

    @rule(index=st.integers(0, 7), fates=fates)
    def step(self, index, fates) -> None:  # type: ignore[no-untyped-def]
        self.world.step(index, fates)

    @rule(index=st.integers(0, 30))
    def replay(self, index) -> None:  # type: ignore[no-untyped-def]
        self.world.replay(index)

    @rule(name=hosts, power=st.booleans(), disk=st.integers(0, 15))
    def crash_host(self, name, power, disk) -> None:  # type: ignore[no-untyped-def]
        self.world.crash_host(name, power=power, disk=disk)

    @rule(commits=st.integers(0, 3), side=st.sampled_from(["before", "after"]))
    def arm_center(self, commits, side) -> None:  # type: ignore[no-untyped-def]
        self.world.arm_center(commits, side)

    @rule()
    def restart_center(self) -> None:
        self.world.restart_center()

    @rule(name=hosts)
    def report(self, name) -> None:  # type: ignore[no-untyped-def]
        self.world.report(name)

    @rule(vm_id=vms, on=st.booleans())
    def power(self, vm_id, on) -> None:  # type: ignore[no-untyped-def]
        self.world.power(vm_id, on=on)

    @rule()
    def silence(self) -> None:
        self.world.silence()

    @rule(name=hosts, sure=st.sampled_from([False, False, True]))
    def bury(self, name, sure) -> None:  # type: ignore[no-untyped-def]
        if sure:
            self.world.bury(name)


TestMigrations = MigrationMachine.TestCase
TestMigrations.settings = settings(stateful_step_count=30)


def run_histories(count: int, seed: int) -> int:
    """How many VMs moved in so many histories."""
    total = 0
    for number in range(count):
        world = run_history(seed * 100_000 + number, STEPS)
        total += moved(world)
        world.close()
    return total


def test_migrations_by_chance_keep_the_law() -> None:
    seed = secrets.randbits(campaign.SEED_BITS)
    total = run_histories(HISTORIES, seed)
    campaign.report(NAME, seed=seed, histories=HISTORIES, vms_moved=total)
    assert total


@pytest.mark.campaign
def test_campaign_of_migrations() -> None:
    seed = campaign.seed_of(NAME)
    count = campaign.scaled(HISTORIES_IN_CAMPAIGN)
    total = run_histories(count, seed)
    campaign.record(NAME, seed=seed, histories=count, vms_moved=total)
    campaign.report(NAME, seed=seed, histories=count, vms_moved=total)


# -- the histories notice a broken rule ---------------------------------------------------------


def _late_messages_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EndedMigrations, "__contains__", lambda *_: False)


def _handing_over_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(self: Migrations, vm: VmRecord) -> VmRecord:
        return vm

    monkeypatch.setattr(Migrations, "_give_up", give_up)


def _undone_after_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = MigrationSteps._accept

    def hasty(self: MigrationSteps, progress: Progress) -> bool:
        try:
            return accept(self, progress)
        except Exception:  # noqa: BLE001  # a center that guesses
            progress.migration = self._moves.put(progress.migration._undone("no answer"))
            return True

    monkeypatch.setattr(MigrationSteps, "_accept", hasty)


def _accepted_on_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def guess(self: MigrationSteps, progress: Progress, error: Exception) -> bool:
        migration: Migration = progress.migration
        guessed = migration.handed_over(b"") if migration.phase.value == "hand over" else migration.undone("")
        progress.migration = self._moves.put(guessed)
        return True

    monkeypatch.setattr(MigrationSteps, "_turn", guess)


@pytest.mark.parametrize(
    "breakage",
    [
        _late_messages_are_taken,
        _handing_over_is_not_recorded,
        _undone_after_accept,
        _accepted_on_no_answer,
    ],
)
def test_a_broken_rule_is_noticed(breakage, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        run_histories(200, 1)
