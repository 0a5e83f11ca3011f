"""``python -m benchmarks file``: one file of 1 MiB out of an image of 20 GiB, on the daemon's side.

An ext4 image with files of 1 MiB among small ones is written to a target, which runs as a daemon. Then each
large file is read once as the backup server reads it for ReadFiles: a parser in a process of its own, which
finds the file through the target, then its content. No file is read twice, so nothing of it is cached here.
Callers: main thread.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from arraylift import pki
from arraylift.cli.connection import Connection
from arraylift.cli.local_files import SparseFile
from arraylift.cli.volume_data import data_extents
from arraylift.ids import random_id
from arraylift.sizes import GIB, MIB
from arraylift.v1 import image_pb2
from backup_server.catalog import browse
from backup_server.file_reads import Data, FileReads, Start
from backup_server.image_access import RemoteImage
from backup_server.model import PeerKind, RegisteredPeer
from backup_server.peers import GrpcPeers
from benchmarks import daemons

IMAGE_BYTES = 20 * GIB
LARGE_FILES, SMALL_FILES = 20, 5_000
MILLISECONDS_GOAL = 200.0
MODE, MODIFIED_AT_NS = 0o100751, 1_234_567_890 * 10**9


@dataclass(frozen=True, slots=True)
class Found:
    """What the reads took; ``whole``: all were bit-exact, with mode, owner and time."""

    image_bytes: int
    reads: int
    median_milliseconds: float
    slowest_milliseconds: float
    whole: bool

    @property
    def reached(self) -> bool:
        return self.whole and self.median_milliseconds < MILLISECONDS_GOAL


def run(
    console: Console, work: Path, *, image_bytes: int = IMAGE_BYTES, json_path: Path | None = None
) -> int:
    """Measure; returns 0 if the goal is reached and every byte was right."""
    scratch = work / "file"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with console.status(f"making an image of {image_bytes // GIB} GiB"):
            image, contents = _generate(scratch, image_bytes)
        found = _measure(scratch, image, contents)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = Table("what", "value", title=f"1 MiB out of an image of {image_bytes // GIB} GiB", box=None)
    table.add_row("median", f"{found.median_milliseconds:.0f} ms of {MILLISECONDS_GOAL:g}")
    table.add_row("slowest", f"{found.slowest_milliseconds:.0f} ms of {found.reads} reads")
    table.add_row("bit-exact, with mode, owner and time", "yes" if found.whole else "NO")
    console.print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.reached else 1


def _generate(scratch: Path, image_bytes: int) -> tuple[Path, dict[str, bytes]]:
    tree, contents = scratch / "tree", dict[str, bytes]()
    for number in range(SMALL_FILES):
        folder = tree / f"etc/folder-{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"small-{number}").write_bytes(b"%d\n" % number * 40)
    for number in range(LARGE_FILES):
        path = f"/etc/folder-{number}/large"
        contents[path] = os.urandom(MIB)
        file = tree / path[1:]
        file.write_bytes(contents[path])
        file.chmod(MODE & 0o7777)
        os.utime(file, ns=(MODIFIED_AT_NS, MODIFIED_AT_NS))
    image = scratch / "image"
    command = ["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(tree), str(image), f"{image_bytes // MIB}M"]
    subprocess.run(command, env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}, check=True)
    shutil.rmtree(tree)
    return image, contents


def _measure(scratch: Path, image: Path, contents: dict[str, bytes]) -> Found:
    directory = daemons.make_pki(scratch)
    pki.issue(str(directory), "server", "server1")
    target = daemons.start("target", "dedup_target", "target1", scratch=scratch, pki_directory=directory)
    peers = GrpcPeers(pki.load(str(directory), "server", "server1"))
    try:
        daemons.wait_until_ready(target, scratch=scratch)
        image_id = _write(target.connection, image)
        peer = RegisteredPeer(PeerKind.TARGET, "target1", target.connection.address)
        size, seconds, whole = image.stat().st_size, list[float](), True
        peers.target(peer).delete_image(random_id())  # connects
        for path, content in contents.items():
            begun = time.monotonic()
            disk = browse.Disk("disk0", RemoteImage(peers.target(peer), image_id, size))
            parts = list(FileReads(browse, [disk], "").read([path], recursive=True))
            seconds.append(time.monotonic() - begun)
            whole = whole and _is_whole(parts, content)
    finally:
        peers.close()
        daemons.stop(target)
    return Found(size, len(seconds), statistics.median(seconds) * 1000, max(seconds) * 1000, whole)


def _is_whole(parts: Sequence[object], content: bytes) -> bool:
    data = b"".join(part.data for part in parts if isinstance(part, Data))
    (entry,) = (part.entry for part in parts if isinstance(part, Start))
    facts = (entry.mode, entry.uid, entry.gid, entry.modified_at_ns)
    return data == content and facts == (MODE, os.geteuid(), os.getegid(), MODIFIED_AT_NS)


def _write(target: Connection, path: Path) -> str:
    """Send the image to the target; returns its id."""

    def requests() -> Iterator[image_pb2.WriteFileRequest]:
        with SparseFile(path) as source:
            header = image_pb2.FileHeader(
                transfer_id=random_id(), name="benchmark/disk0", size_bytes=source.size_bytes
            )
            yield image_pb2.WriteFileRequest(header=header)
            count = written = 0
            for extent in data_extents(source, 0, source.size_bytes, lambda _: None):
                piece = image_pb2.FilePiece(offset=extent.offset, data=extent.data)
                yield image_pb2.WriteFileRequest(piece=piece)
                count, written = count + 1, written + len(extent.data)
            end = image_pb2.FileEnd(extent_count=count, bytes_written=written)
            yield image_pb2.WriteFileRequest(end=end)

    answer: image_pb2.WriteFileResponse = target.upload(target.images.WriteFile, requests())
    return answer.image.image_id
