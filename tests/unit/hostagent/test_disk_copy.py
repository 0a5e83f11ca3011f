"""Copies of disks and their write-backs: only what differs, all or nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import NotFound, PeerUnavailable
from arraylift.ids import VmId
from arraylift.sizes import GRANULE_BYTES, MIB
from hostagent.disk_copy import DiskCopies
from tests.unit.hostagent.fake_array import FakeArray
from tests.unit.hostagent.stage import Stage

VM_ID = VmId("a" * 32)
SIZE = 3 * MIB + 512


@pytest.fixture
def array(stage: Stage) -> FakeArray:
    one = stage.arrays[0]
    one.volumes["disk"] = bytearray(SIZE)
    one.volumes["disk"][MIB : MIB + 100_000] = random.Random(1).randbytes(100_000)
    return one


@pytest.fixture
def copies(stage: Stage, tmp_path: Path) -> DiskCopies:
    return DiskCopies(RealFiles(), str(tmp_path / "guest-disks"), stage.volumes)


def cut_write_back(copies: DiskCopies, array: FakeArray) -> None:
    """Change a copy, and lose the array before the change goes back."""
    with copies.copy(array.address, "disk", keep_before=True) as copy:
        copy.image.write(0, b"changed")
        array.error = PeerUnavailable("away")
        copies.write_back(copy, VM_ID, array.address, "disk")


@pytest.mark.parametrize("seed", range(12))
def test_only_granules_that_differ_travel(
    copies: DiskCopies, array: FakeArray, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    before = bytes(array.volumes["disk"])
    wanted = bytearray(before)
    with copies.copy(array.address, "disk", keep_before=True) as copy:
        assert copy.read(0, SIZE + 10) == before
        for _ in range(draw.randrange(5)):
            at, length = draw.randrange(SIZE), draw.randrange(1, 200_000)
            size = min(length, SIZE - at)
            data = draw.randbytes(size) if draw.random() < 0.5 else bytes(size)
            copy.image.write(at, data)
            wanted[at : at + len(data)] = data
        copies.write_back(copy, VM_ID, array.address, "disk")
    assert array.volumes["disk"] == wanted
    travelled = {
        granule
        for _, at, length in array.written
        for granule in range(at // GRANULE_BYTES, -(-(at + length) // GRANULE_BYTES))
    }
    differing = {
        start // GRANULE_BYTES
        for start in range(0, SIZE, GRANULE_BYTES)
        if before[start : start + GRANULE_BYTES] != wanted[start : start + GRANULE_BYTES]
    }
    assert travelled == differing
    assert list((tmp_path / "guest-disks").iterdir()) == []


def test_a_write_back_that_an_absent_array_cut_is_finished_by_the_next_process(
    copies: DiskCopies, array: FakeArray, stage: Stage, tmp_path: Path
) -> None:
    with pytest.raises(PeerUnavailable):
        cut_write_back(copies, array)
    assert not copies.is_settled(VM_ID)
    again = DiskCopies(RealFiles(), copies.folder, stage.volumes)
    with pytest.raises(PeerUnavailable):
        again.settle(VM_ID)
    array.error = None
    assert again.unsettled() == {VM_ID}
    again.settle(VM_ID)
    assert array.volumes["disk"][:7] == b"changed"
    assert again.is_settled(VM_ID)
    assert list((tmp_path / "guest-disks").iterdir()) == []


def test_what_is_given_up_or_not_recorded_is_swept(
    copies: DiskCopies, array: FakeArray, stage: Stage, tmp_path: Path
) -> None:
    with pytest.raises(PeerUnavailable):
        cut_write_back(copies, array)
    copies.drop(VM_ID, "another disk")
    assert not copies.is_settled(VM_ID)
    copies.drop(VM_ID, "disk")
    assert copies.is_settled(VM_ID)
    (tmp_path / "guest-disks" / f"{'b' * 32}.img").write_bytes(b"left by a crash")
    DiskCopies(RealFiles(), copies.folder, stage.volumes)
    assert list((tmp_path / "guest-disks").iterdir()) == []
    array.error = None
    with pytest.raises(NotFound), copies.copy(array.address, "none", keep_before=False):
        pass
