"""A unit opens in the right order, mends its index, and says what it found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import Corruption, NotFound, WrongState
from arraylift.ids import ContainerId, Fingerprint
from dedup_target.container_format import SealedContainer
from dedup_target.container_store import name_of
from dedup_target.key_store import TenantKey
from dedup_target.manifest_format import ImageManifest
from dedup_target.rebuild import DamageMark, Progress
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store
from tests.unit.dedup_target.material import Segment, append, grant, make_segments, manifest

RECORDS = 20


class Stage:
    """A target's state directory and what was stored in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()
        self.key = self.unit.keys.get_or_create("")
        self.stored: list[tuple[SealedContainer, list[Segment]]] = []

    def store(self, segments: list[Segment], *, indexed: bool = True) -> SealedContainer:
        containers = self.unit.containers
        buffer = containers.acquire(tenant=self.key.tenant, key_id=self.key.key_id, kind=1)  # type: ignore[arg-type]
        append(buffer, segments)
        sealed = containers.seal(buffer)
        containers.release(buffer)
        if indexed:
            self.unit.index.add_containers([sealed])
        self.stored.append((sealed, segments))
        return sealed

    def some(self, count: int = 3) -> None:
        first = len(self.stored)
        for seed in range(first, first + count):
            self.store(make_segments(RECORDS, seed=seed))

    def open(self, progress: Progress | None = None) -> None:
        self.target = Store(RealFiles(), str(self.path), progress=progress)
        self.unit = self.target.unit

    def close(self) -> None:
        self.target.close()

    def reopen(self) -> StorageUnit:
        self.close()
        self.open()
        return self.unit

    @property
    def index(self) -> Path:
        return self.path / "index" / self.unit.unit_id

    def container_path(self, container: ContainerId) -> Path:
        return self.path / "units/active" / name_of(container)

    def check(self) -> None:
        """Every record is found and is what was stored; the index holds nothing else."""
        known = {}
        for _, segments in self.stored:
            known.update({segment.fingerprint: segment.stored for segment in segments})
        locators = self.unit.locate(self.key.tenant, list(known))
        for locator, stored in zip(locators, known.values(), strict=True):
            assert bytes(self.unit.containers.read_record(locator).data) == stored
        assert self.unit.index.count() == len(known)
        assert self.unit.index.indexed_containers() == set(self.unit.containers.containers())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "state")
    yield made
    made.close()


def _image(key: TenantKey, number: int, root: bytes) -> ImageManifest:
    return replace(manifest(number), tenant=key.tenant, key_id=key.key_id, root=Fingerprint(root))


def test_what_was_stored_is_there_after_a_restart(stage: Stage) -> None:
    stage.some()
    _, segments = stage.stored[0]
    image = _image(stage.key, 1, segments[0].fingerprint)
    stage.unit.manifests.publish(image)
    stage.target.transfers.create(grant()).close()
    unit_id, transfer_grant = stage.unit.unit_id, stage.target.grant_for(grant().transfer_id)
    token = stage.target.lock_token
    unit = stage.reopen()
    stage.check()
    assert unit.manifests.all() == [image]
    assert unit.unit_id == unit_id
    assert stage.target.grant_for(grant().transfer_id) == transfer_grant
    assert stage.target.lock_token == token + 1
    assert stage.target.transfers.list() == [grant().transfer_id]
    assert unit.report.index.rebuilt == ""
    assert unit.report.index.containers_added == unit.report.roots_missing == 0


def test_one_process_at_a_time(stage: Stage) -> None:
    with pytest.raises(WrongState, match="in use"):
        Store(RealFiles(), str(stage.path))


def test_a_failed_start_gives_everything_back(stage: Stage) -> None:
    stage.some(1)
    stage.close()
    wrapping = stage.path / "wrapping.key"
    wrapping.rename(stage.path / "away")
    with pytest.raises(WrongState, match=r"wrapping\.key"):
        Store(RealFiles(), str(stage.path))
    (stage.path / "away").rename(wrapping)
    stage.open()
    stage.check()


def test_containers_that_the_index_missed_are_added(stage: Stage) -> None:
    stage.some(2)
    stage.store(make_segments(RECORDS, seed=50), indexed=False)
    unit = stage.reopen()
    assert unit.report.index.containers_added == 1
    assert unit.report.index.rebuilt == ""
    stage.check()


def test_a_removal_that_is_killed_leaves_no_quarantine_that_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.some(2)
    sealed, segments = stage.stored.pop()
    unit, tenant = stage.unit, stage.key.tenant
    unit.condemn_records(sealed.container_id, tenant, [segments[0].fingerprint], "bad")

    def killed(_: ContainerId) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unit.quarantine, "drop_container", killed)
    with pytest.raises(KeyboardInterrupt):
        unit.remove_container(sealed.container_id)
    assert stage.reopen().quarantine.is_empty
    assert stage.target.all_healthy
    stage.check()


