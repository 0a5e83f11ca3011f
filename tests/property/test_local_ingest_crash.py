"""The power is cut at every step of a file that is written, changed and composed: the start after it
finds each image whole or not at all, nothing of a call that did not end, and the same calls then work."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest

from arraylift.durable import Files
from arraylift.errors import ArrayliftError
from arraylift.ids import ImageId, TransferId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.sizes import KIB, MIB
from dedup_target.local_ingest import FileOrder, FilePatch, LocalIngest
from dedup_target.manifest_format import ImageManifest
from tests.fakes.disk import FakeFiles, PowerCut
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import Target
from tests.property.test_target_storage_crash import IndexDisk

STRIDE = 10
"""The default run tries one of so many primitive changes, from a place that it draws."""


@dataclass(frozen=True)
class Call:
    """One call, and the bytes of what it makes."""

    order: FileOrder
    patches: list[FilePatch]
    plain: bytes

    @property
    def image_id(self) -> ImageId:
        return ImageId(self.order.transfer_id)


def _calls() -> list[Call]:
    noise = np.random.default_rng(5).bytes
    first = noise(MIB) + bytes(MIB) + noise(20 * KIB)
    some = noise(3000)
    second = first[: MIB + 7] + some + first[MIB + 7 + len(some) :]
    third = second[:MIB] + bytes(MIB) + first[5 : 5 + 9 * KIB]
    orders = [
        FileOrder(TransferId(f"{number:032x}"), "", "f", len(plain), DEFAULT_SEGMENTATION, None, base)
        for number, plain, base in (
            (1, first, None),
            (2, second, ImageId(f"{1:032x}")),
            (3, third, None),
        )
    ]
    written = [FilePatch(0, MIB, first[:MIB]), FilePatch(2 * MIB, 20 * KIB, first[2 * MIB :])]
    composed = [
        FilePatch(0, MIB, None, ImageId(f"{2:032x}")),
        FilePatch(2 * MIB, 9 * KIB, None, ImageId(f"{1:032x}"), 5),
    ]
    changed = [FilePatch(MIB + 7, len(some), some)]
    return [
        Call(order, patches, plain)
        for order, patches, plain in zip(
            orders, (written, changed, composed), (first, second, third), strict=True
        )
    ]


CALLS = _calls()


@dataclass
class Notes:
    """What the calls were answered, and what the index kept on its disk."""

    disk: IndexDisk = field(default_factory=lambda: IndexDisk(MemorySegmentIndex()))
    made: dict[ImageId, ImageManifest] = field(default_factory=dict)


def _take_in(target: Target, call: Call) -> ImageManifest:
    assert target.transfers is not None
    local = LocalIngest(target.store, target.images, target.transfers, target.clock)
    return local.take_in(call.order, iter(call.patches), cancelled=threading.Event())


def _run(files: Files, notes: Notes) -> None:
    target = Target(files, notes.disk)
    try:
        for call in CALLS:
            notes.made[call.image_id] = _take_in(target, call)
    finally:
        target.end_threads()


def _read(target: Target, image_id: ImageId) -> bytes:
    pieces = target.images.read(target.images.open(image_id), 0, 0)
    return b"".join(bytes(piece.data) or bytes(piece.zero_bytes) for piece in pieces)


def _check(files: FakeFiles, index: MemorySegmentIndex, notes: Notes, where: str) -> None:
    target = Target(files, IndexDisk(index))
    try:
        assert target.store.transfers.list() == [], where
        found = {image.image_id: image for image in target.store.manifests.all()}
        assert target.store.manifests.damaged == [], where
        assert found.keys() >= notes.made.keys(), where
        for call in CALLS:
            if call.image_id in found:
                assert _read(target, call.image_id) == call.plain, where
        for call in CALLS:
            made = _take_in(target, call)
            assert made.root == notes.made.get(call.image_id, made).root, where
            assert _read(target, call.image_id) == call.plain, where
        assert len(target.store.manifests.all()) == len(CALLS), where
        assert target.store.transfers.list() == [], where
    finally:
        target.end_threads()


def _op_count() -> int:
    whole = FakeFiles()
    _run(whole, Notes())
    return whole.op_count


def _check_cuts(cuts: Iterable[int], states_max: int) -> None:
    for cut in cuts:
        notes, files = Notes(), FakeFiles()
        files.crash_after(cut)
        with pytest.raises(PowerCut):
            _run(files, notes)
        for number, state in enumerate(files.post_crash_states(maximum=states_max, seed=cut)):
            # Every third start finds the index gone, too.
            lost = (cut + number) % 3 == 0
            index = MemorySegmentIndex() if lost else notes.disk.batches[-1].copy()
            _check(state, index, notes, f"cut {cut}, index lost: {lost}, {state.story}")
        _check(files.after_kill(), notes.disk.batches[-1].copy(), notes, f"kill at {cut}")


@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_cut_leaves_whole_images_and_nothing_else(phase: int) -> None:
    count = _op_count()
    assert count > 60
    _check_cuts(range(phase, count, STRIDE), states_max=2)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_every_state_after_every_cut() -> None:
    _check_cuts(range(_op_count()), states_max=48)


def _check_faults(kind: str, places: Iterable[int]) -> None:
    tried = failed = 0
    for at in places:
        notes, files = Notes(), FakeFiles()
        files.fail_after(at, kind)
        tried += 1
        try:
            _run(files, notes)
        except ArrayliftError:
            failed += 1
        _check(files.after_kill(), notes.disk.batches[-1].copy(), notes, f"{kind} at {at}")
    assert failed > tried // 4


@pytest.mark.parametrize("kind", ["eio", "enospc"])
@pytest.mark.parametrize("phase", [secrets.randbelow(STRIDE)])
def test_a_disk_that_fails_once_never_makes_a_false_image(kind: str, phase: int) -> None:
    _check_faults(kind, range(phase, _op_count(), STRIDE))


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["eio", "enospc"])
def test_every_change_fails_once(kind: str) -> None:
    _check_faults(kind, range(_op_count()))
