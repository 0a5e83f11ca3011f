"""VMs through their whole life by the command line, over all five daemons."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import House, a_house, command, make_disk
from tests.programs import need


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Daemons that no test kills; tests use VM names of their own."""
    with a_house(tmp_path_factory.mktemp("control")) as made:
        made.up()
        yield made


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """A disk of 24 MiB with /etc/motd and /etc/old."""
    need("mkfs.ext4", "debugfs")
    tree = tmp_path / "tree" / "etc"
    tree.mkdir(parents=True)
    (tree / "motd").write_bytes(b"monday\n" * 10_000)
    (tree / "old").write_bytes(b"old\n")
    os.utime(tree / "motd", (1_700_000_000, 1_700_000_000))
    (tree / "motd").chmod(0o640)
    disk = tmp_path / "ext4.img"
    mkfs = shutil.which("mkfs.ext4") or "/sbin/mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-d", str(tree.parent), str(disk), "24M"], check=True)
    return disk


@pytest.mark.timeout(240)
def test_a_vm_is_backed_up_changed_backed_up_and_restored(house: House, tmp_path: Path, ext4: Path) -> None:
    data = make_disk(tmp_path / "data.img", seed=7)
    vm = house.json("vm", "create", "web", "--disk", ext4, "--disk", data, "--tag", "tier=gold", "--start")
    (first,) = house.json("backup", "web")
    assert (first["state"], first["vm_id"]) == ("job_state_succeeded", vm["vm_id"])
    assert first["frozen_ns"] > 0
    at_first = {name: export(house, name, tmp_path) for name in ("web-disk0", "web-disk1")}
    assert at_first["web-disk1"] == data.read_bytes()

    motd = tmp_path / "motd"
    motd.write_bytes(b"tuesday\n" * 20_000)
    house.run("vm", "files", "put", "web", motd, "/etc/motd")
    house.run("vm", "files", "rm", "web", "/etc/old")
    assert [file["path"] for file in house.json("vm", "files", "ls", "web", "/etc")] == ["/etc/motd"]
    (second,) = house.json("backup", "--tag", "tier=gold")
    assert second["figures"]["bytes_read"] < first["figures"]["bytes_read"]
    listed = house.json("backups", "ls", "web")
    assert [(each["backup_id"], each["incremental"]) for each in listed] == [
        (second["backup_id"], True),
        (first["backup_id"], False),
    ]
    assert house.json("backups", "show", second["backup_id"][:12])["backup_id"] == second["backup_id"]

    for backup, content, mode in (
        (first["backup_id"], b"monday\n" * 10_000, 0o640),
        ("web", motd.read_bytes(), motd.stat().st_mode & 0o777),
    ):
        out = tmp_path / f"out-{content[:3]!r}"
        house.run("files", "get", backup, "/etc/motd", out)
        assert out.read_bytes() == content
        assert out.stat().st_mode & 0o7777 == mode
        assert house.run("files", "get", backup, "/etc/motd", out, ok=False).code == 4
    old = {file["path"] for file in house.json("files", "ls", first["backup_id"], "/etc")}
    new = {file["path"] for file in house.json("files", "ls", "web", "/etc")}
    assert old - new == {"/etc/old"}

    (job,) = house.json("restore", first["backup_id"], "--as", "web-monday")
    shown = house.json("vm", "show", "web-monday")["vm"]
    assert (shown["vm_id"], shown["power"]) == (job["result_vm_id"], "power_state_off")
    assert shown["config"]["uuid"] != vm["config"]["uuid"]
    made = {disk["name"]: disk["volume_name"] for disk in shown["config"]["disks"]}
    for disk in ("disk0", "disk1"):
        assert export(house, made[disk], tmp_path) == at_first[f"web-{disk}"]

    assert set(house.json("backups", "verify", "web")["disks"]) == {"disk0", "disk1"}
    house.run("backups", "rm", first["backup_id"])
    house.run("backups", "verify", "web", "--max-age", "0")
    house.run("backups", "lock", second["backup_id"], "--for", "2d")
    assert house.json("backups", "show", second["backup_id"])["lock_until_ns"] > 0
    refused = house.run("backups", "rm", second["backup_id"], ok=False)
    assert (refused.code, "is locked until" in refused.err) == (5, True), refused.err
    (image, *_) = [disk["image_id"] for disk in house.json("backups", "show", "web")["disks"]]
    assert house.json("target", "images", "show", image)["lock_until_ns"] > 0
    assert [each["backup_id"] for each in house.json("backups", "ls", "web")] == [second["backup_id"]]
    house.run("vm", "stop", "web")
    volumes = {volume["name"] for volume in house.json("array", "volumes", "ls")}
    house.run("vm", "rm", "web-monday")
    gone = volumes - {volume["name"] for volume in house.json("array", "volumes", "ls")}
    assert gone == set(made.values())
    jobs = house.json("job", "ls")
    assert {first["job_id"], second["job_id"], job["job_id"]} <= {each["job_id"] for each in jobs}
    assert house.run("job", "watch", first["job_id"][:12]).code == 0


