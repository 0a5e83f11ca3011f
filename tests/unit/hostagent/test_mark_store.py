"""Marks on disk: durable before they are seen, and gone rather than wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import OutOfSpace
from arraylift.failpoints import Failpoints
from hostagent.mark_store import MarkStore
from tests.unit.hostagent.material import MARKS, VM_ID


def store(folder: Path, *known: str, failpoints: str = "") -> MarkStore:
    points = Failpoints()
    if failpoints:
        points.arm(failpoints)
    return MarkStore(RealFiles(points), str(folder / "marks"), known=known)  # type: ignore[arg-type]


def test_marks_survive_a_restart_and_go_with_their_vm(tmp_path: Path) -> None:
    first = store(tmp_path, VM_ID)
    first.put(MARKS)
    assert first.find(VM_ID) == MARKS
    assert store(tmp_path, VM_ID).find(VM_ID) == MARKS
    assert store(tmp_path).find(VM_ID) is None
    assert not list((tmp_path / "marks").iterdir())


def test_a_damaged_file_is_no_marks_and_stops_nobody(tmp_path: Path) -> None:
    store(tmp_path, VM_ID).put(MARKS)
    (path,) = (tmp_path / "marks").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert store(tmp_path, VM_ID).find(VM_ID) is None
    assert not path.exists()


def test_what_cannot_be_written_is_not_seen(tmp_path: Path) -> None:
    full = store(tmp_path, VM_ID, failpoints="marks.*=enospc")
    with pytest.raises(OutOfSpace):
        full.put(MARKS)
    assert full.find(VM_ID) is None


def test_removed_marks_stay_removed(tmp_path: Path) -> None:
    one = store(tmp_path, VM_ID)
    one.put(MARKS)
    one.remove(VM_ID)
    one.remove(VM_ID)
    assert one.find(VM_ID) is None
    assert store(tmp_path, VM_ID).find(VM_ID) is None