def test_an_index_that_is_gone_is_made_anew(stage: Stage) -> None:
    stage.some(40)
    stage.close()
    shutil.rmtree(stage.index)
    steps: list[tuple[int, int]] = []
    stage.open(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(16, 40), (32, 40), (40, 40)]
    stage.check()


def test_an_index_from_before_units_had_their_own_is_dropped(stage: Stage) -> None:
    stage.some(2)
    stage.close()
    stage.index.rename(stage.path / "old")
    shutil.rmtree(stage.path / "index")
    (stage.path / "old").rename(stage.path / "index")
    stage.open()
    assert [path.name for path in (stage.path / "index").iterdir()] == [stage.unit.unit_id]
    stage.check()


def test_an_index_without_its_log_is_brought_up(stage: Stage) -> None:
    stage.some(2)
    stage.reopen()
    stage.some(3)
    shutil.copytree(stage.index, stage.path / "crashed")
    stage.close()
    for log in (stage.path / "crashed").glob("*.log"):
        log.unlink()
    shutil.rmtree(stage.index)
    (stage.path / "crashed").rename(stage.index)
    stage.open()
    assert stage.unit.report.index.containers_added == 3
    stage.check()


@pytest.mark.parametrize("removed", [False, True])
def test_an_older_index_is_brought_up_or_made_anew(stage: Stage, removed: bool) -> None:
    stage.some(3)
    stage.close()
    shutil.copytree(stage.index, stage.path / "older")
    stage.open()
    stage.store(stage.stored[0][1])  # the same content again, in a newer container
    stage.some(2)
    if removed:
        sealed, _ = stage.stored.pop(0)
        stage.unit.remove_container(sealed.container_id)
        assert stage.unit.containers.containers() == [2, 3, 4, 5, 6]
    stage.check()
    stage.close()
    shutil.rmtree(stage.index)
    (stage.path / "older").rename(stage.index)
    stage.open()
    report = stage.unit.report.index
    assert bool(report.rebuilt) is removed
    assert report.containers_gone == ((ContainerId(1),) if removed else ())
    stage.check()


def test_a_damaged_table_is_noticed_and_the_next_start_rebuilds(stage: Stage) -> None:
    stage.some(30)
    stage.close()
    tables = sorted((stage.index).glob("*.sst"), key=lambda path: path.stat().st_size)
    content = bytearray(tables[-1].read_bytes())
    content[300] ^= 1
    tables[-1].write_bytes(content)
    stage.open()
    if not stage.unit.report.index.rebuilt:  # not met at start: a read meets it
        with pytest.raises(Corruption, match="it rebuilds the index"):
            stage.check()
        assert stage.reopen().report.index.rebuilt
    stage.check()
    assert stage.reopen().report.index.rebuilt == ""


@pytest.mark.parametrize("met_by", ["roots", "quarantine"])
def test_damage_that_the_start_itself_meets_is_mended_by_it(stage: Stage, met_by: str) -> None:
    """Opening reads no entries; looking at roots and quarantined records does."""
    stage.some(40)
    victims = [(sealed, segments[0].fingerprint) for sealed, segments in stage.stored]
    for number, (sealed, fingerprint) in enumerate(victims):
        if met_by == "roots":
            stage.unit.manifests.publish(_image(stage.key, number + 1, fingerprint))
        else:
            stage.unit.quarantine.add(sealed.container_id, stage.key.tenant, [fingerprint], "for the test")
    stage.close()
    (table,) = (path for path in stage.index.glob("*.sst") if path.stat().st_size > 20_000)
    content = bytearray(table.read_bytes())
    for at in range(300, 40_000, 4096):
        content[at] ^= 1
    table.write_bytes(content)
    stage.open()
    assert stage.unit.report.index.rebuilt
    assert stage.target.in_doubt
    if met_by == "quarantine":
        assert stage.unit.index.count() == 40 * (RECORDS - 1)
    else:
        assert stage.unit.report.roots_missing == 0
        stage.check()
    assert stage.reopen().report.index.rebuilt == "", "once"


def test_quarantined_records_are_absent_until_they_come_again(stage: Stage) -> None:
    stage.some(1)
    (sealed, segments) = stage.stored[0]
    bad = segments[3].fingerprint
    before = stage.unit.quarantine.generation
    stage.unit.condemn_records(sealed.container_id, stage.key.tenant, [bad], "its bytes are wrong")
    assert stage.unit.quarantine.generation > before
    for _ in range(2):
        assert stage.unit.contains(stage.key.tenant, bad).tolist() == [False]
        assert stage.unit.contains(stage.key.tenant, segments[4].fingerprint).tolist() == [True]
        with pytest.raises(Corruption, match="its bytes are wrong"):
            stage.unit.locate(stage.key.tenant, [bad])
        stage.reopen()
    stage.close()
    shutil.rmtree(stage.index)
    stage.open()
    assert stage.unit.contains(stage.key.tenant, bad).tolist() == [False]
    again = stage.store([segments[3]])
    stage.unit.condemn_records(sealed.container_id, stage.key.tenant, [bad], "told twice")
    assert stage.unit.locate(stage.key.tenant, [bad])[0].container == again.container_id
    stage.check()


