"""The inventory as it lives: holds, and watchers that fall behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.errors import NotFound, Overloaded, PeerUnavailable
from arraylift.vm.types import PowerState
from tests.unit.vcenter.material import Center, make_vm, report, vm_id_of
from vcenter import event_log
from vcenter.event_log import Event, EventLog
from vcenter.live_inventory import HOLD_SECONDS, SILENCE_SECONDS
from vcenter.watch import EVENT_PARTS_MAX, SilenceWatch, Watchers, pieces

ONE = vm_id_of(1)


@pytest.fixture
def center(tmp_path: Path) -> Iterator[Center]:
    center = Center(tmp_path / "state")
    yield center
    center.store.close()


def test_an_answer_is_held_until_a_report_agrees(center: Center) -> None:
    center.add_hosts("h1")
    center.live.report(report("h1", 1, make_vm(1)))
    on = make_vm(1, power=PowerState.ON, revision=2)
    center.live.apply_vm(on)
    center.live.report(report("h1", 2, make_vm(1)))
    assert center.live.now.vm(ONE) == on
    center.live.report(report("h1", 3, on))  # agrees: no longer held
    center.live.report(report("h1", 4))
    with pytest.raises(NotFound):
        center.live.now.vm(ONE)


def test_an_answer_from_before_a_move_does_not_bring_the_vm_back(center: Center) -> None:
    center.add_hosts("h1", "h2")
    there = make_vm(1, host="h2", revision=3)
    center.live.apply_vm(make_vm(1, revision=2))
    center.live.apply_vm(there)
    center.live.depart(ONE, "h1")
    for sequence, told in ((1, [make_vm(1, revision=2)]), (2, [])):
        center.live.report(report("h1", sequence, *told))
        assert center.live.now.vm(ONE) == there
    center.live.apply_vm(make_vm(1, revision=2))  # answered late
    assert center.live.now.vm(ONE) == there
    center.live.departed(ONE, "h1")
    assert center.live.now.vm(ONE) == there


def test_an_answer_is_held_no_longer_than_it_may_be(center: Center) -> None:
    center.add_hosts("h1")
    center.live.report(report("h1", 1, make_vm(1)))
    center.live.apply_removal("h1", ONE)
    center.clock.seconds += HOLD_SECONDS - 1
    center.live.report(report("h1", 2, make_vm(1)))
    assert ONE not in center.live.now.shown
    center.clock.seconds += 1
    center.live.report(report("h1", 3, make_vm(1)))
    assert ONE in center.live.now.shown


def test_an_older_answer_does_not_undo_a_newer_one(center: Center) -> None:
    center.add_hosts("h1")
    newer = make_vm(1, power=PowerState.ON, revision=5)
    center.live.apply_vm(newer)
    center.live.apply_vm(make_vm(1, revision=4))
    assert center.live.now.vm(ONE) == newer


def test_a_listing_that_a_report_overtook_is_left_aside(center: Center) -> None:
    center.add_hosts("h1")
    center.live.report(report("h1", 1, make_vm(1)))

    def fetch(_host: object) -> list[object]:
        center.live.report(report("h1", 2, make_vm(1), make_vm(2)))
        return []

    center.live.synchronize("h1", fetch)  # type: ignore[arg-type]
    assert len(center.live.now.shown) == 2


def test_an_answer_of_a_removed_host_changes_nothing(center: Center) -> None:
    center.add_hosts("h1")
    center.live.remove_host("h1")
    with pytest.raises(NotFound):
        center.live.apply_vm(make_vm(1))
    center.live.apply_removal("h1", ONE)
    assert not center.live.now.shown


def test_silence_is_counted_to_the_second_and_marked_once(center: Center) -> None:
    center.add_hosts("h1")
    center.live.report(report("h1", 1, make_vm(1)))
    center.clock.seconds += SILENCE_SECONDS - 0.001
    assert center.live.mark_silent() == []
    center.clock.seconds += 0.001
    assert center.live.mark_silent() == ["h1"]
    assert center.live.mark_silent() == []
    with pytest.raises(PeerUnavailable):
        center.live.locate(ONE)


def test_the_silence_watch_shows_nothing_unstored_and_outlives_a_failed_store(center: Center) -> None:
    center.add_hosts("h1")
    center.failpoints.arm("inventory.commit.before=eio")
    center.clock.seconds += SILENCE_SECONDS
    watching = SilenceWatch(center.live)
    try:
        center.live.wait_for_change(center.live.now.revision, 2.5)
        assert watching._thread.is_alive()
        assert not center.live.now.host("h1").lost  # what could not be stored is not shown
    finally:
        watching.close()
    assert not watching._thread.is_alive()


# -- watching -----------------------------------------------------------------------------------


def test_a_watcher_that_falls_behind_is_ended(center: Center, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "EVENTS_MAX", 3)
    center.add_hosts("h1")
    center.live.report(report("h1", 1, make_vm(1)))
    following = Watchers(center.live).follow(0, lambda: True)
    assert next(following).listing
    for sequence in range(2, 6):
        center.live.report(report("h1", sequence, make_vm(1, revision=sequence)))
    with pytest.raises(Overloaded, match="too slow") as caught:
        next(following)
    assert "begins with a listing" in caught.value.next_step


def test_the_event_log_is_bounded_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "VMS_MAX", 4)
    log = EventLog(10)
    for revision in (11, 12, 13):
        log.add(Event(revision, (make_vm(1, revision=revision), make_vm(revision)), ()))
    assert log.since(10, 13) is None
    assert log.since(14, 13) is None
    found = log.since(11, 13)
    assert found is not None
    assert {vm.vm_id: vm.revision for vm in found.vms}[ONE] == 13
    log.add(Event(14, (), (ONE,)))
    last = log.since(12, 20)
    assert last is not None
    assert (last.gone, last.revision) == ((ONE,), 20)
    assert ONE not in {vm.vm_id for vm in last.vms}
    assert log.since(20, 20) == Event(20, (), ())


@pytest.mark.parametrize(("vms", "gone"), [(0, 0), (1, 1), (700, 10), (10, 5_000), (3_000, 3_000)])
def test_pieces_fit_a_message_and_lose_nothing(vms: int, gone: int) -> None:
    event = Event(
        7, tuple(map(make_vm, range(vms))), tuple(vm_id_of(one) for one in range(gone)), listing=True
    )
    found = list(pieces(event))
    assert [vm for piece in found for vm in piece.vms] == list(event.vms)
    assert [one for piece in found for one in piece.gone] == list(event.gone)
    assert [piece.revision for piece in found] == [0] * (len(found) - 1) + [7]
    assert [piece.listing for piece in found] == [True] + [False] * (len(found) - 1)
    for piece in found:
        parts = sum(3 + len(vm.config.disks) for vm in piece.vms) + len(piece.gone)
        assert parts <= EVENT_PARTS_MAX


# -- speed --------------------------------------------------------------------------------------
