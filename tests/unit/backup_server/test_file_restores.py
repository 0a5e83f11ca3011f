"""Files out of images into a directory: everything of them, and nothing outside it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from arraylift.cli.files_restore import receive
from arraylift.cli.restored_tree import Facts, RestoredTree
from arraylift.errors import Corruption, InvalidRequest, NotFound, PeerUnavailable
from arraylift.sizes import KIB, MIB
from arraylift.v1 import catalog_pb2 as pb
from backup_server.catalog import browse
from backup_server.file_reads import FINDS_MAX
from backup_server.service.file_restores import FileRestoreEdge
from tests.unit.backup_server.catalog.images import FileImage, disks, make_image, stage_tree
from tests.unit.backup_server.catalog.truth import attributes_here, names_below, with_attributes

ROOT = os.geteuid() == 0


class OpenDisks:
    """Stands for BackupDisks: one image that is there already."""

    def __init__(self, image: browse.ImageAccess) -> None:
        self._image = image

    @contextlib.contextmanager
    def opened(self, backup_id: str, disk_name: str = "") -> Iterator[browse.DiskSet]:
        yield disks(self._image)


@dataclass
class Told:
    """What was told of single files."""

    problems: dict[bytes, str] = field(default_factory=dict)

    def __call__(self, path: bytes, why: str) -> None:
        self.problems[path] = why


def answers(image: browse.ImageAccess, *paths: str, recursive: bool = True) -> list[pb.ReadFilesResponse]:
    edge = FileRestoreEdge(OpenDisks(image), browse, None)  # type: ignore[arg-type]
    context: Any = None
    return list(edge.ReadFiles(pb.ReadFilesRequest(paths=paths, recursive=recursive), context))


def restored(
    image: browse.ImageAccess, to: Path, *paths: str, owners: bool = ROOT, overwrite: bool = False
) -> tuple[pb.FilesDone, dict[bytes, str]]:
    """Bring paths back; returns the stream's end, and the problems."""
    told, stream = Told(), answers(image, *paths)
    with RestoredTree(to, owners=owners, overwrite=overwrite, on_problem=told) as tree:
        receive(stream, tree, label="server", on_bytes=lambda _: None)
    return stream[-1].done, told.problems


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = stage_tree(tmp_path_factory.mktemp("staged") / "tree")
    with_attributes(tree, 500)
    if ROOT:
        os.chown(tree / "large", 1234, 4321)
        (tree / "large").chmod(0o4751)
        os.mknod(tree / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.utime(tree / "d", (1_100_000_000, 1_100_000_000))
    return tree


@pytest.fixture(scope="module")
def image(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FileImage:
    return FileImage(make_image(tmp_path_factory.mktemp("image") / "image", source, "ext4"))


def assert_same(tree: Path, source: Path) -> int:
    """Assert that both trees are the same in all that a restore brings; return the count of names."""
    expected = dict(names_below(source))
    assert dict(names_below(tree)).keys() - {"/lost+found"} == expected.keys()
    first: dict[int, int] = {}
    for path, one in expected.items():
        here, was, now = tree / path[1:], one.lstat(), (tree / path[1:]).lstat()
        assert (now.st_mode, now.st_rdev) == (was.st_mode, was.st_rdev), path
        if ROOT:
            assert (now.st_uid, now.st_gid) == (was.st_uid, was.st_gid), path
        assert now.st_mtime_ns // 10**9 == was.st_mtime_ns // 10**9, path
        assert attributes_here(here) == attributes_here(one), path
        assert first.setdefault(was.st_ino, now.st_ino) == now.st_ino, path
        if one.is_symlink():
            assert os.readlink(os.fsencode(here)) == os.readlink(os.fsencode(one))
        elif one.is_file():
            assert here.read_bytes() == one.read_bytes(), path
    return len(expected)


@pytest.mark.skipif(not ROOT, reason="owners and devices are root's")
def test_a_whole_volume_comes_back_as_it_was(image: FileImage, source: Path, tmp_path: Path) -> None:
    done, problems = restored(image, tmp_path / "back", "/")
    assert problems == {}
    assert done.problem_count == 0
    assert assert_same(tmp_path / "back", source) > 320
    hole = (tmp_path / "back" / "hole").stat()
    assert (hole.st_size, hole.st_blocks) == (1_000_001, 0)
    assert (tmp_path / "back" / "sparse").stat().st_blocks * 512 < 64 * KIB


def test_one_file_costs_what_it_weighs(image: FileImage, source: Path, tmp_path: Path) -> None:
    image.reads.clear()
    done, problems = restored(image, tmp_path, "/d/e/f/hard", owners=False)
    assert (done.file_count, done.bytes_read, problems) == (1, 5, {})
    assert (tmp_path / "d/e/f/hard").read_bytes() == b"hello"
    assert (tmp_path / "d/e/f/hard").stat().st_mtime_ns == 1_234_567_890 * 10**9
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700, "of it nobody said more (R3)"
    assert sum(length for _, length in image.reads) < 2 * MIB


def test_what_is_asked_for_twice_comes_once(image: FileImage, tmp_path: Path) -> None:
    paths = [one.start.path for one in answers(image, "/d/e", "/d/e/f/hard", "/hello.txt", "/d/e")
             if one.HasField("start")]  # fmt: skip
    assert len(paths) == len(set(paths))
    assert {b"/d/e", b"/d/e/f", b"/d/e/f/hard", b"/hello.txt"} <= set(paths)
    assert paths.index(b"/d/e") < paths.index(b"/d/e/f") < paths.index(b"/d/e/f/hard")
    (link,) = [one.start for one in answers(image, "/d/e", "/hello.txt") if one.start.hard_link_to]
    assert (link.path, link.hard_link_to) == (b"/hello.txt", b"/d/e/f/hard")
    (alone,) = [one.start.path for one in answers(image, "/d", recursive=False) if one.HasField("start")]
    assert alone == b"/d"


def test_many_paths_are_one_walk(image: FileImage, source: Path, tmp_path: Path) -> None:
    names = [f"/many/file-{number:04}" for number in range(100)]
    assert len(names) > FINDS_MAX
    done, problems = restored(image, tmp_path, *names, "/d", owners=False)
    assert problems == {}
    assert done.file_count == len(names) + 7
    for name in names:
        assert (tmp_path / name[1:]).read_bytes() == (source / name[1:]).read_bytes()
    with pytest.raises(NotFound, match="/none"):
        answers(image, *names, "/none")


def test_what_is_not_there_ends_it_before_anything_comes(image: FileImage) -> None:
    for paths, error in (
        (["/hello.txt", "/none"], NotFound),
        (["relative"], InvalidRequest),
        ([], InvalidRequest),
    ):
        with pytest.raises(error):
            answers(image, *paths)


def test_without_owners_no_bit_makes_a_caller_of_them(image: FileImage, tmp_path: Path) -> None:
    restored(image, tmp_path, "/large", owners=False)
    assert stat.S_IMODE((tmp_path / "large").stat().st_mode) == 0o751
    assert (tmp_path / "large").stat().st_uid == os.geteuid()


def test_what_is_there_stays_unless_it_is_said(image: FileImage, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_bytes(b"mine")
    (tmp_path / "d").mkdir(mode=0o711)
    _, problems = restored(image, tmp_path, "/hello.txt", "/d", owners=False)
    assert list(problems) == [b"/hello.txt", b"/d/e/f/hard"], "a link to what did not come is not made either"
    assert (tmp_path / "hello.txt").read_bytes() == b"mine"
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o711
    _, problems = restored(image, tmp_path, "/hello.txt", "/d", owners=False, overwrite=True)
    assert problems == {}
    assert (tmp_path / "hello.txt").read_bytes() == b"hello"
    assert (tmp_path / "hello.txt").stat().st_nlink == 2
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o1770
    assert not list(tmp_path.rglob(".arraylift*"))


class Damaged:
    """An image of which some bytes cannot be read."""

    def __init__(self, image: FileImage, start: int, length: int, error: Exception) -> None:
        self._image, self._bad, self._error = image, range(start, start + length), error
        self.size_bytes = image.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        if offset < self._bad.stop and self._bad.start < offset + length:
            raise self._error
        return self._image.read(offset, length)


def test_a_file_that_cannot_be_read_whole_is_told_and_leaves_nothing(
    image: FileImage, source: Path, tmp_path: Path
) -> None:
    at = image.path.read_bytes().index((source / "large").read_bytes()[2 * MIB : 2 * MIB + 4096])
    damaged = Damaged(image, at, 4096, Corruption("these bytes are gone"))
    done, problems = restored(damaged, tmp_path, "/large", "/hello.txt", "/block", owners=False)
    assert problems == {b"/large": "these bytes are gone"}
    assert (done.problem_count, done.file_count) == (1, 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["block", "hello.txt"]
    with pytest.raises(PeerUnavailable):
        answers(Damaged(image, at, 4096, PeerUnavailable("it is away")), "/large")


# -- hostile names ------------------------------------------------------------------------------


def write_all(tree: RestoredTree, *facts: Facts, data: bytes = b"evil") -> None:
    for one in facts:
        tree.start(one)
        if stat.S_ISREG(one.mode) and not one.hard_link_to:
            tree.write(0, data)
    tree.finish()


def regular(path: bytes, **more: Any) -> Facts:
    return Facts(path, stat.S_IFREG | 0o644, size_bytes=4, **more)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "path", [b"/../out", b"/a/../../out", b"out", b"/./out", b"/a/..", b"/nul\0", b"..", b"", b"//../out"]
)
def test_a_name_that_leads_elsewhere_makes_nothing(tmp_path: Path, path: bytes, overwrite: bool) -> None:
    told, root = Told(), tmp_path / "root"
    with RestoredTree(root, owners=False, overwrite=overwrite, on_problem=told) as tree:
        write_all(tree, regular(path), regular(b"/good"))
    assert list(told.problems) == [path]
    assert [one.name for one in tmp_path.rglob("*")] == ["root", "good"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_on_the_way_is_followed(tmp_path: Path, overwrite: bool) -> None:
    outside, root, told = tmp_path / "outside", tmp_path / "root", Told()
    outside.mkdir(mode=0o700)
    (outside / "kept").write_bytes(b"kept")
    target = os.fsencode(outside)
    link = stat.S_IFLNK | 0o777
    with RestoredTree(root, owners=False, overwrite=overwrite, on_problem=told) as tree:
        write_all(
            tree,
            Facts(b"/dir", link, link_target=target),
            regular(b"/dir/in"),
            regular(b"/dir/kept"),
            Facts(b"/dir", stat.S_IFDIR | 0o777),
            Facts(b"/dir/sub", stat.S_IFDIR | 0o777),
            Facts(b"/file", link, link_target=target + b"/kept"),
            regular(b"/file"),
            regular(b"/hard", hard_link_to=b"/dir/kept"),
            regular(b"/hard2", hard_link_to=b"/../outside/kept"),
            Facts(b"/dir/fifo", stat.S_IFIFO | 0o666),
        )
    assert [one.name for one in outside.iterdir()] == ["kept"]
    assert ((outside / "kept").read_bytes(), (outside / "kept").stat().st_nlink) == (b"kept", 1)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert {b"/dir/in", b"/dir/kept", b"/dir", b"/dir/sub", b"/hard", b"/hard2", b"/dir/fifo"} <= set(
        told.problems
    )
    assert (root / "file").is_symlink() is not overwrite
    assert not overwrite or (root / "file").read_bytes() == b"evil"


def test_a_hard_link_to_a_link_is_the_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root, told = tmp_path / "root", Told()
    with RestoredTree(root, owners=False, overwrite=False, on_problem=told) as tree:
        link = Facts(b"/link", stat.S_IFLNK | 0o777, link_target=os.fsencode(tmp_path / "secret"))
        write_all(tree, link, regular(b"/hard", hard_link_to=b"/link"))
    assert (root / "hard").is_symlink()
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_data_outside_the_file_end_it(tmp_path: Path) -> None:
    with (
        pytest.raises(Corruption),
        RestoredTree(tmp_path, owners=False, overwrite=False, on_problem=Told()) as tree,
    ):
        write_all(tree, regular(b"/file"), data=b"too long")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_is_cut_leaves_whole_files_only(image: FileImage, tmp_path: Path) -> None:
    stream = answers(image, "/hello.txt", "/large")
    with (
        pytest.raises(Corruption, match="did not send all"),
        RestoredTree(tmp_path, owners=False, overwrite=False, on_problem=Told()) as tree,
    ):
        receive(stream[:-2], tree, label="server", on_bytes=lambda _: None)
    assert [one.name for one in tmp_path.iterdir()] == ["hello.txt"]
