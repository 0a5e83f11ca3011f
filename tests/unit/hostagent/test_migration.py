"""A VM's move, as its two hosts see it: each step, again, late, in the wrong order, and cut by crashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from arraylift.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import MigrationId, VmId, random_id
from arraylift.vm.types import PowerState
from hostagent.ended_migrations import ENDED_MAX, EndedMigrations
from hostagent.firmware_store import pack_variables
from hostagent.live_move import MoveProgress
from hostagent.migration import HandOver
from hostagent.vm_types import VmRecord, VmState
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.hosts import FakeHost
from tests.fakes.vmms import FakeVolumes, Vmms

VM, M1, M2 = VmId("1" * 32), MigrationId("a" * 32), MigrationId("b" * 32)
LIVE = pytest.mark.parametrize("live", [False, True])


class Pair:
    """An old and a new host, and a VM on the old one."""

    def __init__(self, *, live: bool) -> None:
        self.vmms, volumes = Vmms(), FakeVolumes()
        self.old, self.new = FakeHost("old", self.vmms, volumes), FakeHost("new", self.vmms, volumes)
        self.live = live
        self.vm = self.old.make(VM, on=live)

    def expect(self, migration_id: MigrationId = M1) -> str:
        return self.new.expect(self.vm, migration_id, live=self.live)

    def hand_over(self, migration_id: MigrationId = M1) -> None:
        self.old.hand_over(self.vm, migration_id, live=self.live, address=f"migration.new:{VM}")

    def accept(self, migration_id: MigrationId = M1) -> VmRecord:
        return self.new.migrations.accept(VM, migration_id, b"")

    def finish(self, migration_id: MigrationId = M1) -> None:
        self.old.migrations.finish(VM, migration_id)

    def abandon(self, migration_id: MigrationId = M1) -> None:
        self.new.migrations.abandon(VM, migration_id)
        self.old.migrations.abandon(VM, migration_id)

    def who(self) -> list[str]:
        """Hosts that can run it."""
        return [host.name for host in (self.old, self.new) if host.can_run(VM)]

    def is_as_before(self) -> bool:
        running = {("old", VM)} if self.live else set()
        return (
            self.who() == ["old"]
            and self.old.record(VM) == self.vm
            and self.new.record(VM) is None
            and (self.vmms.running, self.vmms.incoming, self.vmms.sent) == (running, {}, {})
        )

    def is_moved(self) -> bool:
        vm = self.new.record(VM)
        running = {("new", VM)} if self.live else set()
        return (
            self.who() == ["new"]
            and vm is not None
            and vm.move is None
            and vm.revision > self.vm.revision
            and self.old.record(VM) is None
            and (self.vmms.running, self.vmms.incoming, self.vmms.sent) == (running, {}, {})
        )


@LIVE
def test_a_vm_moves_and_each_step_may_come_twice(live: bool) -> None:
    pair = Pair(live=live)
    steps: list[tuple[Callable[[], object], list[str]]] = [
        (pair.expect, ["old"]),
        (pair.hand_over, []),
        (pair.accept, ["new"]),
        (pair.finish, ["new"]),
    ]
    for step, who in steps:
        first = step()
        assert step() == first
        assert pair.who() == who
    assert pair.is_moved()
    assert pair.new.runs(VM) == live
    assert pair.new.machines.power_on(VM).state is VmState.ON
    assert pair.old.driver.released == [VM]


@LIVE
def test_what_is_told_of_it_changes_only_with_its_place(live: bool) -> None:
    pair = Pair(live=live)
    before = pair.old.told()
    pair.expect()
    assert pair.new.told() == []
    pair.hand_over()
    assert (pair.old.told(), pair.new.told()) == (before, [])
    pair.accept()
    (moved,) = pair.new.told()
    assert (pair.old.told(), moved.revision) == (before, before[0].revision + 1)
    assert moved == replace(before[0], host="new", revision=moved.revision)
    pair.finish()
    assert pair.old.told() == []


@LIVE
def test_nobody_else_touches_a_vm_that_moves(live: bool) -> None:
    pair = Pair(live=live)
    pair.expect()
    for ask in (
        pair.new.machines.power_on,
        pair.new.machines.get,
        lambda vm: pair.new.machines.detach(vm, "x"),
    ):
        with pytest.raises(NotFound):
            ask(VM)
    with pytest.raises(AlreadyExists):
        pair.new.make(VM, "other")
    with pytest.raises(AlreadyExists):
        pair.new.make(VmId("2" * 32), pair.vm.config.name)
    pair.hand_over()
    machines = pair.old.machines
    for change in (
        machines.power_on,
        machines.power_off,
        lambda vm: machines.detach(vm, "root"),
        lambda vm: machines.delete(vm, keep_volumes=True, release_snapshots=lambda _: None),
    ):
        with pytest.raises(PeerUnavailable, match="being moved"):
            change(VM)
    machines.notice()  # its guest runs here no more, and that is no news
    assert machines.get(VM).state is pair.vm.state


@LIVE
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_it_is_undone_from_every_step_before_it_is_accepted(live: bool, steps: int) -> None:
    pair = Pair(live=live)
    for step in (pair.expect, pair.hand_over)[:steps]:
        step()
    pair.abandon()
    assert pair.is_as_before()
    pair.abandon()
    for late in (pair.expect, pair.hand_over):
        with pytest.raises(WrongState, match="has ended"):
            late()
    with pytest.raises(NotFound):
        pair.accept()
    pair.finish()
    assert pair.is_as_before()
    for again in (pair.expect, pair.hand_over, pair.accept, pair.finish):
        again(M2)
    assert pair.is_moved()


@LIVE
def test_messages_of_a_move_that_has_ended_do_nothing_wherever_the_vm_is(live: bool) -> None:
    pair = Pair(live=live)
    for step in (pair.expect, pair.hand_over, pair.accept, pair.finish):
        step()
    with pytest.raises(WrongState):
        pair.new.migrations.abandon(VM, M1)
    vm = pair.new.record(VM)
    assert vm is not None
    pair.old.expect(vm, M2, live=live)
    pair.new.hand_over(vm, M2, live=live, address=f"migration.old:{VM}")
    pair.old.migrations.accept(VM, M2, b"")
    pair.new.migrations.finish(VM, M2)
    for late in (pair.expect, pair.hand_over):
        with pytest.raises(WrongState, match="has ended"):
            late(M1)
    with pytest.raises(NotFound):
        pair.accept(M1)
    pair.finish(M1)
    pair.new.migrations.abandon(VM, M1)
    pair.old.migrations.abandon(VM, M1)
    assert pair.who() == ["old"]


def test_a_vm_that_was_deleted_is_not_brought_again_by_what_brought_it() -> None:
    pair = Pair(live=False)
    for step in (pair.expect, pair.hand_over, pair.accept, pair.finish):
        step()
    pair.new.machines.delete(VM, keep_volumes=True, release_snapshots=lambda _: None)
    with pytest.raises(WrongState, match="has ended"):
        pair.expect()


def test_what_cannot_be_handed_over_is_said_and_stays() -> None:
    pair = Pair(live=False)
    for live in (False, True):
        pair = Pair(live=live)
        pair.live = not live
        with pytest.raises(WrongState, match="is off" if not live else "runs"):
            pair.hand_over()
        pair.live = live
        pair.vm, real = replace(pair.vm, revision=pair.vm.revision - 1), pair.vm
        with pytest.raises(WrongState, match="changed"):
            pair.hand_over()
        pair.vm = real
        assert pair.is_as_before()
    pair.old.store.vms.put(replace(pair.vm, adopted=True))
    with pytest.raises(WrongState, match="admin made"):
        pair.hand_over()
    pair.old.store.vms.put(pair.vm)
    pair.old.driver.mover = None
    with pytest.raises(WrongState, match="power the VM off"):
        pair.hand_over()
    with pytest.raises(NotFound):
        pair.old.hand_over(replace(pair.vm, vm_id=VmId("9" * 32)), M1)
    pair = Pair(live=False)
    pair.expect()
    with pytest.raises(WrongState, match="not handed over"):
        pair.new.migrations.finish(VM, M1)


def test_a_guest_that_runs_though_its_record_says_off_is_not_handed_over() -> None:
    pair = Pair(live=False)
    pair.expect()
    pair.vmms.running.add(("old", VM))  # by virsh, or by a process that was killed before its record
    with pytest.raises(WrongState, match="runs"):
        pair.hand_over()
    with pytest.raises(WrongState, match="runs"):
        pair.old.machines.delete(VM, keep_volumes=True, release_snapshots=lambda _: None)
    assert pair.who() == ["old"]
    pair.vm = pair.old.machines.power_off(VM)
    assert not pair.vmms.running
    pair.abandon()
    pair.expect(M2)
    pair.hand_over(M2)
    pair.accept(M2)
    pair.finish(M2)
    assert pair.is_moved()


def test_one_migration_at_a_time() -> None:
    pair = Pair(live=False)
    pair.expect()
    pair.hand_over()
    with pytest.raises(WrongState, match="already"):
        pair.hand_over(M2)
    with pytest.raises(AlreadyExists):
        pair.expect(M2)
    pair.abandon(M2)
    pair.finish(M2)
    assert pair.who() == []
    pair.accept()
    assert pair.who() == ["new"]


def test_a_place_is_kept_only_for_a_vm_that_can_live_there() -> None:
    pair = Pair(live=False)
    with pytest.raises(InvalidRequest):
        pair.new.migrations.expect(VM, M1, replace(pair.vm.config, uuid=""), revision=1, live=False)
    pair.new.volumes.names.clear()
    with pytest.raises(NotFound):
        pair.expect()
    assert pair.new.record(VM) is None
    with pytest.raises(AlreadyExists):
        pair.old.expect(pair.vm, M1)
    pair.new.driver.mover = None
    with pytest.raises(WrongState):
        pair.new.expect(pair.vm, M1, live=True)


def test_an_abandoned_move_ends_while_the_guest_is_sent() -> None:
    pair = Pair(live=True)
    pair.expect()
    pair.old.driver.during_send = lambda: pair.old.migrations.abandon(VM, M1)
    with pytest.raises(WrongState, match="has ended"):
        pair.hand_over()
    pair.abandon()  # the cut came too late to stop the sending: the guest is let run all the same
    assert pair.is_as_before()


def test_an_abandoned_move_whose_sending_fails_late_leaves_no_guest_in_it() -> None:
    pair = Pair(live=True)
    address = pair.expect()
    pair.old.driver.during_send = lambda: pair.old.migrations.abandon(VM, M1)

    def fails(progress: MoveProgress) -> None:
        if not progress.bytes_left:
            raise PeerUnavailable("QEMU does not say how far it is")

    with pytest.raises(PeerUnavailable):
        pair.old.migrations.hand_over(HandOver(VM, M1, pair.vm.revision, live=True, address=address), fails)
    assert pair.vmms.running == {("old", VM)}
    pair.abandon()
    assert pair.is_as_before()


def test_a_second_hand_over_that_outlasts_a_cut_finish_does_not_let_the_guest_run_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair(live=True)
    pair.expect()

    def all_the_rest() -> None:
        pair.old.driver.during_send = lambda: None
        pair.hand_over()
        pair.accept()

        def hangs(vm: VmRecord, migration_id: MigrationId) -> None:
            raise DeadlineExceeded("its QEMU waits in the kernel")

        with monkeypatch.context() as patched:
            patched.setattr(pair.old.driver, "let_go", hangs)
            with pytest.raises(DeadlineExceeded):
                pair.finish()

    pair.old.driver.during_send = all_the_rest
    with pytest.raises(WrongState, match="has ended"):
        pair.hand_over()
    pair.finish()
    assert pair.is_moved()


def test_a_guest_that_is_lost_at_the_new_host_begins_anew_there() -> None:
    pair = Pair(live=True)
    pair.expect()
    pair.hand_over()
    pair.new.power_cut()
    assert pair.accept().state is VmState.ON
    assert pair.vmms.running == {("new", VM)}


def test_a_vm_whose_guest_cannot_be_run_is_the_new_hosts_all_the_same() -> None:
    pair = Pair(live=True)
    pair.expect()
    pair.hand_over()
    pair.vmms.power_cut("new")
    pair.new.driver.start_error = PeerUnavailable("the array is away")
    with pytest.raises(PeerUnavailable):
        pair.accept()
    pair.new.driver.start_error = WrongState("no such firmware here")
    assert pair.accept().state is VmState.OFF
    pair.finish()
    assert pair.who() == ["new"]
    assert [vm.power for vm in pair.new.told()] == [PowerState.OFF]


def _accepted_and_killed_before_the_record(pair: Pair) -> None:
    pair.expect()
    pair.hand_over()
    put = pair.new.store.vms.put

    def dies_when_it_is_on(vm: VmRecord) -> None:
        if vm.state is VmState.ON:
            raise PowerCut
        put(vm)

    pair.new.store.vms.put = dies_when_it_is_on  # type: ignore[method-assign, assignment]
    with pytest.raises(PowerCut):
        pair.accept()
    pair.new.kill()
    assert pair.vmms.running == {("new", VM)}


def test_a_late_expect_does_not_begin_anew_with_a_guest_that_runs() -> None:
    pair = Pair(live=True)
    _accepted_and_killed_before_the_record(pair)
    with pytest.raises(AlreadyExists):
        pair.expect()
    with pytest.raises(WrongState, match="not handed over"):
        pair.new.migrations.finish(VM, M1)
    assert pair.accept().state is VmState.ON
    pair.finish()
    assert pair.is_moved()


def test_a_host_that_was_taken_for_dead_ends_the_guest_that_it_accepted() -> None:
    pair = Pair(live=True)
    _accepted_and_killed_before_the_record(pair)
    pair.new.migrations.abandon(VM, M1)
    pair.old.migrations.abandon(VM, M1)
    assert pair.is_as_before()


def test_firmware_variables_go_with_the_vm() -> None:
    pair = Pair(live=False)
    packed = pack_variables(b"boot order")
    pair.old.driver.variables[VM] = packed
    pair.expect()
    handed = pair.old.hand_over(pair.vm, M1)
    pair.new.migrations.accept(VM, M1, handed.firmware_variables)
    assert pair.new.store.firmware.get(VM) == packed


@LIVE
@pytest.mark.parametrize("cut_agent", ["kill", "power"])
@pytest.mark.parametrize("step", ["expect", "hand_over", "accept", "finish", "abandon"])
def test_a_crash_at_every_write_of_a_step_leaves_a_move_that_can_be_ended(
    live: bool, cut_agent: str, step: str
) -> None:
    """The center repeats the step after the crash and goes on; or, before ``accept``, abandons."""
    order = ["expect", "hand_over", "accept", "finish"]
    before = order[: order.index(step)] if step in order else order[:2]
    cuts = 0
    for writes in range(64):
        for undo in (False, True):
            pair = Pair(live=live)
            for done in before:
                getattr(pair, done)()
            host = pair.old if step in ("hand_over", "finish", "abandon") else pair.new
            host.files.crash_after(writes)
            try:
                getattr(pair, step)()
            except PowerCut:
                cuts += 1
            else:
                assert cuts
                return
            host.kill() if cut_agent == "kill" else host.power_cut(writes)
            assert len(pair.who()) <= 1
            if step == "abandon" or (undo and step in ("expect", "hand_over")):
                pair.abandon()
                if cut_agent == "kill" or not live:
                    assert pair.is_as_before()
                assert pair.who() == ["old"]
                continue
            if live and cut_agent == "power" and step in ("expect", "hand_over"):
                continue  # memory that was lost with the power has to be waited for, or sent, anew
            getattr(pair, step)()
            for after in order[order.index(step) + 1 :]:
                getattr(pair, after)()
            assert pair.is_moved() or (live and cut_agent == "power" and pair.who() == ["new"])
    raise AssertionError("the step never ended")


def test_ended_migrations_are_kept_over_a_crash_the_newest_first() -> None:
    files = FakeFiles()
    files.make_dirs("/state")
    ended = EndedMigrations(files, "/state")
    ids = [MigrationId(random_id()) for _ in range(3)]
    ended.add(ids[0], None)
    ended.add(ids[0])
    writes = files.op_count
    ended.add(*ids[:1])
    assert files.op_count == writes
    ended.add(*ids[1:])
    again = EndedMigrations(files.after_kill(), "/state")
    assert all(one in again for one in ids)
    again.add(*[MigrationId(f"{number:032x}") for number in range(ENDED_MAX - 1)])
    assert [one in again for one in ids] == [False, False, True]
