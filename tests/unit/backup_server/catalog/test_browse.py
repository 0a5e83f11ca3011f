"""Whole trees, made by the tools of the file system, read back out of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.errors import InvalidRequest, NotFound, WrongState
from arraylift.sizes import MIB
from backup_server.catalog import browse
from tests.unit.backup_server.catalog.images import (
    BytesImage,
    FileImage,
    compare,
    debugfs,
    disks,
    leave_dirty,
    listed,
    make_image,
    read,
    run,
    stage_tree,
    with_gpt,
    with_mbr,
)

KINDS = {
    "ext4": ("ext4", "-b", "4096"),
    "ext4-1k": ("ext4", "-b", "1024"),
    "ext4-meta-groups": ("ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"),
    "ext4-no-extents": ("ext4", "-b", "2048", "-I", "256", "-O", "^extents,^64bit,^flex_bg,^metadata_csum"),
    "ext3-1k": ("ext3", "-b", "1024"),
    "ext2-4k": ("ext2", "-b", "4096"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_tree(tmp_path_factory.mktemp("staged") / "tree")


@pytest.mark.parametrize("kind", ["ext4"])
def test_a_whole_tree_is_read_back(kind: str, tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, *KINDS[kind])
    assert compare(FileImage(image), tree) > 320


def test_inline_data_is_read_back(tmp_path: Path) -> None:
    # mke2fs 1.47 writes sparse files wrongly with inline data, so this tree has none
    tree = stage_tree(tmp_path / "tree", sparse=False)
    image = make_image(tmp_path / "image", tree, "ext4", "-I", "256", "-O", "inline_data")
    assert "inline_data" in run("dumpe2fs", "-h", str(image))
    assert compare(FileImage(image), tree) > 310


def test_reading_costs_what_the_file_weighs(tree: Path, tmp_path: Path) -> None:
    image = FileImage(make_image(tmp_path / "image", tree, "ext4"))
    _, entry, parts = browse.read_file(disks(image), "/large")
    image.reads.clear()
    content = b"".join(parts)
    assert content == (tree / "large").read_bytes()
    assert sum(length for _, length in image.reads) == entry.size_bytes
    _, entry, parts = browse.read_file(disks(image), "/hole")
    image.reads.clear()
    assert sum(map(len, parts)) == entry.size_bytes == 1_000_001
    assert not image.reads


def test_owners_and_times_beyond_the_old_ranges(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-I", "256")
    debugfs(
        image,
        *("sif /hello.txt uid 4000000000", "sif /hello.txt gid 70000"),
        *(
            "sif /hello.txt mtime 0x2a05f200",
            "sif /hello.txt mtime_extra 0x1d6f3455",
        ),  # epoch 1, 123456789 ns
        *("sif /empty mtime 0xfffffff6", "sif /empty mtime_extra 0"),
    )
    entries = {entry.name: entry for entry in listed(FileImage(image), "/")}
    hello = entries["hello.txt"]
    assert (hello.uid, hello.gid) == (4_000_000_000, 70_000)
    assert hello.modified_at_ns == (0x2A05F200 + (1 << 32)) * 10**9 + (0x1D6F3455 >> 2)
    assert entries["empty"].modified_at_ns == -10 * 10**9


def test_preallocated_blocks_are_zeros(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-b", "1024")
    # dirt where blocks will be preallocated would show if they were read
    debugfs(image, "rm /large", "fallocate /hello.txt 1 2999", "sif /hello.txt size 3000000")
    content = read(FileImage(image), "/hello.txt")
    assert content == b"hello" + bytes(3_000_000 - 5)


def test_deleted_files_are_not_shown(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4")
    debugfs(image, "rm /block", "unlink /empty", "rm /many/file-0007")
    names = {entry.name for entry in listed(FileImage(image), "/")}
    assert "hello.txt" in names
    assert not names & {"block", "empty", "$OrphanFiles"}
    assert len(listed(FileImage(image), "/many")) == 299
    with pytest.raises(NotFound, match="/block"):
        browse.read_file(disks(FileImage(image)), "/block")


@pytest.mark.parametrize("kind", ["ext4", "ext4-no-extents"])
def test_a_dirty_journal_is_read_as_if_replayed(kind: str, tree: Path, tmp_path: Path) -> None:
    name, *options = KINDS[kind]
    image = make_image(tmp_path / "image", tree, name, "-J", "size=4", *options)
    after = tmp_path / "after"
    after.write_bytes(image.read_bytes())
    magic = tmp_path / "magic"  # content that the journal must escape
    magic.write_bytes(b"\xc0\x3b\x39\x98" + b"m" * 9_000)
    debugfs(
        after,
        *("rm /block", "mkdir /fresh", f"write {magic} /fresh/magic", "sif /hello.txt mode 0100600"),
        *(f"write {tree}/inline120 /many/new-{number}" for number in range(20)),
    )
    block_bytes = 4096 if kind == "ext4" else 2048 if kind == "ext4-no-extents" else 1024
    stale = FileImage(image)
    assert "fresh" not in {entry.name for entry in listed(stale, "/")}
    leave_dirty(image, after, block_bytes, scratch=tmp_path)
    assert "needs_recovery" in run("dumpe2fs", "-h", str(image))

    dirty, clean = FileImage(image), FileImage(after)
    for path in ("/", "/fresh", "/many"):
        assert listed(dirty, path) == listed(clean, path)
    assert "fresh" in {entry.name for entry in listed(dirty, "/")}
    assert read(dirty, "/fresh/magic") == magic.read_bytes()
    assert read(dirty, "/large") == (tree / "large").read_bytes()
    with pytest.raises(NotFound, match="/block"):
        browse.read_file(disks(dirty), "/block")


def test_a_journal_without_its_commit_is_not_replayed(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-J", "size=4", "-b", "1024")
    content = tmp_path / "content"
    content.write_bytes(bytes(1024))
    first = int(run("debugfs", "-R", "blocks /hello.txt", str(image)).split()[-1])
    debugfs(image, "jo", f"jw -b {first} {content} -c", "jc")
    assert read(FileImage(image), "/hello.txt") == b"hello"


def test_revoked_blocks_keep_what_is_on_disk(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-J", "size=4", "-b", "1024")
    content = tmp_path / "content"
    content.write_bytes(b"x" * 2048)
    first = int(run("debugfs", "-R", "blocks /hello.txt", str(image)).split()[-1])
    block = int(run("debugfs", "-R", "blocks /inline120", str(image)).split()[-1])
    debugfs(image, "jo", f"jw -b {first},{block} {content}", f"jw -r {first}", "jc")
    assert read(FileImage(image), "/hello.txt") == b"hello"
    assert read(FileImage(image), "/inline120") == b"x" * 120


def test_partitions_are_looked_through_in_order(tree: Path, tmp_path: Path) -> None:
    file_system = make_image(tmp_path / "image", tree, "ext4").read_bytes()
    disk = with_mbr(tmp_path / "disk", [bytes(2 * MIB), file_system])
    image = FileImage(disk)
    assert read(image, "/large") == (tree / "large").read_bytes()
    assert read(image, "/d/e/f/hard") == b"hello"


def test_gpt(tree: Path, tmp_path: Path) -> None:
    file_system = make_image(tmp_path / "image", tree, "ext3").read_bytes()
    disk = with_gpt(tmp_path / "disk", file_system)
    assert read(FileImage(disk), "/large") == (tree / "large").read_bytes()


def test_a_dirty_journal_behind_a_partition(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-J", "size=4", "-b", "1024")
    first = int(run("debugfs", "-R", "blocks /hello.txt", str(image)).split()[-1])
    content = tmp_path / "content"
    content.write_bytes(b"HELLO" + bytes(1019))
    debugfs(image, "jo", f"jw -b {first} {content}", "jc")
    disk = with_mbr(tmp_path / "disk", [image.read_bytes()])
    assert read(FileImage(disk), "/hello.txt") == b"HELLO"


def test_what_is_no_file_says_what_it_is(tree: Path, tmp_path: Path) -> None:
    image = FileImage(make_image(tmp_path / "image", tree, "ext4"))
    with pytest.raises(InvalidRequest, match=r"symbolic link to 't{59}'"):
        browse.read_file(disks(image), "/link59")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        browse.read_file(disks(image), "/d")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        browse.read_file(disks(image), "/pipe")
    with pytest.raises(InvalidRequest, match=r"hello\.txt is not a directory"):
        listed(image, "/hello.txt")
    with pytest.raises(InvalidRequest, match="symbolic link to t, and links are not followed"):
        browse.read_file(disks(image), "/link1/x")
    with pytest.raises(NotFound, match="/d/nothing"):
        listed(image, "/d/nothing/below")


@pytest.mark.parametrize(
    "path", ["", "relative", "/a/../b", "/./a", "/a//b", "/a\0b", "/" + "n" * 1532, "/n" * 3000, "/\ud800"]
)
def test_paths_that_no_parser_sees(path: str) -> None:
    with pytest.raises(InvalidRequest):
        listed(BytesImage(bytes(MIB)), path)


@pytest.mark.parametrize("content", [b"", bytes(100), bytes(MIB), b"\x53\xef" * (MIB // 2)])
def test_images_without_a_file_system(content: bytes) -> None:
    with pytest.raises(WrongState):
        listed(BytesImage(content), "/")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-O", "bigalloc", "-C", "8192"), ""),
        (("-O", "encrypt"), ""),
        (("-O", "mmp"), ""),
    ],
)
def test_features_are_read_or_refused(options: tuple[str, ...], why: str, tree: Path, tmp_path: Path) -> None:
    image = FileImage(make_image(tmp_path / "image", tree, "ext4", *options))
    if why:
        with pytest.raises(WrongState, match=why):
            listed(image, "/")
    else:
        assert read(image, "/large") == (tree / "large").read_bytes()


def test_what_the_guest_encrypted_is_refused(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-O", "encrypt")
    debugfs(image, "sif /hello.txt flags 0x80800", "sif /d flags 0x80800")
    with pytest.raises(WrongState, match="encrypted"):
        browse.read_file(disks(FileImage(image)), "/hello.txt")
    with pytest.raises(WrongState, match="encrypted"):
        listed(FileImage(image), "/d")


def test_errors_of_the_image_pass_through(tree: Path, tmp_path: Path) -> None:
    class Failing(FileImage):
        def read(self, offset: int, length: int) -> bytes:
            raise NotFound("the image is gone")

    with pytest.raises(NotFound, match="the image is gone"):
        listed(Failing(make_image(tmp_path / "image", tree, "ext4")), "/")
