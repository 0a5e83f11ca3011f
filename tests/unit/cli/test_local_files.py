"""The operator's files: what comes in is checked, what goes out appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arraylift.cli.local_files import NewFile, SourceImage
from arraylift.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from arraylift.exit_codes import line_of
from arraylift.sizes import MIB


def write_a_part_and_fail(path: Path, *, overwrite: bool) -> None:
    with NewFile(path, overwrite=overwrite) as made:
        made.write(0, b"part")
        raise RuntimeError


def refused(path: Path) -> str:
    with pytest.raises((InvalidRequest, NotFound)) as caught:
        SourceImage(path)
    return line_of(caught.value)


def test_what_is_no_disk_image_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(513))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "q.qcow2").write_bytes(b"QFI\xfb" + bytes(196_612))
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "none") == f"there is no {tmp_path}/none; check the path"
    assert "is a directory" in refused(tmp_path)
    assert "has 513 bytes" in refused(tmp_path / "odd")
    assert "has 0 bytes" in refused(tmp_path / "empty")
    assert "qemu-img convert" in refused(tmp_path / "q.qcow2")
    assert "is no file" in refused(tmp_path / "pipe")


@pytest.mark.parametrize("kept", [3 * MIB, 2 * MIB, 100])
def test_what_a_file_lost_while_it_was_read_is_no_hole(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * (4 * MIB))
    os.truncate(path, 5 * MIB)  # with a hole at its end
    with SourceImage(path) as source:
        assert [end for _, end in source.data_ranges(0, 5 * MIB)] == [4 * MIB]
        first = source.data_ranges(0, 2 * MIB)
        assert next(first) == (0, 2 * MIB)
        os.truncate(path, kept)
        for start in (2 * MIB, 3 * MIB, 4 * MIB):
            with pytest.raises(Conflict, match="became shorter"):
                list(source.data_ranges(start, 5 * MIB))


def test_data_ranges_follow_the_holes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 18)
        file.write(b"x" * 8192)
    with SourceImage(path) as source:
        ranges = list(source.data_ranges(0, source.size_bytes))
        assert ranges == [(1 << 18, (1 << 18) + 8192)]
        assert list(source.data_ranges((1 << 18) + 100, (1 << 18) + 200)) == [
            ((1 << 18) + 100, (1 << 18) + 200)
        ]
        assert list(source.data_ranges(1 << 19, 1 << 20)) == []


def test_a_new_file_appears_at_commit_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with NewFile(path, overwrite=False) as made:
        made.write(5, b"hello")
        assert not path.exists()
        made.commit(12)
    assert path.read_bytes() == b"\0\0\0\0\0hello\0\0"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_a_part_and_fail(tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(AlreadyExists, match="--force"):
        NewFile(path, overwrite=False)
    with pytest.raises(RuntimeError):
        write_a_part_and_fail(path, overwrite=True)
    assert path.read_bytes() == b"old"
    with NewFile(path, overwrite=True) as made:
        made.write(0, b"new")
        made.commit(3)
    assert path.read_bytes() == b"new"


def test_a_file_that_came_up_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with NewFile(path, overwrite=False) as made:
        path.write_bytes(b"somebody else's")
        with pytest.raises(AlreadyExists):
            made.commit(0)
    assert path.read_bytes() == b"somebody else's"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_force_does_not_follow_links_or_replace_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        NewFile(tmp_path / "link", overwrite=True)
    with pytest.raises(NotFound, match="no /nowhere"):
        NewFile(Path("/nowhere/out"), overwrite=False)
