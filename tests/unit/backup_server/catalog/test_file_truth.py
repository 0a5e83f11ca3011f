"""Volumes made by the tools of their file systems: every file's bytes, and all that is said of it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from arraylift.errors import NotFound, WrongState
from arraylift.sizes import KIB, MIB
from backup_server.catalog import browse
from backup_server.catalog.browse import Disk
from tests.unit.backup_server.catalog.images import (
    BytesImage,
    FileImage,
    debugfs,
    disks,
    leave_dirty,
    make_image,
    run,
    stage_tree,
)
from tests.unit.backup_server.catalog.truth import (
    assert_equal,
    fat_tree,
    golden_image,
    make_fat,
    make_xfs,
    partitioned,
    repeated,
    walked,
    with_attributes,
)

EXT = {
    "ext4": ("ext4", "-b", "4096"),
    "ext4-1k": ("ext4", "-b", "1024"),
    "ext4-bigalloc": ("ext4", "-O", "bigalloc", "-C", "8192"),
    "ext4-meta-groups": ("ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"),
    "ext4-no-extents": ("ext4", "-b", "2048", "-I", "256", "-O", "^extents,^64bit,^flex_bg,^metadata_csum"),
    "ext3-1k": ("ext3", "-b", "1024"),
    "ext2-4k": ("ext2", "-b", "4096"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage_tree(tmp_path_factory.mktemp("truth") / "tree")


@pytest.fixture(scope="module")
def ext4(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = make_image(tmp_path_factory.mktemp("ext4") / "image", tree, "ext4", "-L", "root", size=20 * MIB)
    return path.read_bytes()


@pytest.mark.parametrize("kind", EXT)
def test_ext(kind: str, tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, *EXT[kind])
    found = walked(disks(FileImage(image)))
    assert assert_equal(found, tree) > 320
    assert found.volume is not None
    assert (found.volume.key, found.volume.kind) == ("disk0", EXT[kind][0])


def test_inline_data_attributes_and_acls_of_ext4(tmp_path: Path) -> None:
    tree = stage_tree(tmp_path / "tree", sparse=False)  # mke2fs 1.47 writes these wrongly with inline data
    for options, long_bytes in ((("-O", "inline_data"), 20), (("-b", "4096"), 1500)):
        given = with_attributes(tree, long_bytes)
        image = make_image(tmp_path / "image", tree, "ext4", "-I", "256", *options)
        found = walked(disks(FileImage(image)))
        assert_equal(found, tree)
        told = {path: dict(entry.attributes) for path, (entry, _) in found.files.items() if entry.attributes}
        assert told == given


def test_a_file_in_many_extents(tree: Path, tmp_path: Path) -> None:
    """A tree of extents two levels deep, with preallocated blocks at its end."""
    image = make_image(tmp_path / "image", tree, "ext4", "-b", "1024")
    debugfs(image, *(f"fallocate /empty {at} {at}" for at in range(1, 2000, 2)), "sif /empty size 2048000")
    debugfs(image, "fallocate /hello.txt 3000 4000", "sif /hello.txt size 4096000")
    found = walked(disks(FileImage(image)))
    assert found.content("/empty") == bytes(2_048_000)
    assert found.content("/hello.txt") == b"hello" + bytes(4_095_995)
    assert found.content("/large") == (tree / "large").read_bytes()


@pytest.mark.parametrize("kind", ["ext4-1k", "ext3-1k"])
def test_a_dirty_journal_counts_as_replayed(kind: str, tree: Path, tmp_path: Path) -> None:
    name, *options = EXT[kind]
    image = make_image(tmp_path / "image", tree, name, "-J", "size=4", *options)
    after = tmp_path / "after"
    after.write_bytes(image.read_bytes())
    magic = tmp_path / "magic"  # content that the journal must escape
    magic.write_bytes(b"\xc0\x3b\x39\x98" + b"m" * 9_000)
    debugfs(
        after,
        *("rm /block", "mkdir /fresh", f"write {magic} /fresh/magic", "sif /hello.txt mode 0100600"),
        *(f"write {tree}/inline120 /many/new-{number}" for number in range(40)),
    )
    leave_dirty(image, after, 1024, scratch=tmp_path)
    dirty, clean = walked(disks(FileImage(image))), walked(disks(FileImage(after)))
    assert {path: entry for path, (entry, _) in dirty.files.items()} == {
        path: entry for path, (entry, _) in clean.files.items()
    }
    for path, (entry, _) in dirty.files.items():
        assert not entry.is_file or dirty.content(path) == clean.content(path)
    assert dirty.content("/fresh/magic") == magic.read_bytes()


def test_fast_commits_count_as_replayed() -> None:
    """An image cut off after 25 files were written and synced one by one, and more: see its script."""
    found = walked(disks(BytesImage(golden_image("ext4-fast-commit"))))
    expected = {f"/new-{number}": repeated(f"/new-{number}", number * 700) for number in range(1, 26)}
    expected |= {f"/old/{number}": repeated(f"/old/{number}", number * 100) for number in range(1, 21)}
    del expected["/old/4"]
    expected["/old/renamed"] = expected.pop("/old/5")
    expected["/linked"] = expected["/old/6"]
    expected["/old/8"] = expected["/old/8"][:10]
    expected["/old/9"] = expected["/old/9"].ljust(20_000, b"\0")
    assert {
        path: found.content(path) for path, (entry, _) in found.files.items() if entry.is_file
    } == expected
    assert not found.unread
    assert found.entry("/linked").inode == found.entry("/old/6").inode


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-b", "size=1024", "-n", "size=4096", "-d", "agcount=4"),
        ("-m", "crc=0,finobt=0"),
        ("-i", "size=2048"),
    ],
    ids=["v5", "1k", "v4", "large-inodes"],
)
def test_xfs(options: tuple[str, ...], tmp_path: Path) -> None:
    tree = stage_tree(tmp_path / "tree", sparse=False)
    (tree / "d" / "e" / "f" / "hard").unlink()
    (tree / "link900").unlink()  # of which mkfs.xfs 6.1 leaves out the header
    odd = [path for path in (tree / "d" / "e" / "f").iterdir() if not path.name.startswith("n")]
    for path in [*odd, tree / "many"]:  # a prototype has lines of words
        path.rename(path.with_name(f"renamed-{path.name.encode('ascii', 'ignore').decode().split()[0]}"))
    (tree / "large").chmod(0o751)
    (tree / "d").chmod(0o770)
    found = walked(disks(FileImage(make_xfs(tmp_path / "image", tree, *options))))
    assert found.volume is not None
    assert (found.volume.kind, found.volume.remark) == ("xfs", "")
    assert assert_equal(found, tree, posix=os.getuid() == 0, times=False) > 310


@pytest.mark.parametrize(("bits", "size"), [(12, 4 * MIB), (16, 20 * MIB), (32, 40 * MIB)])
def test_fat(bits: int, size: int, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    tree = fat_tree(tmp_path / "tree")
    found = walked(disks(FileImage(make_fat(tmp_path / "image", tree, bits, size))))
    assert found.volume is not None
    assert (found.volume.kind, found.volume.label) == (f"fat{bits}", f"FAT{bits}")
    assert assert_equal(found, tree, posix=False, times=False) > 300


def test_ntfs() -> None:
    """An image made by ntfs-3g: see its script."""
    found = walked(disks(BytesImage(golden_image("ntfs"))))
    assert found.volume is not None
    assert (found.volume.kind, found.volume.label, found.volume.remark) == ("ntfs", "Golden", "")
    large = repeated("/large", 700_000)
    blocks = [large[at : at + 1024] for at in range(0, len(large), 1024)]
    expected = {
        f"/many/file-number-{number}": repeated(f"/many/file-number-{number}", number * 7)
        for number in range(1, 401)
        if number % 10 != 7
    }
    expected |= {
        "/resident": repeated("/resident", 300),
        "/empty": b"",
        "/large": large,
        "/deep/hard": large,
        "/deep/er/ünï-ሴ💾": repeated("/deep/er/ünï-ሴ💾", 5000),
        "/hole": bytes(2_000_000),
        "/others": bytes(1024) + blocks[0] * 150,
        "/fragments": (bytes(2048) + (blocks[0] + bytes(1024)) * 150).ljust(900_000, b"\0"),
        "/resident:note": b"a stream",
        "/large:long": b"s" * 9000,
        "/deep/hard:long": b"s" * 9000,
    }
    files = {path for path, (entry, _) in found.files.items() if entry.is_file}
    assert files == {*expected, "/packed/file"}
    assert {path: found.content(path) for path in expected} == expected
    assert "compressed" in found.entry("/packed/file").flaw
    assert not found.unread
    hard = found.entry("/deep/hard")
    assert (hard.inode, hard.link_count) == (found.entry("/large").inode, 2)
    attributes = dict(found.entry("/deep/er").attributes)
    assert attributes[b"system.ntfs_acl"][:2] == b"\1\0"
    assert attributes[b"system.ntfs_acl"] != dict(found.entry("/deep").attributes).get(b"system.ntfs_acl")
    with pytest.raises(WrongState, match="compressed"):
        browse.read_file(found.disks, "/packed/file")


def test_partitions_have_keys_that_stay(ext4: bytes, tmp_path: Path) -> None:
    fat = make_fat(tmp_path / "fat", fat_tree_in(tmp_path), 16, 20 * MIB).read_bytes()
    gpt = "label: gpt\n2: start=2048, size=40960, name=boot\n5: start=49152, size=40960\n7: size=8192\n"
    one = partitioned(tmp_path / "gpt", gpt, 60 * MIB, {2: fat, 5: ext4, 7: bytes(4096)})
    mbr = "label: dos\n1: start=2048,size=8192,type=82\n2: start=10240,type=5\n"
    mbr += "5: start=12288,size=40960\n6: start=57344,size=40960\n"
    two = partitioned(tmp_path / "mbr", mbr, 60 * MIB, {5: fat, 6: ext4})
    swap = tmp_path / "swap"
    swap.write_bytes(bytes(4 * MIB))
    run("mkswap", str(swap))
    with two.open("r+b") as file:
        file.seek(MIB)
        file.write(swap.read_bytes())
    both = [Disk("vda", FileImage(one)), Disk("vdb", FileImage(two)), Disk("vdc", FileImage(swap))]
    found = {volume.key: volume for volume in browse.survey(both)}
    assert {key: (volume.kind, volume.readable) for key, volume in found.items()} == {
        "vda/p2": ("fat16", True),
        "vda/p5": ("ext4", True),
        "vda/p7": ("", False),
        "vdb/p1": ("swap", False),
        "vdb/p5": ("fat16", True),
        "vdb/p6": ("ext4", True),
        "vdc": ("swap", False),
    }
    assert found["vda/p5"].label == "root"
    assert found["vda/p5"].size_bytes == 20 * MIB
    assert "swap" in found["vdc"].remark
    for key in ("vda/p5", "vdb/p6"):
        assert walked(both, key).content("/hello.txt") == b"hello"
    assert browse.list_directory(both, "/")[0].size_bytes == 20 * MIB
    with pytest.raises(NotFound, match="vdb/p6"):
        browse.list_directory(both, "/", "vdb/p9")
    with pytest.raises(WrongState, match="swap"):
        browse.list_directory(both, "/", "vdb/p1")


def fat_tree_in(tmp_path: Path) -> Path:
    (tmp_path / "fat-tree").mkdir()
    return fat_tree(tmp_path / "fat-tree")


def test_the_volume_with_the_system_is_taken(tmp_path: Path) -> None:
    images = []
    for name, size in (("data", 16 * MIB), ("system", 8 * MIB), ("more", 12 * MIB)):
        tree = tmp_path / name
        (tree / ("Etc" if name == "system" else name)).mkdir(parents=True)
        images.append(FileImage(make_image(tmp_path / f"{name}.img", tree, "ext4", size=size)))
    assert browse.list_directory(disks(*images), "/")[0].key == "disk1"
    assert browse.list_directory(disks(images[2], images[0]), "/")[0].key == "disk1", "the largest"


def test_logical_volumes_over_two_disks(tree: Path, tmp_path: Path) -> None:
    """Heads of physical volumes that LVM wrote, the second in a partition. Where things are is from lvs."""
    root = make_image(tmp_path / "root", tree, "ext4", size=80 * MIB).read_bytes()
    stripe = make_image(tmp_path / "stripe", tree, "ext4", "-b", "1024", size=20 * MIB).read_bytes()
    parts = [bytearray(64 * MIB), bytearray(64 * MIB)]
    for number, part in enumerate(parts):
        part[:MIB] = golden_image(f"lvm2-pv{number}")

    def put(number: int, extent: int, content: bytes) -> None:
        parts[number][(1 + extent) * MIB : (1 + extent) * MIB + len(content)] = content

    put(0, 0, root[: 40 * MIB])
    put(0, 58, root[40 * MIB : 45 * MIB])
    put(1, 10, root[45 * MIB :])
    chunks = [stripe[at : at + 64 * KIB] for at in range(0, len(stripe), 64 * KIB)]
    put(0, 40, b"".join(chunks[::2]))
    put(1, 0, b"".join(chunks[1::2]))
    second = partitioned(
        tmp_path / "disk", "label: gpt\n3: start=2048, size=131072\n", 68 * MIB, {3: bytes(parts[1])}
    )
    both = disks(BytesImage(parts[0]), FileImage(second))
    found = {volume.key: volume for volume in browse.survey(both)}
    assert {key: (volume.kind, volume.readable) for key, volume in found.items()} == {
        "disk0": ("LVM2_member", False),
        "disk1/p3": ("LVM2_member", False),
        "lvm/vg0/root": ("ext4", True),
        "lvm/vg0/stripe": ("ext4", True),
        "lvm/vg0/small": ("", False),
    }
    for key in ("lvm/vg0/root", "lvm/vg0/stripe"):
        whole = walked(both, key)
        assert assert_equal(whole, tree) > 320
        used = {
            piece.disk for _, pieces in whole.files.values() for piece in pieces if piece.length > 64 * KIB
        }
        assert used <= {0, 1}
    alone = {volume.key: volume for volume in browse.survey(both[:1])}
    assert not alone["lvm/vg0/root"].readable
    assert "on no disk here" in alone["lvm/vg0/root"].remark
    swapped = [both[1], both[0]]
    assert walked(swapped, "lvm/vg0/stripe").content("/large") == (tree / "large").read_bytes()


@pytest.mark.parametrize(
    ("at", "magic", "kind", "why"),
    [
        (0, b"LUKS\xba\xbe\0\2", "crypto_LUKS", "encrypted"),
        (3, b"-FVE-FS-", "BitLocker", "encrypted"),
        (0x10040, b"_BHRfS_M", "btrfs", "cannot be read"),
        (4096, b"\xfc\x4e\x2b\xa9", "linux_raid_member", "RAID"),
        (0x8001, b"CD001", "iso9660", "cannot be read"),
        (500, b"?", "", "no file system"),
    ],
)
def test_what_cannot_be_read_is_listed(at: int, magic: bytes, kind: str, why: str) -> None:
    content = bytearray(2 * MIB)
    content[at : at + len(magic)] = magic
    (volume,) = browse.survey(disks(BytesImage(content)))
    assert (volume.key, volume.kind, volume.readable) == ("disk0", kind, False)
    assert why in volume.remark
    with pytest.raises(WrongState, match=why):
        browse.list_directory(disks(BytesImage(content)), "/")


def test_flaws_do_not_end_a_walk(tree: Path, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tree, "ext4", "-b", "1024")
    debugfs(
        image,
        *("sif /hello.txt flags 0x80800", "sif /d/e flags 0x80800"),  # encrypted
        *("sif /block block[0] 0", "sif /pipe mode 0", "sif /link1 size 0"),
        *(f"mkdir /{'x' * 200}{number}" for number in range(3)),
    )
    found = walked(disks(FileImage(image)))
    flaws = {path: entry.flaw for path, (entry, _) in found.files.items() if entry.flaw}
    assert flaws.keys() == {"/hello.txt", "/block", "/pipe", "/link1"}
    assert "encrypted" in flaws["/hello.txt"]
    assert list(found.unread) == ["/d/e"]
    assert found.content("/large") == (tree / "large").read_bytes()
    for path, (entry, _) in itertools.islice(found.files.items(), 40):
        assert not entry.is_file or entry.flaw or found.content(path) == (tree / path[1:]).read_bytes()