def test_a_quarantined_copy_does_not_hide_a_healthy_one(stage: Stage) -> None:
    segments = make_segments(2)
    stage.store(segments)
    newer = stage.store(segments)
    stage.unit.condemn_records(newer.container_id, stage.key.tenant, [segments[0].fingerprint], "bad")
    stage.close()
    shutil.rmtree(stage.index)
    stage.open()
    stage.check()


def test_a_crash_after_quarantine_and_before_the_index_heals_at_start(stage: Stage) -> None:
    stage.some(1)
    (sealed, segments) = stage.stored[0]
    bad = segments[3].fingerprint
    stage.unit.quarantine.add(sealed.container_id, stage.key.tenant, [bad], "bad")
    unit = stage.reopen()
    assert unit.report.index.records_forgotten == 1
    assert unit.contains(stage.key.tenant, bad).tolist() == [False]


def test_a_damaged_quarantine_file_is_made_anew(stage: Stage) -> None:
    stage.some(1)
    (sealed, segments) = stage.stored[0]
    path = stage.container_path(sealed.container_id)
    content = bytearray(path.read_bytes())
    content[int(sealed.directory["offset"][3])] ^= 1
    path.write_bytes(content)
    stage.unit.condemn_records(sealed.container_id, stage.key.tenant, [segments[3].fingerprint], "bad")
    (quarantine,) = (stage.path / "units/active/quarantine").iterdir()
    quarantine.write_bytes(b"rubbish")
    unit = stage.reopen()
    assert unit.quarantine.bad_of(sealed.container_id) == {segments[3].fingerprint}
    assert unit.contains(stage.key.tenant, segments[3].fingerprint).tolist() == [False]


def test_containers_that_cannot_be_read_are_told_and_block_nothing(stage: Stage) -> None:
    stage.some(2)
    sealed, segments = stage.stored.pop()
    stage.close()
    stage.container_path(sealed.container_id).write_bytes(b"rubbish")
    shutil.rmtree(stage.index)
    stage.open()
    assert stage.unit.report.index.containers_damaged == (sealed.container_id,)
    assert stage.unit.locate(stage.key.tenant, [stage.stored[0][1][0].fingerprint])
    with pytest.raises(Corruption, match="no container holds it"):
        stage.unit.locate(stage.key.tenant, [segments[0].fingerprint])


def test_an_image_whose_root_is_lost_is_told(stage: Stage) -> None:
    stage.unit.manifests.publish(_image(stage.key, 1, b"x" * 32))
    assert stage.reopen().report.roots_missing == 1


def test_a_lost_superblock_or_key_is_told(stage: Stage) -> None:
    stage.some(1)
    stage.unit.manifests.publish(_image(stage.key, 1, b"x" * 32))
    stage.close()
    superblock = stage.path / "units/active/unit.alu"
    kept = superblock.read_bytes()
    superblock.unlink()
    with pytest.raises(Corruption, match=r"unit\.alu is missing"):
        Store(RealFiles(), str(stage.path))
    superblock.write_bytes(kept)
    (stage.path / f"units/active/keys/{stage.key.tenant:016x}.alk").unlink()
    stage.open()
    assert stage.unit.report.damaged_manifests == 1
    with pytest.raises(NotFound):
        stage.unit.fingerprint_key(stage.key.tenant)


def test_the_damage_mark_is_durable_and_goes_away(tmp_path: Path) -> None:
    mark = DamageMark(RealFiles(), str(tmp_path / "mark"))
    assert not mark.is_set()
    mark.set("why")
    mark.set("again")
    assert (tmp_path / "mark").read_text() == "why"
    assert DamageMark(RealFiles(), str(tmp_path / "mark")).is_set()
    mark.clear()
    mark.clear()
    assert not mark.is_set()


def test_a_crash_in_the_middle_of_a_rebuild_starts_it_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.some(20)
    stage.close()
    (stage.path / f"index/{stage.unit.unit_id}.damaged").write_bytes(b"a read met damage")

    def stop(done: int, _total: int) -> None:
        raise KeyboardInterrupt(done)

    with pytest.raises(KeyboardInterrupt):
        Store(RealFiles(), str(stage.path), progress=stop)
    stage.open()
    assert stage.unit.report.index.rebuilt == ""
    assert stage.unit.report.index.containers_added == 4
    stage.check()