def export(house: House, volume: str, directory: Path) -> bytes:
    out = directory / "exported"
    house.run("array", "volumes", "export", volume, out, "--force")
    return out.read_bytes()


@pytest.mark.timeout(240)
def test_direct_full_and_started_without_waiting(house: House, tmp_path: Path) -> None:
    house.run("vm", "create", "direct", "--disk", make_disk(tmp_path / "d", seed=8))
    (first,) = house.json("backup", "direct", "--direct")
    (started,) = house.json("backup", "direct", "--direct", "--full", "--target", "target1", "--no-wait")
    second = house.json("job", "watch", started["job_id"])
    assert second["state"] == "job_state_succeeded"
    assert second["figures"]["spans_read"] == first["figures"]["spans_read"]
    (job,) = house.json("restore", "direct", "--as", "direct-back", "--direct", "--host", "host1", "--start")
    shown = house.json("vm", "show", job["result_vm_id"])["vm"]
    assert (shown["config"]["name"], shown["power"]) == ("direct-back", "power_state_on")


@pytest.mark.timeout(240)
def test_a_running_vm_is_brought_back_in_place(house: House, tmp_path: Path) -> None:
    house.run("vm", "create", "spoilt", "--disk", make_disk(tmp_path / "d", seed=10))
    (kept,) = house.json("backup", "spoilt", "--consistency", "filesystem")
    assert kept["level"] == "consistency_level_filesystem"
    weak = house.run("backup", "spoilt", "--consistency", "application", ok=False)
    assert (weak.code, "FILESYSTEM" in weak.err.upper()) == (5, True), weak.err
    (volume,) = (disk["volume_name"] for disk in house.json("vm", "show", "spoilt")["vm"]["config"]["disks"])
    good = export(house, volume, tmp_path)
    (tmp_path / "other").write_bytes(good[::-1])
    house.run("array", "volumes", "write", volume, tmp_path / "other")
    house.run("vm", "start", "spoilt")
    running = house.run("restore", "spoilt", "--in-place", ok=False)
    assert (running.code, "--stop" in running.err) == (5, True), running.err
    done = house.run("restore", "spoilt", "--in-place", "--stop", "--start")
    assert f"snapshot {volume}@before-restore-" in done.err, "it says where the old state is"
    assert export(house, volume, tmp_path) == good
    assert house.json("vm", "show", "spoilt")["vm"]["power"] == "power_state_on"


@pytest.mark.timeout(240)
def test_refusals_have_their_codes_and_leave_nothing(house: House, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "d", seed=9)
    house.run("vm", "create", "taken", "--disk", disk)
    before = house.json("array", "volumes", "ls")
    for code, arguments in (
        (4, ("vm", "create", "taken", "--disk", disk)),
        (3, ("vm", "create", "lonely", "--disk", disk, "--host", "nohost")),
        (7, ("vm", "create", "huge", "--disk", disk, "--memory", "3T")),
        (3, ("vm", "create", "lonely", "--disk", disk, "--disk", tmp_path / "nothing")),
        (3, ("vm", "show", "nobody")),
        (3, ("backup", "nobody")),
        (3, ("backup", "taken", "--target", "nowhere")),
        (3, ("restore", "nobody")),
        (3, ("files", "ls", "nobody")),
        (3, ("job", "show", "f" * 32)),
        (5, ("vm", "files", "ls", "taken")),
        (3, ("array", "rm", "nobody")),
    ):
        ended = house.run(*arguments, ok=False)
        assert ended.code == code, f"{arguments}: {ended.err}"
        assert ended.err.startswith("arraylift: error: ")
        assert ended.err.count("\n") == 1
    after = house.json("array", "volumes", "ls")
    assert [volume["name"] for volume in after] == [volume["name"] for volume in before]


@pytest.mark.timeout(240)
def test_an_interrupted_wait_ends_no_job(house: House, tmp_path: Path) -> None:
    house.run("vm", "create", "waiting", "--disk", make_disk(tmp_path / "d", seed=10, size_bytes=256 << 20))
    process = subprocess.Popen(
        command("backup", "waiting"), env=house.environment(), stderr=subprocess.PIPE, text=True
    )
    found: list[dict[str, str]] = []
    while not found:
        found = [job for job in house.json("job", "ls") if job["vm_name"] == "waiting"]
        assert found or process.poll() in {None, 0}
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    (job,) = found
    if process.returncode not in (0, -signal.SIGINT):  # faster than we were, or ending just then
        assert process.returncode == 130
        assert f"the job goes on: `arraylift job watch {job['job_id']}`" in said
    assert house.json("job", "watch", job["job_id"])["state"] == "job_state_succeeded"
