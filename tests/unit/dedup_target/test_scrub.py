"""Scrub: it sees every record, quarantines what is damaged, keeps its place, and makes way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from arraylift.errors import Cancelled, Conflict, Corruption, PeerUnavailable
from arraylift.ids import ContainerId
from arraylift.sizes import MIB
from dedup_target import scrub_state
from dedup_target.container_format import Kind
from dedup_target.rate_limit import RateLimit
from dedup_target.scrub_state import LAPS_MAX, Figures, Period, ScrubState
from dedup_target.scrubs import Scrubs
from tests.property.test_commit_states import BACKUPS
from tests.unit.dedup_target.hand_clock import SECOND_NS, START_NS, HandClock
from tests.unit.dedup_target.scrub_stage import ScrubStage

FIRST, SECOND, THIRD = BACKUPS
DAY = 86_400


@pytest.fixture
def stage() -> Iterator[ScrubStage]:
    made = ScrubStage()
    made.send()
    yield made
    made.close()


def test_a_healthy_unit_is_read_whole_and_nothing_is_said_of_it(stage: ScrubStage) -> None:
    news = stage.run()
    sizes = [stage.files.size(stage.path(one)) for one in stage.store.containers.containers()]
    assert news.done
    assert news.containers_done == news.containers_total == len(sizes)
    figures = news.period.figures
    assert figures.bytes_read == sum(sizes)
    assert figures.records_checked == stage.store.index.totals().record_count
    assert (figures.records_damaged, figures.containers_worn, news.period.unreadable) == (0, 0, ())
    assert stage.store.all_healthy


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.NODES])
def test_a_damaged_record_is_quarantined_and_its_images_named(stage: ScrubStage, kind: Kind) -> None:
    container = stage.containers(kind)[0]
    fingerprint = stage.damage_record(container, 0)
    news = stage.run()
    assert news.period.figures.records_damaged == 1
    assert stage.store.unit.quarantine.bad_of(container) == {fingerprint}
    assert FIRST.image_id in news.period.affected_images
    with pytest.raises(Corruption):
        stage.target.read(FIRST)
    assert stage.run().period.figures.records_damaged == 0, "it is known by now"
    assert FIRST.image_id in stage.run().period.affected_images, "and still lacking"


def test_the_next_backup_heals_what_scrub_condemned(stage: ScrubStage) -> None:
    stage.damage_record(stage.containers(Kind.DATA)[0], 0)
    stage.run()
    assert not stage.verify(FIRST, max_age_seconds=DAY).whole
    stage.send(replace(FIRST, number=9))
    stage.forget_cache()
    for backup in (FIRST, SECOND, THIRD):
        assert stage.target.read(backup) == backup.disk
        assert stage.verify(backup).whole
    stage.restart()
    assert stage.target.read(FIRST) == FIRST.disk


def test_an_unreadable_container_is_named_with_the_images_that_need_it(stage: ScrubStage) -> None:
    container = stage.containers(Kind.DATA)[0]
    stage.damage_everything(container)
    news = stage.run()
    assert news.period.unreadable == (container,)
    assert news.period.figures.records_damaged > 0
    assert set(news.period.affected_images) >= {FIRST.image_id, THIRD.image_id}
    assert stage.files.exists(stage.path(container)), "what is damaged is never removed"
    stage.restart()
    with pytest.raises(Corruption):
        stage.target.read(FIRST)
    stage.send(replace(FIRST, number=9))
    assert stage.target.read(FIRST) == FIRST.disk


def test_a_container_whose_file_is_lost_is_unreadable(stage: ScrubStage) -> None:
    container = stage.containers(Kind.DATA)[0]
    stage.files.remove(stage.path(container), label="test")
    stage.forget_cache()
    assert stage.run().period.unreadable == (container,)


def test_a_place_that_is_not_mounted_condemns_nothing(stage: ScrubStage) -> None:
    for container in stage.store.containers.containers():
        stage.files.remove(stage.path(container), label="test")
    stage.files.remove("/state/units/active/unit.alu", label="test")
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        stage.run()
    assert stage.store.unit.quarantine.is_empty


def test_worn_containers_lose_nothing(stage: ScrubStage) -> None:
    first, second = stage.containers(Kind.DATA)[:2]
    stage.damage_directory(first)
    stage.files.corrupt(stage.path(second), 4096 + 8)  # in the head of a frame
    stage.forget_cache()
    news = stage.run()
    assert news.period.figures.containers_worn == 2
    assert news.period.figures.records_damaged == 0
    assert news.period.affected_images == ()
    assert stage.target.read(FIRST) == FIRST.disk


def test_damage_that_goes_away_is_none(stage: ScrubStage, monkeypatch: pytest.MonkeyPatch) -> None:
    container = stage.containers(Kind.DATA)[0]
    stage.damage_record(container, 0)
    read = stage.store.containers.read_fresh
    times: list[int] = []

    def once_bad(wanted: ContainerId):  # type: ignore[no-untyped-def]
        loaded = read(wanted)
        if wanted == container and not times:
            times.append(1)
            row = loaded.sealed.directory[0]
            stage.files.corrupt(stage.path(container), int(row["offset"]))  # the bit is back
        return loaded

    monkeypatch.setattr(stage.store.containers, "read_fresh", once_bad)
    assert stage.run().period.figures.records_damaged == 0
    assert times


def test_a_lost_key_condemns_nothing(stage: ScrubStage) -> None:
    stage.store.keys._by_id.clear()
    news = stage.run()
    assert news.period.figures.records_damaged == 0
    assert news.period.figures.containers_worn == news.containers_total


# -- the place ----------------------------------------------------------------------------------


def stopped_after(stage: ScrubStage, count: int) -> None:
    """Run, and stop after so many containers."""
    stopping, check = threading.Event(), stage.scrub._check_one
    seen: list[ContainerId] = []

    def counting(container: ContainerId) -> tuple[Figures, bool]:
        seen.append(container)
        if len(seen) == count:
            stopping.set()
        return check(container)

    stage.scrub._check_one = counting  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        stage.scrub.run(bytes_per_second_max=0, restart=False, stopping=stopping, report=lambda _news: None)
    stage.scrub._check_one = check  # type: ignore[method-assign]
    assert len(seen) == count


def test_it_goes_on_where_it_was_stopped(stage: ScrubStage) -> None:
    stopped_after(stage, 2)
    for _ in range(2):
        before = stage.scrub.news()
        assert before is not None
        assert before.containers_done == 2
        stage.restart()
    news = stage.run()
    assert news.done
    sizes = sum(stage.files.size(stage.path(one)) for one in stage.store.containers.containers())
    assert news.period.figures.bytes_read == sizes, "each was read once"


def test_a_kill_before_the_place_was_saved_repeats_work(stage: ScrubStage) -> None:
    stage.damage_record(stage.containers(Kind.DATA)[0], 0)
    stage.scrub._save = lambda: None  # type: ignore[method-assign]
    stopped_after(stage, 2)
    stage.restart()
    assert stage.scrub.news() is None
    assert not stage.store.unit.quarantine.is_empty, "what was found is kept"
    assert stage.run().done


def test_a_restarted_period_sees_all_again_and_a_new_container_waits_for_the_next(stage: ScrubStage) -> None:
    first = stage.run()
    stage.clock.pass_seconds(DAY)
    stage.send(replace(SECOND, number=8, disk=SECOND.disk[::-1], changed=None))
    new = stage.store.containers.containers()[-1]
    assert stage.scrub.seen_at(new) is None
    assert stage.scrub.seen_at(ContainerId(1)) == START_NS
    again = stage.run()
    assert again.containers_total > first.containers_total
    assert stage.scrub.seen_at(new) == START_NS + DAY * SECOND_NS
    assert stage.run(restart=True).done


def test_a_container_in_the_making_is_not_called_seen(stage: ScrubStage) -> None:
    """Its id is below those that are sealed already."""
    key = stage.store.keys.get_or_create("")
    buffer = stage.store.containers.acquire(tenant=key.tenant, key_id=key.key_id, kind=Kind.DATA)
    stage.send(replace(SECOND, number=8, disk=SECOND.disk[::-1], changed=None))
    stage.run()
    assert stage.scrub.seen_at(buffer.container_id) is None
    assert stage.scrub.seen_at(stage.store.containers.containers()[-1]) is None
    stage.store.containers.release(buffer)
    stage.run()
    assert stage.scrub.seen_at(stage.store.containers.containers()[-1]) is not None


@pytest.mark.parametrize("damage", ["lost", "damaged", "another unit's"])
def test_a_lost_place_costs_nothing_but_work(stage: ScrubStage, damage: str) -> None:
    stage.run()
    path = f"/state/scrub/{stage.store.unit.unit_id}.als"
    if damage == "lost":
        stage.files.remove(path, label="test")
    elif damage == "damaged":
        stage.files.corrupt(path, 40)
    else:
        data = scrub_state.encode(ScrubState(), "0" * 32)  # type: ignore[arg-type]
        stage.files.publish(path, [data], label="test")
    stage.restart()
    assert stage.scrub.news() is None
    assert stage.scrub.seen_at(ContainerId(1)) is None
    assert stage.run().done


def test_a_full_disk_keeps_it_from_saving_and_not_from_finding(stage: ScrubStage) -> None:
    stage.store.reserve._configured = MIB
    stage.store.reserve.tend()
    container = stage.containers(Kind.DATA)[0]
    stage.damage_record(container, 0)
    stage.files.set_capacity(stage.files.kernel.used_bytes())
    assert stage.run().period.figures.records_damaged == 1
    stage.files.set_capacity(None)
    stage.restart()
    assert stage.store.unit.quarantine.bad_of(container)


# -- who runs, and how fast ---------------------------------------------------------------------


def in_background(stage: ScrubStage, *, days: float = 28) -> None:
    stage.scrub.run_in_background(threading.Event(), period_days=days)


def test_the_background_begins_a_period_when_one_is_due(stage: ScrubStage) -> None:
    in_background(stage)
    first = stage.scrub.news()
    assert first is not None
    assert first.done
    stage.clock.pass_seconds(27 * DAY)
    in_background(stage)
    assert stage.scrub.news() == first
    stage.clock.pass_seconds(2 * DAY)
    in_background(stage)
    second = stage.scrub.news()
    assert second is not None
    assert second.period.started_at_ns == stage.clock.wall_ns()


def test_an_operator_takes_over_from_the_background_and_not_from_another(
    stage: ScrubStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    check = stage.scrub._check_one

    def slowly(container: ContainerId) -> tuple[Figures, bool]:
        reading.set()
        assert go_on.wait(30)
        return check(container)

    monkeypatch.setattr(stage.scrub, "_check_one", slowly)
    background = threading.Thread(target=in_background, args=(stage,))
    background.start()
    assert reading.wait(30)
    results: list[object] = []
    operator = threading.Thread(target=lambda: results.append(stage.run()))
    operator.start()
    while not stage.scrub._wanted.is_set():
        pass
    with pytest.raises(Conflict, match="runs"):
        stage.run()
    in_background(stage)  # leaves at once
    go_on.set()
    background.join(30)
    operator.join(30)
    assert len(results) == 1
    news = stage.scrub.news()
    assert news is not None
    assert news.done


def test_each_unit_has_its_turn_whatever_becomes_of_another(stage: ScrubStage) -> None:
    class Gone:
        def run_in_background(self, _stopping: threading.Event, *, period_days: float) -> None:
            raise PeerUnavailable(f"no unit for {period_days} days")

    unit = stage.store.unit
    gone: Any = SimpleNamespace(unit_id="0" * 32, name="gone")
    made: dict[str, Any] = {unit.unit_id: stage.scrub, gone.unit_id: Gone()}
    scrubs = Scrubs(lambda one: made[one.unit_id])
    scrubs.run_in_background([gone, unit], threading.Event(), period_days=28)
    news = stage.scrub.news()
    assert news is not None
    assert news.done


def test_the_rate_is_kept() -> None:
    clock = HandClock()
    limit = RateLimit(clock, 10 * MIB)
    assert limit.spent(20 * MIB) == pytest.approx(2)
    clock.pass_seconds(1)
    assert limit.spent(10 * MIB) == pytest.approx(2)
    clock.pass_seconds(60)
    assert limit.spent(10 * MIB) == pytest.approx(1), "idle time is not saved up"
    assert RateLimit(clock, 0).spent(1 << 40) == 0


def test_it_pays_for_what_it_reads(stage: ScrubStage, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[int] = []
    monkeypatch.setattr(RateLimit, "pay", lambda _self, size, _stopping: paid.append(size))
    assert stage.run(rate=5).period.figures.bytes_read == sum(paid)


# -- laps ---------------------------------------------------------------------------------------


def test_laps_are_bounded_and_never_claim_too_much() -> None:
    period = Period(START_NS, 10**9)
    real: dict[int, int] = {}
    for number in range(1, 3 * LAPS_MAX):
        at = START_NS + number * 61 * SECOND_NS
        real[number * 7] = at
        period = period.advanced(number * 7, at, Figures(), unreadable=False)
        assert len(period.laps) <= LAPS_MAX
    for container, at in real.items():
        seen = period.seen_at(container)
        assert seen is not None
        assert at - 12 * 61 * SECOND_NS <= seen <= at
    assert period.seen_at(3 * LAPS_MAX * 7) is None
    for number in range(3 * LAPS_MAX, 5 * LAPS_MAX):  # a clock that jumps to and fro
        at = START_NS + (number % 2) * DAY * SECOND_NS
        period = period.advanced(number * 7, at, Figures(), unreadable=False)
        assert len(period.laps) <= LAPS_MAX
        found = period.seen_at(number * 7)
        assert found is not None
        assert found <= at
    state = ScrubState(period).begun(START_NS, 5)
    assert scrub_state.decode(scrub_state.encode(state, "0" * 32), "0" * 32) == state  # type: ignore[arg-type]
