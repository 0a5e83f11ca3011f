"""Verdicts: right whoever saw the damage first, and read no more than they must."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.errors import Cancelled, NotFound, Overloaded
from arraylift.ids import ContainerId, ImageId
from arraylift.sizes import MIB, spans_of
from dedup_target.container_format import Kind
from dedup_target.verify_image import WALKS_MAX, Walk
from tests.property.test_commit_states import BACKUPS
from tests.unit.dedup_target.hand_clock import SECOND_NS, START_NS
from tests.unit.dedup_target.scrub_stage import ScrubStage

FIRST, SECOND, THIRD = BACKUPS
DAY = 86_400


@pytest.fixture
def stage() -> Iterator[ScrubStage]:
    made = ScrubStage()
    made.send()
    yield made
    made.close()


def test_a_whole_image_is_read_once_and_then_known(stage: ScrubStage) -> None:
    first = stage.verify(FIRST)
    assert first.whole
    assert first.bytes_read > 0
    assert (first.damaged_span_count, first.damaged_spans) == (0, ())
    assert first.oldest_check_at_ns == START_NS
    stage.clock.pass_seconds(10)
    assert stage.verify(FIRST, max_age_seconds=60).bytes_read == 0
    assert stage.verify(THIRD, max_age_seconds=60).bytes_read == 0, "the same containers"
    second = stage.verify(SECOND, max_age_seconds=60)
    assert 0 < second.bytes_read < first.bytes_read
    assert second.oldest_check_at_ns == START_NS
    assert stage.verify(FIRST).bytes_read == first.bytes_read, "without an age: all of it, now"
    stage.clock.pass_seconds(61)
    assert stage.verify(FIRST, max_age_seconds=60).bytes_read == first.bytes_read


def test_after_a_scrub_nothing_is_read(stage: ScrubStage) -> None:
    stage.run()
    stage.clock.pass_seconds(DAY)
    for backup in BACKUPS:
        verdict = stage.verify(backup, max_age_seconds=2 * DAY)
        assert (verdict.whole, verdict.bytes_read, verdict.containers_total) == (True, 0, 0)
        assert verdict.oldest_check_at_ns == START_NS
    stage.restart()
    assert stage.verify(FIRST, max_age_seconds=2 * DAY).bytes_read == 0, "its place is durable"


def test_only_what_scrub_has_not_seen_is_read(stage: ScrubStage) -> None:
    stage.run()
    changed = bytearray(SECOND.disk)
    changed[MIB : MIB + 100] = b"x" * 100
    stage.send(replace(SECOND, number=8, disk=bytes(changed), changed=frozenset({1})))
    new = stage.store.containers.containers()[-2:]
    verdict = stage.verify(replace(SECOND, number=8), max_age_seconds=DAY)
    assert verdict.whole
    assert verdict.bytes_read == sum(stage.files.size(stage.path(one)) for one in new)


@pytest.mark.parametrize("seen_by_scrub", [False, True])
@pytest.mark.parametrize("kind", [Kind.DATA, Kind.NODES])
def test_damage_is_told_by_its_spans(stage: ScrubStage, kind: Kind, seen_by_scrub: bool) -> None:
    container = stage.containers(kind)[0]
    stage.damage_record(container, 0)
    if seen_by_scrub:
        stage.run()
    verdict = stage.verify(FIRST, max_age_seconds=DAY)
    assert not verdict.whole
    assert verdict.damaged_span_count == len(verdict.damaged_spans) > 0
    bad = set(verdict.damaged_spans)
    for span in range(spans_of(len(FIRST.disk))):
        low = span * MIB
        image = stage.images.view(stage.store.unit, stage.store.manifests.get(FIRST.image_id))
        length = min(MIB, len(FIRST.disk) - low)
        try:
            read = b"".join(
                bytes(piece.data) or bytes(piece.zero_bytes)
                for piece in stage.images.read(image, low, length)
            )
        except Exception:  # noqa: BLE001 - any error, and no wrong byte
            assert span in bad
        else:
            assert span not in bad
            assert read == FIRST.disk[low : low + length]
    again = stage.verify(FIRST, max_age_seconds=DAY)
    assert again.damaged_spans == verdict.damaged_spans
    assert again.bytes_read == 0


def test_an_image_whose_root_is_lost_has_lost_everything(stage: ScrubStage) -> None:
    manifest = stage.store.manifests.get(FIRST.image_id)
    (locator,) = stage.store.index.get_many(manifest.tenant, [manifest.root])
    assert locator is not None
    directory = stage.store.containers.read_directory(locator.container).directory
    stage.damage_record(locator.container, directory["fingerprint"].tolist().index(manifest.root))
    verdict = stage.verify(FIRST)
    assert verdict.damaged_span_count == spans_of(len(FIRST.disk))


def test_a_healthy_image_beside_a_damaged_one_is_whole(stage: ScrubStage) -> None:
    noise = bytes(range(256)) * 8192
    stage.send(replace(FIRST, number=8, disk=noise))
    stage.damage_record(stage.containers(Kind.DATA)[0], 0)
    stage.run()
    assert not stage.verify(FIRST, max_age_seconds=DAY).whole
    assert stage.verify(replace(FIRST, number=8), max_age_seconds=DAY).whole


def test_what_is_condemned_while_the_tree_is_walked_counts(
    stage: ScrubStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run()
    container = stage.containers(Kind.DATA)[0]
    row = stage.store.containers.read_directory(container).directory[0]
    walk = Walk.run
    walks: list[Walk] = []
    stage.send(replace(FIRST, number=8, disk=FIRST.disk[::-1]))  # unseen: no verdict without a walk

    def walk_and_lose(self: Walk) -> Walk:
        done = walk(self)
        if not walks:
            tenant = stage.store.keys.by_name("").tenant
            stage.store.unit.condemn_records(container, tenant, [row["fingerprint"].tobytes()], "test")
        walks.append(done)
        return done

    monkeypatch.setattr(Walk, "run", walk_and_lose)
    assert not stage.verify(FIRST, max_age_seconds=DAY).whole
    assert len(walks) == 2


def test_damage_that_scrub_meets_during_the_short_cut_counts(
    stage: ScrubStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.run()
    stage.clock.pass_seconds(DAY)
    stage.damage_record(stage.containers(Kind.DATA)[0], 0)
    listed = stage.store.containers.containers

    def list_and_scrub() -> list[ContainerId]:
        monkeypatch.undo()
        stage.run()
        return listed()

    monkeypatch.setattr(stage.store.containers, "containers", list_and_scrub)
    assert not stage.verify(FIRST, max_age_seconds=60).whole


def test_a_unit_that_changes_at_every_look_gives_no_verdict(
    stage: ScrubStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = Walk.run
    walks: list[Walk] = []

    def walk_and_lose(self: Walk) -> Walk:
        done = walk(self)
        walks.append(done)
        if len(walks) == WALKS_MAX:
            stage.damage_record(stage.containers(Kind.DATA)[0], 0)
            stage.scrub.check(stage.containers(Kind.DATA)[0])
        else:
            with stage.store.unit.quarantine.changing():
                """As a collection does."""
        return done

    monkeypatch.setattr(Walk, "run", walk_and_lose)
    with pytest.raises(Overloaded, match="changed during each"):
        stage.verify(FIRST)
    monkeypatch.undo()
    assert not stage.verify(FIRST).whole


def test_a_time_that_has_not_come_yet_is_no_check(stage: ScrubStage) -> None:
    stage.clock.lie_ns = DAY * SECOND_NS
    stage.run()
    stage.clock.lie_ns = 0
    assert stage.verify(FIRST, max_age_seconds=DAY).bytes_read > 0


def test_unknown_images_and_a_caller_who_leaves(stage: ScrubStage) -> None:
    with pytest.raises(NotFound):
        stage.verify(replace(FIRST, number=77))
    gone = threading.Event()
    gone.set()
    with pytest.raises(Cancelled):
        stage.verifier.verify(
            ImageId(FIRST.image_id), max_age_seconds=0, cancelled=gone, report=lambda _verdict: None
        )
