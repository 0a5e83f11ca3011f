"""Images with real file systems in them, the trees they were made from, and journals left dirty."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from arraylift.sizes import MIB
from backup_server.catalog import browse
from tests.programs import need

SECTOR_BYTES = 512
IMAGE_BYTES = 24 * MIB


def disks(*images: browse.ImageAccess) -> list[browse.Disk]:
    """Return images as the disks of one backup: disk0, disk1, ..."""
    return [browse.Disk(f"disk{number}", image) for number, image in enumerate(images)]


def listed(image: browse.ImageAccess, path: str, volume: str = "") -> list[browse.FileEntry]:
    return browse.list_directory(disks(image), path, volume)[1]


@dataclass(slots=True)
class FileImage:
    """A file as an image; counts what was read."""

    path: Path
    size_bytes: int = 0
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size_bytes = self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes
        self.reads.append((offset, length))
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@dataclass(slots=True)
class BytesImage:
    """Bytes as an image."""

    content: bytes | bytearray

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])


def stage_tree(root: Path, *, sparse: bool = True) -> Path:
    """Fill a directory with what file systems find hard; return it."""
    chance = random.Random(7)
    root.mkdir()
    (root / "hello.txt").write_bytes(b"hello")
    (root / "empty").write_bytes(b"")
    (root / "inline120").write_bytes(chance.randbytes(120))
    (root / "block").write_bytes(chance.randbytes(4096))
    (root / "large").write_bytes(chance.randbytes(3 * MIB + 17))
    if sparse:
        with (root / "sparse").open("wb") as file:
            file.seek(100_000)
            file.write(b"middle")
            file.seek(5_000_000)
            file.write(b"end")
            file.truncate(9_000_000)
        with (root / "hole").open("wb") as file:
            file.truncate(1_000_001)
    for length in (1, 59, 60, 61, 900):
        (root / f"link{length}").symlink_to("t" * length)
    deep = root / "d" / "e" / "f"
    deep.mkdir(parents=True)
    (deep / "ünï-\u1234 \U0001f4be").write_bytes(b"unicode")
    (Path(os.fsdecode(os.fsencode(deep) + b"/latin-\xe4\xff"))).write_bytes(b"not UTF-8")
    (deep / ("n" * 255)).write_bytes(b"longest name")
    os.link(root / "hello.txt", deep / "hard")
    many = root / "many"
    many.mkdir()
    for number in range(300):
        (many / f"file-{number:04}").write_bytes(b"%d\n" % number * number)
    os.mkfifo(root / "pipe")
    (root / "large").chmod(0o4751)
    (root / "d").chmod(0o1770)
    os.utime(root / "hello.txt", (1_000_000_000, 1_234_567_890))
    return root


def make_image(path: Path, tree: Path | None, kind: str, *options: str, size: int = IMAGE_BYTES) -> Path:
    """Run mkfs over a new file, with a tree in it; return the path."""
    need(f"mkfs.{kind}")
    with path.open("wb") as file:
        file.truncate(size)
    staged = ["-d", str(tree)] if tree else []
    run(f"mkfs.{kind}", "-q", "-F", "-E", "lazy_itable_init=0", *staged, *options, str(path))
    return path


def run(*command: str) -> str:
    """Run an e2fsprogs program and return what it says."""
    environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    ended = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
    )
    text = ended.stdout.decode("utf-8", "replace")
    assert ended.returncode == 0, f"{command}: {text}"
    return text


def debugfs(image: Path, *requests: str) -> str:
    """Change a file system without mounting it."""
    need("debugfs")
    script = image.with_suffix(".debugfs")
    script.write_text("\n".join(requests) + "\n")
    return run("debugfs", "-w", "-f", str(script), str(image))


def compare(image: browse.ImageAccess, tree: Path, path: str = "/") -> int:
    """Assert that everything below a path of the image equals the tree; return how many names were seen."""
    entries = [entry for entry in listed(image, path) if entry.path != "/lost+found"]
    at = tree / path.lstrip("/")
    assert [entry.name for entry in entries] == sorted(os.listdir(at), key=os.fsencode)
    count = len(entries)
    for entry in entries:
        source = tree / entry.path.lstrip("/")
        status = source.lstat()
        assert entry.path == f"{path.rstrip('/')}/{entry.name}"
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode, status.st_uid, status.st_gid), (
            entry.path
        )
        assert entry.modified_at_ns // 10**9 == status.st_mtime_ns // 10**9, entry.path
        assert entry.link_target == (os.readlink(source) if entry.is_link else "")
        if entry.is_directory:
            count += compare(image, tree, entry.path)
        elif entry.is_file and not path.startswith("/many"):
            assert read(image, entry.path) == source.read_bytes(), entry.path
            assert entry.size_bytes == status.st_size
    if path == "/many":  # one process for each file: a sample will do
        for entry in entries[::150]:
            assert read(image, entry.path) == (at / entry.name).read_bytes()
    return count


def read(image: browse.ImageAccess, path: str) -> bytes:
    """Return a file's whole content, each part checked for its size."""
    parts = list(browse.read_file(disks(image), path)[2])
    assert all(0 < len(part) <= MIB for part in parts)
    return b"".join(parts)


