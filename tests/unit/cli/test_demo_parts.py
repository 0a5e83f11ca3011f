"""The demo's parts: the same files on every run, and a difference that is never overlooked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from arraylift.cli import demo_disks
from arraylift.cli.connection import Connection
from arraylift.cli.demo_story import compare_image, compare_volume
from arraylift.cli.session import Session
from arraylift.cli.settings import Overrides
from arraylift.errors import Corruption, NotFound, OutOfSpace, WrongState
from arraylift.sizes import MIB
from arraylift.v1 import image_pb2
from tests.programs import need
from tests.unit.cli.conftest import Daemons
from tests.unit.cli.fakes import hex_id


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of 10 MiB with things that no demo wants."""
    root = tmp_path / "source"
    for number in range(40):
        path = root / f"d{number % 4}" / f"file {number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (MIB // 4))
    (root / "empty").touch()
    (root / "link").symlink_to("d0/file 00")
    return root


def test_the_choice_is_the_same_on_every_run_and_its_sets_are_disjoint(source: Path) -> None:
    sets = demo_disks.choose_files(source)
    assert sets == demo_disks.choose_files(source)
    paths = [path for chosen in sets.values() for path, _ in chosen]
    assert len(paths) == len(set(paths)) == 40
    assert len(sets["common"]) > sum(len(sets[name]) for name in ("one", "two", "fresh"))


def test_too_few_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    with pytest.raises(WrongState, match="too few files"):
        demo_disks.choose_files(tmp_path)


def test_too_little_room_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_disks, "_ROOM_FACTOR", 10**12)
    with pytest.raises(OutOfSpace, match="TMPDIR"):
        demo_disks.build(tmp_path, source)


def test_missing_programs_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(demo_disks, "_SYSTEM_PATH", "/nonexistent")
    with pytest.raises(NotFound, match=r"no mkfs\.ext4 on this machine; apt install e2fsprogs"):
        demo_disks.find_programs()


def test_the_disks_are_whole_and_similar_and_a_change_is_at_hand(source: Path, tmp_path: Path) -> None:
    need("mkfs.ext4", "debugfs", "e2fsck")
    work = tmp_path / "work"
    work.mkdir()
    disks = demo_disks.build(work, source)
    for path in (disks.one, disks.two, disks.data):
        demo_disks.check_file_system(path)
    removed = subprocess.run(
        [demo_disks._program("debugfs"), "-R", f"cat {disks.change.removed}", str(disks.one)],
        check=True,
        capture_output=True,
    ).stdout
    assert removed == disks.change.removed_source.read_bytes()
    assert len({put.source for put in disks.change.put}) == 3
    assert disks.one.stat().st_size == disks.two.stat().st_size
    assert not (work / "stage").exists()


def test_a_damaged_file_system_is_not_called_clean(source: Path, tmp_path: Path) -> None:
    need("mkfs.ext4", "debugfs", "e2fsck")
    work = tmp_path / "work"
    work.mkdir()
    disks = demo_disks.build(work, source)
    subprocess.run(
        [demo_disks._program("debugfs"), "-w", "-R", "clri /srv/one/0001", str(disks.one)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(Corruption, match="e2fsck finds"):
        demo_disks.check_file_system(disks.one)


@pytest.mark.parametrize("at", [0, 65_535, 65_536, 300_000, 1_048_575])
def test_one_wrong_byte_fails_the_comparison(
    array: Connection, target: Connection, daemons: Daemons, tmp_path: Path, at: int
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    daemons.volumes.volumes["v"] = bytearray(MIB)
    daemons.images.images = [image_pb2.Image(image_id=hex_id(1), image_bytes=MIB)]
    daemons.images.content = bytes(MIB)
    with Session(Overrides(json=True)) as session:
        compare_volume(session, array, "v", path)
        compare_image(session, target, hex_id(1), path)
        wrong = bytearray(MIB)
        wrong[at] = 1
        daemons.volumes.volumes["v"] = wrong
        daemons.images.content = bytes(wrong)
        with pytest.raises(Corruption, match="volume v differs from the restored one"):
            compare_volume(session, array, "v", path)
        with pytest.raises(Corruption, match=f"image {hex_id(1)} differs from the restored one"):
            compare_image(session, target, hex_id(1), path)


def test_a_volume_of_another_size_fails_the_comparison(
    array: Connection, daemons: Daemons, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    daemons.volumes.volumes["v"] = bytearray(MIB + 512)
    with Session(Overrides(json=True)) as session, pytest.raises(Corruption, match="restored one 1,048,576"):
        compare_volume(session, array, "v", tmp_path / "disk")
