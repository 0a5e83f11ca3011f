"""The power is cut at every step of seal, index, publish, remove: what was promised is there.

The index under test is the one in memory; what of it is "on disk" is what its last batch
left, or an older batch's, or nothing: the start must cope with each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from arraylift.durable import Files
from arraylift.errors import AlreadyExists
from arraylift.ids import ContainerId, Fingerprint, ImageId
from dedup_target.container_format import Kind
from dedup_target.segment_index import SegmentIndex
from dedup_target.storage_unit import StorageUnit
from tests.fakes.disk import FakeFiles, PowerCut, every_power_cut
from tests.fakes.index import MemorySegmentIndex
from tests.unit.dedup_target.material import Segment, append, make_segments, manifest, open_unit

STATES_MAX = 24


class IndexDisk:
    """Where the index in memory keeps what survives; an IndexOpener."""

    def __init__(self, found: MemorySegmentIndex) -> None:
        self.batches = [found]
        """What was durable after each batch, oldest first."""

    def open(self) -> SegmentIndex:
        index = self.batches[-1].copy()
        index._on_batch = lambda changed: self.batches.append(changed.copy())
        return index

    def destroy(self) -> None:
        self.batches.append(MemorySegmentIndex())

    def open_next(self) -> SegmentIndex:
        self._next = MemorySegmentIndex()
        return self._next

    def switch(self) -> None:
        self.batches.append(self._next.copy())

    def destroy_other(self) -> None:
        """It was never on disk."""


@dataclass
class Notes:
    """What a run was told, and may rely on."""

    disk: IndexDisk = field(default_factory=lambda: IndexDisk(MemorySegmentIndex()))
    content: dict[ImageId, list[Segment]] = field(default_factory=dict)
    acknowledged: set[ImageId] = field(default_factory=set)
    removing: set[ImageId] = field(default_factory=set)
    newest_container: int = 0


def _store_image(unit: StorageUnit, notes: Notes, number: int, segments: list[Segment]) -> list[ContainerId]:
    """One backup by law 1: data, nodes, index, manifest."""
    key, containers, sealed = unit.keys.get_or_create(""), unit.containers, []
    for kind, part in ((Kind.DATA, segments[:-1]), (Kind.NODES, segments[-1:])):
        buffer = containers.acquire(tenant=key.tenant, key_id=key.key_id, kind=kind)
        notes.newest_container = max(notes.newest_container, buffer.container_id)
        append(buffer, part)
        sealed.append(containers.seal(buffer))
        containers.release(buffer)
    unit.index.add_containers(sealed)
    root = Fingerprint(segments[-1].fingerprint)
    image = replace(manifest(number, root=root), tenant=key.tenant, key_id=key.key_id)
    notes.content[image.image_id] = segments
    unit.manifests.publish(image)
    notes.acknowledged.add(image.image_id)
    return [one.container_id for one in sealed]


def _run(files: Files, notes: Notes) -> None:
    unit = open_unit(files, "/state", opener=notes.disk)
    first = make_segments(5, seed=1)
    old = _store_image(unit, notes, 1, first)
    # The second image shares three records; they lie twice, and the newer copy counts.
    _store_image(unit, notes, 2, [*first[1:4], *make_segments(2, seed=2)])
    unit.condemn_records(old[0], unit.keys.get_or_create("").tenant, [first[0].fingerprint], "test")
    notes.removing.add(manifest(1).image_id)
    unit.manifests.remove(manifest(1).image_id)
    notes.acknowledged.discard(manifest(1).image_id)
    for container in old:
        unit.remove_container(container)
    _store_image(unit, notes, 3, make_segments(3, seed=3))
    unit.close()


def _check(files: FakeFiles, index: MemorySegmentIndex, notes: Notes, where: str) -> set[bytes]:
    """Open what a crash left; returns the fingerprints that are present."""
    unit = open_unit(files, "/state", opener=IndexDisk(index))
    images = {image.image_id: image for image in unit.manifests.all()}
    assert unit.manifests.damaged == [], where
    assert notes.acknowledged - notes.removing <= images.keys(), where
    for image_id, image in images.items():
        segments = notes.content[image_id]
        condemned = unit.quarantine.reason(image.tenant, segments[0].fingerprint) != ""
        readable = segments[1:] if condemned else segments
        locators = unit.locate(image.tenant, [segment.fingerprint for segment in readable])
        for locator, segment in zip(locators, readable, strict=True):
            assert bytes(unit.containers.read_record(locator).data) == segment.stored, where
            loaded = unit.containers.read_container(locator.container)
            assert loaded.view(locator.offset, locator.stored_bytes) == segment.stored, where
    assert unit.index.indexed_containers() == set(unit.containers.containers()), where
    present = {bytes(fingerprint) for _, fingerprint, _ in unit.index.entries()}
    key = unit.keys.get_or_create("")
    buffer = unit.containers.acquire(tenant=key.tenant, key_id=key.key_id, kind=Kind.DATA)
    assert buffer.container_id > max(
        notes.newest_container if images else 0, *unit.containers.containers(), 0
    ), where
    unit.close()
    return present


def _found_indexes(disk: IndexDisk) -> Iterator[tuple[str, MemorySegmentIndex]]:
    yield "index as it was", disk.batches[-1]
    yield "index lost", MemorySegmentIndex()
    if len(disk.batches) > 2:
        yield "index of long ago", disk.batches[len(disk.batches) // 2]


def test_every_power_cut_leaves_published_images_whole() -> None:
    notes = Notes()
    cuts = states = 0

    def run(files: FakeFiles) -> None:
        notes.__init__()  # type: ignore[misc]
        _run(files, notes)

    for cut, files in every_power_cut(run, states_max=STATES_MAX):
        cuts, states = max(cuts, cut), states + 1
        presents = []
        for name, index in _found_indexes(notes.disk):
            machine = next(iter(files.post_crash_states(maximum=1)))  # each start on its own copy of the disk
            presents.append(_check(machine, index.copy(), notes, f"cut {cut}, {name}: {files.story}"))
        assert all(present == presents[0] for present in presents), f"cut {cut}: {files.story}"
    assert cuts > 60
    assert states > cuts
    assert notes.acknowledged == {manifest(2).image_id, manifest(3).image_id}


def test_a_killed_process_then_a_power_cut_loses_nothing() -> None:
    """What the next start relies on must be durable, though it was the page cache that showed it."""
    notes = Notes()
    reference = FakeFiles()
    _run(reference, notes)
    for cut in range(reference.op_count):
        notes = Notes()
        files = FakeFiles()
        files.crash_after(cut)
        with contextlib.suppress(PowerCut):
            _run(files, notes)
        again = files.after_kill()
        _next_life(again, notes)
        for state in again.post_crash_states(maximum=4):
            _check(state, notes.disk.batches[-1].copy(), notes, f"kill at {cut}: {state.story}")


def _next_life(files: FakeFiles, notes: Notes) -> None:
    unit = open_unit(files, "/state", opener=notes.disk)
    shown = {image.image_id for image in unit.manifests.all()}
    try:
        _store_image(unit, notes, 9, make_segments(4, seed=9))
    except AlreadyExists as error:
        raise AssertionError("image 9 is new") from error
    notes.acknowledged |= shown
    unit.close()
