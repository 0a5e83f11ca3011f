"""A disk made of files, as other programs read it, and how much of it is told in bytes."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from arraylift.sizes import MIB
from backup_server.catalog import browse
from backup_server.catalog.batch import Batch
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.pieces import Piece, PieceKind
from backup_server.restore_disk import Extent, RestoreDisk
from tests.programs import need
from tests.unit.backup_server.catalog.images import FileImage, disks, make_image, stage_tree
from tests.unit.backup_server.catalog.truth import names_below


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = stage_tree(tmp_path_factory.mktemp("staged") / "tree")
    deep = tree / "1/2/3/4/5/6/7/8/9/10"
    deep.mkdir(parents=True)
    (deep / "deepest").write_bytes(b"far down")
    if os.geteuid() == 0:
        os.chown(tree / "large", 1234, 4321)
        os.chown(tree / "d", 77, 88)
    (tree / "large").chmod(0o4751)
    os.utime(tree / "d", (1_100_000_000, 1_100_000_000))
    return tree


def composed(image: FileImage, size: int, extents: Sequence[Extent]) -> bytes:
    """What a target makes of it."""
    content = bytearray(size)
    for one in extents:
        data = one.literal or image.read(one.image_offset, one.length)
        content[one.offset : one.offset + one.length] = data
    return bytes(content)


def mastered(image: FileImage) -> tuple[int, list[Extent], dict[str, str]]:
    disk, left_out, paths = RestoreDisk("RESTORED"), dict[str, str](), browse.Paths()
    first: dict[int, str] = {}
    for told in browse.walk(disks(image)):
        if isinstance(told, Batch):
            for entry, pieces in paths.entries(told):
                link = ""
                if entry.link_count > 1 and not entry.is_directory:
                    link = first.setdefault(entry.inode, entry.path)
                    link = "" if link == entry.path else link
                if why := disk.add(entry, () if link else pieces, hard_link_to=link):
                    left_out[entry.path] = why
    return (*disk.finish(), left_out)


def xorriso(*words: str) -> str:
    ended = subprocess.run(
        ["xorriso", "-report_about", "WARNING", *words], capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode(errors="surrogateescape")


def test_what_another_reader_finds_is_what_was_there(source: Path, tmp_path: Path) -> None:
    need("xorriso")
    image = FileImage(make_image(tmp_path / "image", source, "ext4"))
    size, extents, left_out = mastered(image)
    literal_bytes = sum(len(one.literal) for one in extents)
    assert literal_bytes < 400_000, "file systems' own words, and no content"
    assert list(left_out.values()) == ["its name, or its target, is not UTF-8"]
    iso, out = tmp_path / "disk.iso", tmp_path / "out"
    iso.write_bytes(composed(image, size, extents))
    xorriso("-osirrox", "on:auto_chmod_off", "-indev", str(iso), "-extract", "/", str(out))
    expected = {path: one for path, one in names_below(source) if path not in left_out}
    assert dict(names_below(out)).keys() - {"/lost+found"} == expected.keys()
    for path, was in expected.items():
        here, now, then = out / path[1:], (out / path[1:]).lstat(), was.lstat()
        assert now.st_mode == then.st_mode, path
        assert now.st_mtime_ns // 10**9 == then.st_mtime_ns // 10**9 or was.is_symlink(), path
        if os.geteuid() == 0:
            assert (now.st_uid, now.st_gid) == (then.st_uid, then.st_gid), path
        if was.is_symlink():
            assert os.readlink(here) == os.readlink(was), path
        elif was.is_file():
            assert here.read_bytes() == was.read_bytes(), path


def entry(path: str, mode: int = stat.S_IFREG | 0o644, size: int = 0, target: str = "") -> FileEntry:
    return FileEntry(path, path.rpartition("/")[2], size, mode, 0, 0, 0, target)


def test_a_large_file_costs_its_words(tmp_path: Path) -> None:
    disk = RestoreDisk("RESTORED")
    size = 9 << 30
    pieces = [Piece(PieceKind.DATA, size - 5, 1, 4096), Piece(PieceKind.LITERAL, 5, literal=b"inode")]
    assert disk.add(entry("/srv/large", size=size), pieces) == ""
    total, extents = disk.finish()
    assert total - size < MIB
    data, literal = (
        [one for one in extents if not one.literal],
        [one for one in extents if one.literal == b"inode"],
    )
    assert [(one.length, one.disk, one.image_offset) for one in data] == [(size - 5, 1, 4096)]
    assert literal[0].offset == data[0].offset + size - 5


def test_what_it_cannot_hold_is_told(tmp_path: Path) -> None:
    disk = RestoreDisk("RESTORED")
    for one in (
        entry("/null", stat.S_IFCHR | 0o666),
        entry("/caf\udce9"),
        entry("/" + "n" * 256),
        entry("/link", stat.S_IFLNK | 0o777),
    ):
        assert disk.add(one), one.path
    assert disk.add(entry("/hard"), hard_link_to="/null")
    assert disk.add(entry("/fifo", stat.S_IFIFO | 0o600)) == ""
    disk.finish()
