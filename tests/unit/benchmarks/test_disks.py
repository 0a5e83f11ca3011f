"""The disks that are backed up are whole file systems, whose days follow from a seed."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError
from arraylift.sizes import GRANULE_BYTES, MIB
from benchmarks import churn, ext4, guest
from benchmarks.disks import changed_granules
from tests.programs import need

UUID = "3f0c5c0e-0000-4000-8000-000000000001"


@pytest.fixture
def small(tmp_path: Path) -> churn.Guest:
    """A guest of 6 MiB with two packages, and two more to install."""
    need("mke2fs", "debugfs", "e2fsck")
    shelf = tmp_path / "usr"
    listed = []
    for name in ("one", "two", "three", "four"):
        (shelf / name).mkdir(parents=True)
        (shelf / name / "program").write_bytes(random.Random(name).randbytes(50_000))
        listed.append(guest.Package(str(shelf / name), ("program",), 50_000))
    staging, image = tmp_path / "tree", tmp_path / "A0.img"
    guest.install(listed[:2], staging)
    guest.fill_data(staging, count_bytes=6 * MIB, host="alpha", seed=1)
    guest.settle_times(staging)
    ext4.make(image, staging, size_bytes=32 * MIB, uuid=UUID)
    directories = set(churn.directories_of(listed[:2]))
    return churn.Guest(image, staging, "alpha", 6 * MIB, listed[:2], listed[2:], directories)


def _content(image: Path, path: str, to: Path) -> bytes:
    subprocess.run(
        [ext4.tool("debugfs"), "-R", f'dump "{path}" "{to}"', image], check=True, capture_output=True
    )
    return to.read_bytes()


def test_a_day_changes_what_it_says_and_leaves_a_sound_file_system(
    small: churn.Guest, tmp_path: Path
) -> None:
    first, second = small.image, tmp_path / "A1.img"
    before = {name: (small.data / name).read_bytes() for name in ("var/lib/app/0.sqlite", "var/log/0.log")}
    blocks = ext4.block_map(first, "/var/log/0.log")
    gone, new = list(small.installed), list(small.spare)
    ext4.copy(first, second)
    churn.next_day(small, second, day=1, seed=1, scratch=tmp_path)
    ext4.check(second)
    for name, old in before.items():
        now = _content(second, f"/{name}", tmp_path / "out")
        assert now == (small.data / name).read_bytes()
        assert now != old
    grown = ext4.block_map(second, "/var/log/0.log")
    assert grown.items() > blocks.items(), "a log that grows keeps its blocks (X1)"
    assert _content(second, "/var/log/1.log.1.gz", tmp_path / "out")
    removed = [one for one in gone if one not in small.installed]
    installed = [one for one in new if one in small.installed]
    assert removed
    assert installed
    path = next(installed[0].paths)
    assert _content(second, path, tmp_path / "out") == Path(path).read_bytes()
    changed = sum(end - start for start, end in changed_granules(first, second))
    assert 0 < changed < 8 * MIB


def test_a_log_whose_blocks_cannot_be_marked_is_written_anew(
    small: churn.Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(churn, "mark_written", lambda *_: False)
    second = tmp_path / "A1.img"
    ext4.copy(small.image, second)
    churn.next_day(small, second, day=1, seed=1, scratch=tmp_path)
    ext4.check(second)
    now = _content(second, "/var/log/0.log", tmp_path / "out")
    assert now == (small.data / "var/log/0.log").read_bytes()


def test_the_same_seed_gives_the_same_data(tmp_path: Path) -> None:
    trees = [tmp_path / name for name in "ab"]
    for tree in trees:
        guest.fill_data(tree, count_bytes=2 * MIB, host="alpha", seed=7)
    files = [
        {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
        for tree in trees
    ]
    assert files[0] == files[1]
    assert len(files[0]) > guest.DATABASES + guest.LOGS


def test_what_debugfs_complains_of_is_an_error(small: churn.Guest, tmp_path: Path) -> None:
    batch = ext4.Batch(small.image)
    batch.remove("/no/such/file")
    with pytest.raises(ArrayliftError, match="debugfs failed"):
        batch.run(tmp_path)


def test_changed_granules_are_found_and_joined(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    data = bytearray(2 * MIB)
    one.write_bytes(data)
    for offset in (0, GRANULE_BYTES + 5, MIB - 1, MIB):
        data[offset] = 1
    other.write_bytes(data)
    assert changed_granules(one, other) == [
        (0, 2 * GRANULE_BYTES),
        (MIB - GRANULE_BYTES, MIB + GRANULE_BYTES),
    ]
    assert changed_granules(one, one) == []


def test_packages_are_whole_directories_in_an_order_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "a" / "link").symlink_to("file")
    (tmp_path / "b" / "odd name").write_text("never put into a script of debugfs")
    (tmp_path / "c" / "empty").touch()
    orders = [[one.directory[-1] for one in guest.packages(seed, str(tmp_path))] for seed in range(8)]
    assert {tuple(sorted(order)) for order in orders} == {("a", "b", "c", "d")}
    assert len({tuple(order) for order in orders}) > 1
    assert all(one.names == ("file",) for one in guest.packages(0, str(tmp_path)))


def test_a_large_directory_is_several_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "PACKAGE_BYTES", 250)
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(bytes(100))
    found = guest.packages(1, str(tmp_path))
    assert sorted(len(one.names) for one in found) == [2, 3, 3]
    assert sorted(path for one in found for path in one.paths) == [f"{tmp_path}/{n}" for n in range(8)]
    assert [one.total_bytes for one in found] == [100 * len(one.names) for one in found]
