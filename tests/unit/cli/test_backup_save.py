"""Disks of backups as disk files: whole, sparse, and as other programs read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from arraylift.sizes import KIB, MIB
from arraylift.v1 import backup_pb2
from tests.e2e.disks import random_disk
from tests.programs import need
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id

SIZE = 12 * MIB + 512


@pytest.fixture
def disk(daemons: Daemons) -> bytes:
    content = bytearray(SIZE)
    for seed, at in enumerate((0, 3 * MIB + 300 * KIB, SIZE - 100 * KIB)):
        content[at : at + 100 * KIB] = random_disk(100 * KIB, seed=seed)
    daemons.images.content = bytes(content)
    daemons.server.peers[backup_pb2.PEER_KIND_TARGET, "t7"] = daemons.target_address
    daemons.server.backups = [
        backup_pb2.Backup(
            backup_id=hex_id(1),
            vm_name="web",
            target="t7",
            disks=[backup_pb2.BackupDisk(disk_name="disk0", image_id=hex_id(9), size_bytes=SIZE)],
        )
    ]
    return bytes(content)


@pytest.mark.parametrize("disk_format", ["raw", "qcow2", "vmdk"])
def test_a_disk_is_saved_byte_for_byte(
    arraylift: Arraylift, disk: bytes, tmp_path: Path, disk_format: str
) -> None:
    need("qemu-img", "qemu-nbd")
    out, raw = tmp_path / "out", tmp_path / "raw"
    raw.write_bytes(disk)
    ended = arraylift("backups", "save", "web", "disk0", out, "--format", disk_format, "--json")
    assert ended.code == 0, ended.err
    assert (ended.document["format"], ended.document["size_bytes"]) == (disk_format, SIZE)
    compared = ["qemu-img", "compare", "-f", "raw", "-F", disk_format, str(raw), str(out)]
    subprocess.run(compared, check=True, capture_output=True, timeout=60)
    assert out.stat().st_blocks * 512 < 4 * MIB, "holes take no space"
    assert disk_format != "raw" or out.read_bytes() == disk
    assert arraylift("backups", "save", "web", "disk0", out, "--format", disk_format).code == 4
    assert arraylift("backups", "save", "web", "disk0", out, "--format", disk_format, "--force").code == 0


def test_nothing_appears_of_what_was_cut(
    arraylift: Arraylift, daemons: Daemons, disk: bytes, tmp_path: Path
) -> None:
    daemons.images.cut_reads_at = 4 * MIB
    ended = arraylift("backups", "save", "web", "disk0", tmp_path / "out")
    assert ended.code == 10
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".*.tmp")) == []


def test_what_is_not_there_is_named(arraylift: Arraylift, disk: bytes, tmp_path: Path) -> None:
    ended = arraylift("backups", "save", "web", "disk7", tmp_path / "out")
    assert ended.code == 3
    assert "name one of disk0" in ended.err
    assert arraylift("backups", "save", "web", "disk0", tmp_path / "out", "--format", "iso").code == 2
