"""Policies at work: what is due is started once, in its time; retention goes over their own backups only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from arraylift.errors import Conflict, NotFound, PeerUnavailable, WrongState
from backup_server.job_rules import Job, JobState
from backup_server.model import ChangeSource
from backup_server.policies.policy import Policy, Selection, WindowText
from backup_server.policies.retention import Retention, digest
from backup_server.policies.schedule import NS, Schedule
from backup_server.policy_reports import OVERDUE_SECONDS, Reports
from backup_server.policy_runs import PolicyRuns, start_job_id
from backup_server.policy_store import Start
from tests.fakes.backup_server import Rig
from tests.fakes.world import Fault

NIGHTLY = Policy("nightly", selection=Selection(all=True), schedule=Schedule(("0 2 * * *",)))


class HandClock:
    """Moved by tests alone."""

    def __init__(self, text: str) -> None:
        self.now_ns = at(text)

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / NS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NS


@dataclass
class Desk:
    """A server's policies under a clock of the test's."""

    rig: Rig
    clock: HandClock

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """As after a restart."""
        server = self.rig.server
        self.store = server.policies
        self.runs = PolicyRuns(server.policies, server.orders, server.inventory, server.backups, self.clock)
        self.reports = Reports(server.db, server.policies, self.runs, server.backups, self.clock)

    def round_at(self, text: str) -> list[Job]:
        """The jobs that a round of that instant started."""
        before = {job.job_id for job in self.jobs()}
        self.clock.now_ns = at(text)
        self.runs.round()
        return [job for job in self.jobs() if job.job_id not in before]

    def jobs(self) -> list[Job]:
        return list(reversed(self.rig.server.db.jobs(unfinished=False, limit=100)))

    def finish(self) -> None:
        for job in self.jobs():
            if not job.state.ended:
                assert self.rig.run(job.job_id).job.state is JobState.SUCCEEDED


@pytest.fixture
def desk(rig: Rig) -> Desk:
    return Desk(rig, HandClock("2026-11-25T12:00"))


def names(jobs: list[Job]) -> list[str]:
    return sorted(job.vm_name for job in jobs)


def test_what_is_due_is_started_once(desk: Desk) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    assert not desk.round_at("2026-11-26T01:59")
    started = desk.round_at("2026-11-26T02:00")
    assert names(started) == ["db1", "web1"]
    assert all(job.backup is not None and job.backup.policy == "nightly" for job in started)
    assert not desk.round_at("2026-11-26T02:01")
    desk.finish()
    made = desk.rig.server.backups.all()
    assert [backup.policy for backup in made] == ["nightly"] * 2
    desk.rig.server.backups.sync()  # it is in the target's manifest as well
    assert [backup.policy for backup in desk.rig.server.backups.all()] == ["nightly"] * 2
    assert names(desk.round_at("2026-11-27T02:00")) == ["db1", "web1"]


def test_missed_runs_are_caught_up_once(desk: Desk) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    assert names(desk.round_at("2026-12-05T09:00")) == ["db1", "web1"]
    desk.finish()
    assert not desk.round_at("2026-12-05T09:01")
    assert desk.store.get("nightly").last_due_ns == at("2026-12-05T02:00")


def test_a_policy_owes_nothing_of_the_time_before_it_was_set(desk: Desk) -> None:
    desk.store.set(replace(NIGHTLY, disabled=True), now_ns=at("2026-11-01T00:00"))
    assert not desk.round_at("2026-11-25T12:00")
    desk.store.set(NIGHTLY, now_ns=at("2026-11-25T12:00"))
    assert not desk.round_at("2026-11-25T12:01")
    desk.store.set(replace(NIGHTLY, comment="a word more"), now_ns=at("2026-11-26T01:30"))
    assert desk.round_at("2026-11-26T02:00"), "a word more is no new schedule"


def test_a_clock_that_ran_ahead_stops_no_policy(desk: Desk) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    assert desk.round_at("2036-11-26T02:00"), "the clock is ten years ahead"
    desk.finish()
    desk.round_at("2026-11-25T12:10")
    assert names(desk.round_at("2026-11-26T02:00")) == ["db1", "web1"]
    desk.finish()
    # Set back over a run that has begun: it is begun again, as the same jobs.
    assert not desk.round_at("2026-11-26T01:59")
    assert not desk.round_at("2026-11-26T02:00")
    assert names(desk.round_at("2026-11-27T02:00")) == ["db1", "web1"]


def test_a_start_that_a_crash_repeats_is_the_same_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    forget = desk.store.finish_start

    def crash(_start: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(desk.store, "finish_start", crash)
    with pytest.raises(KeyboardInterrupt):
        desk.round_at("2026-11-26T02:00")
    assert len(desk.jobs()) == 1
    monkeypatch.setattr(desk.store, "finish_start", forget)
    desk.rig.restart()
    desk.renew()
    desk.round_at("2026-11-26T02:05")
    assert names(desk.jobs()) == ["db1", "web1"]
    assert not desk.store.starts(count_max=9)


def test_starts_are_spread_and_wait_for_their_window(desk: Desk) -> None:
    spread = replace(NIGHTLY, schedule=Schedule(("0 2 * * *",), "", 3600))
    desk.store.set(spread, now_ns=desk.clock.now_ns)
    desk.round_at("2026-11-26T02:00")
    waiting = desk.store.starts(count_max=9)
    assert len({start.start_ns for start in waiting}) == len(waiting) > 0
    assert all(at("2026-11-26T02:00") < start.start_ns <= at("2026-11-26T03:00") for start in waiting)
    desk.round_at("2026-11-26T03:01")
    assert names(desk.jobs()) == ["db1", "web1"]
    desk.finish()

    night = replace(NIGHTLY, windows=(WindowText((), "22:00", "23:00"),))
    desk.store.set(night, now_ns=desk.clock.now_ns)
    assert not desk.round_at("2026-11-27T02:00")
    desk.rig.restart()  # down over the whole window: they wait for the next
    desk.renew()
    assert not desk.round_at("2026-11-27T23:30")
    assert not desk.round_at("2026-11-28T21:59")
    assert names(desk.round_at("2026-11-28T22:00")) == ["db1", "web1"]


def test_what_a_policy_says_reaches_the_job(desk: Desk) -> None:
    chosen = replace(
        NIGHTLY,
        selection=Selection(tags=("tier",)),
        exclude_disks=("*1",),
        change_source=ChangeSource.SUPPLIED,
        bytes_per_second_max=1 << 20,
        full_every_days=7,
    )
    desk.store.set(chosen, now_ns=desk.clock.now_ns)
    (job_id,) = desk.runs.run_now("nightly")
    order = desk.rig.server.db.job(job_id).backup
    assert order is not None
    assert (order.exclude_disks, order.change_source, order.bytes_per_second_max, order.full) == (
        ("disk1",),
        ChangeSource.SUPPLIED,
        1 << 20,
        True,  # there is no backup that read everything
    )
    assert desk.rig.run(job_id).job.state is JobState.SUCCEEDED
    sent = [request for name, request in desk.rig.world.calls if name == "SendSnapshot"]
    assert [request.bytes_per_second_max for request in sent] == [1 << 20]


def test_a_vm_in_backup_is_left_out_and_told(desk: Desk) -> None:
    desk.rig.order_backup("web1")
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    assert names(desk.round_at("2026-11-26T02:00")) == ["db1"]
    assert "web1 was left out" in desk.store.get("nightly").problem
    desk.store.set(replace(NIGHTLY, name="other", selection=Selection(vms=("nobody",))), now_ns=0)
    with pytest.raises(NotFound, match="chooses no VM"):
        desk.runs.run_now("other")


def test_an_absent_center_puts_a_run_off_and_says_so(desk: Desk) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    desk.rig.world.fault("ListManagedVms", Fault("fail", PeerUnavailable("the center is down")))
    assert not desk.round_at("2026-11-26T02:00")
    assert "down" in desk.store.get("nightly").problem
    assert names(desk.round_at("2026-11-26T02:01")) == ["db1", "web1"]
    assert desk.store.get("nightly").problem == ""


def backed_up(desk: Desk, days: int, policy: Policy) -> None:
    """One backup of web1 a day by the policy, and one by hand between."""
    desk.store.set(policy, now_ns=desk.clock.now_ns)
    assert desk.rig.run(desk.rig.order_backup("web1")).job.state is JobState.SUCCEEDED
    for _ in range(days):
        (job_id,) = desk.runs.run_now(policy.name)
        assert desk.rig.run(job_id).job.state is JobState.SUCCEEDED
        desk.clock.now_ns += NS


def test_a_target_that_is_away_holds_up_retention_for_one_call(desk: Desk) -> None:
    policy = Policy("web", selection=Selection(vms=("web1",)), retention=Retention(keep_last=2))
    backed_up(desk, 5, policy)
    world = desk.rig.world
    for _ in range(9):
        world.fault("DeleteBackupManifest", Fault("fail", PeerUnavailable("the target is away")))
    desk.runs.round()
    assert [name for name, _ in world.calls].count("DeleteBackupManifest") == 1
    assert "away" in desk.store.get("web").problem
    world.faults.clear()
    desk.clock.now_ns += 3600 * NS
    desk.runs.round()
    desk.rig.server.backups.finish_deletes()
    left = [one for one in desk.rig.server.backups.all() if one.policy == "web"]
    assert len(left) == 2


def test_retention_goes_over_the_policys_own_backups(desk: Desk) -> None:
    policy = Policy("web", selection=Selection(vms=("web1",)), retention=Retention(keep_last=2))
    backed_up(desk, 5, policy)
    server = desk.rig.server
    newest = [one for one in server.backups.all() if one.policy == "web"]
    plan = desk.runs.plan_retention(policy)
    assert [one.kept for one in plan] == [True, True, False, False, False]
    with pytest.raises(Conflict, match="changed"):
        desk.runs.apply_retention("web", bytes(32))
    server.backups.lock(newest[4].backup_id, at("2100-01-01T00:00"))
    with pytest.raises(Conflict, match="changed"):
        desk.runs.apply_retention("web", digest(plan))
    desk.runs.round()
    left = [one for one in server.backups.all() if one.policy == "web"]
    assert [one.backup_id for one in left] == [newest[index].backup_id for index in (0, 1, 4)]
    assert len(server.backups.all()) == 4, "the one made by hand stays"


def test_a_policy_locks_what_it_makes(desk: Desk) -> None:
    policy = Policy("web", selection=Selection(vms=("web1",)), lock_days=3650)
    backed_up(desk, 1, policy)
    desk.runs.round()
    (made,) = [one for one in desk.rig.server.backups.all() if one.policy == "web"]
    assert made.lock_until_ns == made.snapshot_at_ns + 3650 * 86_400 * NS


def test_reports_name_who_is_unprotected_and_overdue(desk: Desk) -> None:
    gold = replace(NIGHTLY, selection=Selection(tags=("tier=gold",)))
    assert [gap.vm.config.name for gap in desk.reports.unprotected()] == ["db1", "web1"]
    desk.store.set(gold, now_ns=desk.clock.now_ns)
    assert [gap.vm.config.name for gap in desk.reports.unprotected()] == ["db1"]
    assert not desk.reports.overdue(), "nothing is due yet"
    desk.clock.now_ns = at("2026-11-26T02:00") + OVERDUE_SECONDS * NS
    (gap,) = desk.reports.overdue()
    assert (gap.vm.config.name, gap.policy, gap.due_at_ns) == ("web1", "nightly", at("2026-11-26T02:00"))
    desk.store.set(replace(gold, disabled=True), now_ns=desk.clock.now_ns)
    assert not desk.reports.overdue()
    assert "disabled" in desk.reports.unprotected()[1].reason


def test_a_failed_job_is_the_reason_of_a_gap(desk: Desk) -> None:
    desk.store.set(NIGHTLY, now_ns=desk.clock.now_ns)
    desk.round_at("2026-11-26T02:00")
    desk.rig.world.fault(
        "PrepareBackup", *(Fault("fail", WrongState("the VM has no disk")) for _ in range(2))
    )
    for job in desk.jobs():
        assert desk.rig.run(job.job_id).job.state is JobState.FAILED
    desk.clock.now_ns = at("2026-11-26T09:00")
    assert all("has no disk" in gap.reason for gap in desk.reports.overdue())
    assert len(desk.reports.overdue()) == 2


def test_space_is_summed_by_vm_and_target(desk: Desk) -> None:
    backed_up(desk, 2, Policy("web", selection=Selection(vms=("web1",))))
    by_vm, by_target = desk.reports.space()
    assert [(one.name, one.backup_count) for one in by_vm] == [("web1", 3)]
    assert [(one.name, one.backup_count) for one in by_target] == [("target1", 3)]
    assert by_vm[0].bytes_protected == 3 * sum(
        disk.size_bytes for disk in desk.rig.server.backups.all()[0].disks
    )


def test_ids_of_starts_differ_in_policy_vm_and_instant() -> None:
    starts = [
        Start("a", "b", "", 1, 0),
        Start("b", "b", "", 1, 0),
        Start("a", "c", "", 1, 0),
        Start("a", "b", "", 2, 0),
    ]
    assert len({start_job_id(start) for start in starts}) == 4
