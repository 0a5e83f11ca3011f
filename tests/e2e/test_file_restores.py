"""Disks and files of backups out of real daemons: saved, here, in the guest, and on a disk of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import House, a_house
from tests.programs import need


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Daemons that no test kills; tests use VM names of their own."""
    with a_house(tmp_path_factory.mktemp("control")) as made:
        made.up()
        yield made


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """A disk of 24 MiB with files below /etc and /srv."""
    need("mkfs.ext4", "debugfs", "xorriso")
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "srv/deep").mkdir(parents=True)
    (tree / "etc/motd").write_bytes(b"monday\n" * 10_000)
    (tree / "srv/deep/data").write_bytes(os.urandom(3_000_000))
    (tree / "srv/deep/data").chmod(0o640)
    (tree / "srv/link").symlink_to("deep/data")
    os.utime(tree / "srv/deep/data", (1_700_000_000, 1_700_000_000))
    disk = tmp_path / "ext4.img"
    mkfs = shutil.which("mkfs.ext4") or "/sbin/mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-d", str(tree), str(disk), "24M"], check=True)
    return disk


@pytest.mark.timeout(240)
def test_every_way_back_brings_the_same_bytes(house: House, tmp_path: Path, ext4: Path) -> None:
    data = (tmp_path / "tree/srv/deep/data").read_bytes()
    house.json("vm", "create", "web", "--disk", ext4, "--start")
    (backup,) = house.json("backup", "web")
    house.run("backups", "save", "web", "disk0", tmp_path / "saved.img")
    house.run("array", "volumes", "export", "web-disk0", tmp_path / "volume.img")
    assert (tmp_path / "saved.img").read_bytes() == (tmp_path / "volume.img").read_bytes()
    house.run("files", "restore", "web", "/srv", "--to", tmp_path / "here")
    made = tmp_path / "here/srv/deep/data"
    assert (made.read_bytes(), made.stat().st_mode, made.stat().st_mtime) == (data, 0o100640, 1_700_000_000)
    assert os.readlink(tmp_path / "here/srv/link") == "deep/data"

    (tmp_path / "motd").write_bytes(b"tuesday\n")
    house.run("vm", "files", "put", "web", tmp_path / "motd", "/etc/motd")
    refused = house.run("files", "restore", backup["backup_id"], "/etc/motd", "--guest", ok=False)
    assert "there is one already" in refused.err
    house.run("files", "restore", backup["backup_id"], "/etc/motd", "--guest", "--overwrite")
    house.run("vm", "files", "get", "web", "/etc/motd", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"monday\n" * 10_000

    house.run("files", "restore", "web", "/srv", "--as-disk")
    disk = house.json("vm", "show", "web")["vm"]["config"]["disks"][-1]
    assert disk["name"].startswith("files-")
    house.run("array", "volumes", "export", disk["volume_name"], tmp_path / "files.iso")
    words = [
        "-osirrox",
        "on",
        "-indev",
        str(tmp_path / "files.iso"),
        "-extract",
        "/srv",
        str(tmp_path / "out"),
    ]
    subprocess.run(["xorriso", *words], check=True, capture_output=True, timeout=60)
    made = tmp_path / "out/deep/data"
    assert (made.read_bytes(), made.stat().st_mode, made.stat().st_mtime) == (data, 0o100640, 1_700_000_000)
    images = house.json("target", "images", "ls")
    assert [image["image_id"] for image in images] == [one["image_id"] for one in _disks(house)]


@pytest.mark.timeout(240)
def test_a_single_disk_becomes_a_volume_of_its_vm(house: House, tmp_path: Path, ext4: Path) -> None:
    house.json("vm", "create", "db", "--disk", ext4)
    house.json("backup", "db")
    house.run("restore", "db", "--disk", "disk0", "--volume", "mine", "--attach", "db")
    assert house.json("vm", "show", "db")["vm"]["config"]["disks"][-1]["volume_name"] == "mine"
    house.run("array", "volumes", "export", "mine", tmp_path / "mine.img")
    assert (tmp_path / "mine.img").read_bytes() == ext4.read_bytes()
    assert house.run("restore", "db", "--disk", "disk0", "--volume", "mine", ok=False).code == 4


def _disks(house: House) -> list[dict[str, str]]:
    shown = [house.json("backups", "show", one["backup_id"]) for one in house.json("backups", "ls")]
    return [disk for backup in shown for disk in backup["disks"]]
