"""Whole volumes against the trees that they were made from: every name, attribute and byte."""

from __future__ import annotations

import contextlib
import lzma
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arraylift.sizes import MIB
from backup_server.catalog import browse
from backup_server.catalog.batch import Batch, Paths, Unread
from backup_server.catalog.entry import FileEntry, Volume
from backup_server.catalog.pieces import Piece, content_of
from backup_server.catalog.sandbox import WALK_LIMITS
from tests.programs import need
from tests.unit.backup_server.catalog.images import run

GOLDEN = Path(__file__).parents[3] / "golden"
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, ~0 & 0xFFFFFFFF, 2, 7, 1234, 4, 4, ~0 & 0xFFFFFFFF,
                  0x10, 7, ~0 & 0xFFFFFFFF, 0x20, 0, ~0 & 0xFFFFFFFF)  # fmt: skip


@dataclass
class Walked:
    """A whole walk, kept; ``disks`` to read what its pieces name."""

    disks: Sequence[browse.Disk]
    volume: Volume | None = None
    files: dict[str, tuple[FileEntry, list[Piece]]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def entry(self, path: str) -> FileEntry:
        return self.files[path][0]

    def content(self, path: str) -> bytes:
        entry, pieces = self.files[path]

        def read(disk: int, offset: int, length: int) -> bytes:
            return self.disks[disk].image.read(offset, length)

        content = b"".join(content_of(pieces, read, step_bytes=MIB))
        assert len(content) == entry.size_bytes or entry.flaw
        return content


def walked(
    disks: Sequence[browse.Disk], volume: str = "", *, limits: browse.ParserLimits = WALK_LIMITS
) -> Walked:
    """Walk a volume to its end."""
    found, paths = Walked(disks), Paths()
    for told in browse.walk(disks, volume, limits=limits):
        if isinstance(told, Batch):
            found.files |= {entry.path: (entry, pieces) for entry, pieces in paths.entries(told)}
        elif isinstance(told, Unread):
            found.unread[paths.of[told.directory]] = told.why
        else:
            found.volume = told
    return found


def names_below(tree: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path in the volume, path here) of everything below a directory."""
    for directory, folders, files in os.walk(tree):
        for name in folders + files:
            path = Path(directory, name)
            yield "/" + str(path.relative_to(tree)), path


def assert_equal(found: Walked, tree: Path, *, posix: bool = True, times: bool = True) -> int:
    """Assert that a volume is what a tree is; return how many names were compared.

    ``posix``: it keeps owner, mode, links and extended attributes; ``times``: at least whole seconds.
    """
    assert not found.unread
    expected = dict(names_below(tree))
    assert found.files.keys() - {"/", "/lost+found"} == expected.keys()
    inodes: dict[int, int] = {}
    for path, source in expected.items():
        entry = found.entry(path)
        status = source.lstat()
        assert not entry.flaw, (path, entry.flaw)
        assert stat.S_IFMT(entry.mode) == stat.S_IFMT(status.st_mode), path
        if posix:
            assert (entry.mode, entry.uid, entry.gid) == (status.st_mode, status.st_uid, status.st_gid), path
            assert entry.device == (os.major(status.st_rdev), os.minor(status.st_rdev)), path
            assert entry.link_count == status.st_nlink or entry.is_directory, path
            assert inodes.setdefault(status.st_ino, entry.inode) == entry.inode, path
        if times:
            assert entry.modified_at_ns // 10**9 == status.st_mtime_ns // 10**9, path
        if entry.is_link:
            assert os.fsencode(entry.link_target) == os.readlink(os.fsencode(source)), path
        if entry.is_file:
            assert found.content(path) == source.read_bytes(), path
    return len(expected)


def attributes_here(path: Path) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name.encode(): os.getxattr(path, name, follow_symlinks=False) for name in names}


def with_attributes(tree: Path, long_bytes: int) -> dict[str, dict[bytes, bytes]]:
    """Give some files extended attributes and ACLs; return all of those that this file system took."""
    long = tree / "long-attributes"
    long.write_bytes(b"?")
    for path, name, value in (
        (tree / "hello.txt", "user.small", b"\0value"),
        (tree / "d", "user.of-a-directory", b"d" * 40),
        (long, "user.long", b"l" * long_bytes),
        (tree / "empty", "user.empty", b""),
        (tree / "large", "system.posix_acl_access", ACL),
        (tree / "d", "system.posix_acl_default", ACL),
    ):
        with contextlib.suppress(OSError):
            os.setxattr(path, name, value)
    return {path: kept for path, here in names_below(tree) if (kept := attributes_here(here))}


def fat_tree(tree: Path) -> Path:
    """Fill a directory with what FAT can hold."""
    chance = random.Random(3)
    (tree / "Folder with spaces" / "below").mkdir(parents=True)
    for name, size in (
        ("SHORT.TXT", 10),
        ("lower.txt", 5000),
        ("a long name.with.dots", 70_000),
        ("none", 0),
    ):
        (tree / name).write_bytes(chance.randbytes(size))
        (tree / "Folder with spaces" / "below" / name).write_bytes(chance.randbytes(size))
    (tree / ("n" * 200)).write_bytes(b"long")
    (tree / "ünï-\u1234").write_bytes(b"unicode")
    many = tree / "many"
    many.mkdir()
    for number in range(300):
        (many / f"file number {number}").write_bytes(b"%d\n" % number * number)
    return tree


def make_fat(path: Path, tree: Path, bits: int, size: int) -> Path:
    """Make a FAT with a tree in it."""
    need("mkfs.fat")
    need("mcopy")
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.fat", "-F", str(bits), "-n", f"FAT{bits}", str(path))
    run("mcopy", "-i", str(path), "-s", "-m", *sorted(str(one) for one in tree.iterdir()), "::/")
    return path


def make_xfs(path: Path, tree: Path, *options: str, size: int = 320 * MIB) -> Path:
    """Make an XFS with a tree in it, by a prototype: no hard links, nor times."""
    need("mkfs.xfs")
    with path.open("wb") as file:
        file.truncate(size)
    prototype = path.with_suffix(".prototype")
    lines = ["/none", "0 0", *_prototype(tree)]
    prototype.write_bytes(os.fsencode("\n".join(lines) + "\n$\n"))
    run("mkfs.xfs", "-q", "-f", "-p", str(prototype), *options, str(path))
    return path


def _prototype(directory: Path, mark: str = "") -> Iterator[str]:
    """Yield a directory's own line and those of what is in it; '$' ends a directory."""
    yield f"{mark}d--{stat.S_IMODE(directory.lstat().st_mode):03o} 0 0"
    for path in sorted(directory.iterdir()):
        status = path.lstat()
        mode = f"{status.st_mode & 0o777:03o} {status.st_uid} {status.st_gid}"
        if path.is_symlink():
            yield f"{path.name} l--777 0 0 {os.readlink(path)}"
        elif path.is_dir():
            yield from _prototype(path, f"{path.name} ")
            yield "$"
        elif path.is_fifo():
            yield f"{path.name} p--{mode}"
        elif path.is_file():
            yield f"{path.name} ---{mode} {path}"


def golden_image(name: str) -> bytes:
    """Return an image that tests/golden/make_file_systems.sh made."""
    return lzma.decompress((GOLDEN / f"{name}.img.xz").read_bytes())


def repeated(path: str, size: int) -> bytes:
    """What those images' files hold: their path over and over."""
    text = f"{path}\n".encode()
    return (text * (size // len(text) + 1))[:size]


def partitioned(path: Path, script: str, size: int, contents: dict[int, bytes]) -> Path:
    """Make a disk by a script of sfdisk, and put contents into its partitions by number."""
    need("sfdisk")
    with path.open("wb") as file:
        file.truncate(size)
    environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    command = ["sfdisk", "--quiet", str(path)]
    subprocess.run(command, input=script.encode(), env=environment, timeout=30, check=True)
    starts: dict[int, int] = {}
    for line in run("sfdisk", "--dump", str(path)).splitlines():
        name, _, rest = line.partition(" : start=")
        if rest:
            starts[int(name.removeprefix(str(path)))] = int(rest.split(",")[0]) * 512
    with path.open("r+b") as file:
        for number, content in contents.items():
            file.seek(starts[number])
            file.write(content)
    return path