def with_mbr(path: Path, partitions: list[bytes]) -> Path:
    """Write a disk with an MBR by hand: each partition starts at a whole MiB. Return the path."""
    table = bytearray(SECTOR_BYTES)
    at = MIB
    disk = bytearray(MIB)
    for number, content in enumerate(partitions):
        entry = struct.pack(
            "<B3sB3sII",
            0,
            b"\xfe\xff\xff",
            0x83,
            b"\xfe\xff\xff",
            at // SECTOR_BYTES,
            len(content) // SECTOR_BYTES,
        )
        table[446 + 16 * number : 462 + 16 * number] = entry
        disk += content
        at += len(content)
    table[510:] = b"\x55\xaa"
    disk[:SECTOR_BYTES] = table
    path.write_bytes(disk)
    return path


def with_gpt(path: Path, content: bytes) -> Path:
    """Write a disk with a GPT by hand, and one partition at the first MiB. Return the path."""
    sectors = (len(content) + 2 * MIB) // SECTOR_BYTES
    first = MIB // SECTOR_BYTES
    linux = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entry = struct.pack(
        "<16s16sQQQ72s", linux, b"u" * 16, first, first + len(content) // SECTOR_BYTES - 1, 0, b""
    )
    entries = entry.ljust(128 * 128, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        fields = (own, other, 34, sectors - 34, b"d" * 16, table, 128, 128, zlib.crc32(entries))
        bare = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
        return (bare[:16] + struct.pack("<I", zlib.crc32(bare)) + bare[20:]).ljust(SECTOR_BYTES, b"\0")

    disk = bytearray(with_mbr(path, [content]).read_bytes() + bytes(MIB))
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, sectors - 1)
    disk[SECTOR_BYTES : 2 * SECTOR_BYTES] = header(1, sectors - 1, 2)
    disk[2 * SECTOR_BYTES : 34 * SECTOR_BYTES] = entries
    disk[-33 * SECTOR_BYTES : -SECTOR_BYTES] = entries
    disk[-SECTOR_BYTES:] = header(sectors - 1, 1, sectors - 33)
    path.write_bytes(disk)
    return path


def batched(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def leave_dirty(before: Path, after: Path, block_bytes: int, *, scratch: Path) -> list[int]:
    """Write what differs between two images into the journal of the first only; return the blocks."""
    new = after.read_bytes()
    pairs = zip(batched(before.read_bytes(), block_bytes), batched(new, block_bytes), strict=True)
    blocks = [number for number, (old_block, new_block) in enumerate(pairs) if old_block != new_block]
    assert blocks
    requests = ["jo"]
    step = 40  # several transactions
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        content = scratch / f"blocks{start}"
        content.write_bytes(
            b"".join(new[number * block_bytes : (number + 1) * block_bytes] for number in part)
        )
        requests.append(f"jw -b {','.join(map(str, part))} {content}")
    debugfs(before, *requests, "jc")
    return blocks
