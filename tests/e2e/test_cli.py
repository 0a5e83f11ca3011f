"""The whole way of a disk by the command line, over real daemons."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import House, a_house, command, make_disk


@pytest.fixture
def running(tmp_path: Path) -> Iterator[House]:
    """A house with all daemons up."""
    with a_house(tmp_path) as house:
        house.up()
        yield house


def allocated_bytes(directory: Path) -> int:
    """Return what the files below take on their disk."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def test_a_disk_goes_to_the_target_and_comes_back(running: House, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", seed=1)
    first_content = disk.read_bytes()
    assert running.json("array", "volumes", "import", "web1", disk)["volume"]["size_bytes"] == 24 << 20
    running.run("array", "snapshots", "create", "web1", "--name", "monday")
    first = running.json("array", "snapshots", "send", "web1@monday")
    assert first["base_image_id"] is None
    assert first["figures"]["bytes_stored"] > 1 << 20

    with disk.open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"changed" * 1000)
        file.seek(9 << 20)
        file.write(bytes(1 << 20))
    written = running.json("array", "volumes", "write", "web1", disk)
    assert 0 < written["bytes_differing"] < 2 << 20
    assert running.json("array", "volumes", "write", "web1", disk)["bytes_differing"] == 0
    running.run("array", "snapshots", "create", "web1", "--name", "tuesday")
    second = running.json("array", "snapshots", "send", "web1@tuesday")
    assert (second["base_image_id"], second["change_source"]) == (first["image_id"], "births")
    assert second["figures"]["spans_read"] < first["figures"]["spans_read"]
    assert second["figures"]["bytes_stored"] < first["figures"]["bytes_stored"] // 4

    listed = running.json("target", "images", "ls", "web1")
    assert [image["image_id"] for image in listed] == [second["image_id"], first["image_id"]]
    for image, content in ((first["image_id"], first_content), ("web1", disk.read_bytes())):
        name, out = f"back-{image[:4]}", tmp_path / f"{image[:4]}.img"
        running.run("target", "images", "restore", image, "--as", name)
        running.run("array", "volumes", "export", name, out)
        assert out.read_bytes() == content
        assert out.stat().st_blocks * 512 < 24 << 20, "holes stay holes"

    part = tmp_path / "part"
    running.run("target", "images", "read", "web1", "--offset", 5 << 20, "--length", 7000, "--to", part)
    assert part.read_bytes() == b"changed" * 1000
    assert running.json("target", "stats")["image_count"] == 2


def test_a_full_send_takes_no_base(running: House, tmp_path: Path) -> None:
    running.run("array", "volumes", "import", "v", make_disk(tmp_path / "d", seed=2))
    running.run("array", "snapshots", "create", "v", "--name", "s")
    first = running.json("array", "snapshots", "send", "v@s", "--name", "x/y")
    second = running.json("array", "snapshots", "send", "v@s", "--name", "x/y", "--full")
    assert second["base_image_id"] is None
    assert second["root"] == first["root"]
    assert second["figures"]["segments_sent"] == 0, "all of it was there"


def test_refusals_have_their_codes(running: House, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "d", seed=3)
    running.run("array", "volumes", "import", "v", disk)
    running.run("array", "snapshots", "create", "v", "--name", "s")
    running.run("array", "snapshots", "send", "v@s")
    for code, arguments in (
        (4, ("array", "volumes", "import", "v", disk)),
        (4, ("target", "images", "restore", "v", "--as", "v")),
        (5, ("array", "volumes", "rm", "v")),
        (3, ("array", "volumes", "rm", "nobody")),
        (3, ("target", "images", "restore", "nobody", "--as", "w")),
        (2, ("array", "volumes", "create", "bad/name", "1M")),
        (2, ("array", "volumes", "create", "odd", "513")),
        (2, ("array", "volumes", "import", "w", tmp_path)),
    ):
        ended = running.run(*arguments, ok=False)
        assert ended.code == code, f"{arguments}: {ended.err}"
        assert ended.err.startswith("arraylift: error: ")
        assert ended.err.count("\n") == 1
    running.run("array", "volumes", "rm", "v", "--cascade")


def test_an_interrupted_import_leaves_no_volume(running: House, tmp_path: Path) -> None:
    disk = tmp_path / "d"
    with disk.open("wb") as file:
        for _ in range(384):
            file.write(b"\x5a" * (1 << 20))
    process = subprocess.Popen(
        command("array", "volumes", "import", "v", disk), env=running.environment(), stderr=subprocess.PIPE
    )
    pool = running.state / "array1"
    while process.poll() is None and allocated_bytes(pool) < 16 << 20:
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, b"arraylift: error: interrupted\n")
    assert running.json("array", "volumes", "ls") == []


@pytest.mark.parametrize("noun", ["array", "target"])
def test_a_daemon_that_is_down_is_named(running: House, tmp_path: Path, noun: str) -> None:
    running.run("array", "volumes", "import", "v", make_disk(tmp_path / "d", seed=5))
    running.run("array", "snapshots", "create", "v", "--name", "s")
    (daemon,) = (each for each in running.json("status") if each["kind"] == noun)
    os.kill(daemon["pid"], signal.SIGKILL)
    ended = running.run("array", "snapshots", "send", "v@s", ok=False)
    assert ended.code == 8
    assert f"{noun} 127.0.0.1:" in ended.err
    status = running.run("status", "--json", ok=False)
    assert status.code == 8
    assert [each["kind"] for each in status.document if not each["up"]] == [noun]
    restarted = {each["kind"]: each["started"] for each in running.up()}
    kinds = ("target", "array", "vcenter", "host", "server")
    assert restarted == {kind: kind == noun for kind in kinds}
    running.run("array", "snapshots", "send", "v@s")


def test_a_certificate_of_another_house_is_refused(running: House, tmp_path: Path) -> None:
    other = tmp_path / "other-pki"
    running.run("pki", "init", "--pki", other)
    running.run("pki", "issue", "operator", "admin", "--pki", other)
    ended = running.run("array", "volumes", "ls", "--pki", other, ok=False)
    assert ended.code == 8
    assert "certificate" in ended.err
    assert ended.err.count("\n") == 1


def test_a_daemon_s_certificate_is_no_operator_s(running: House, tmp_path: Path) -> None:
    pki = running.state / "pki"
    impostor = tmp_path / "pki"
    impostor.mkdir()
    for end in ("pem", "key"):
        (impostor / f"operator-admin.{end}").write_bytes((pki / f"target-target1.{end}").read_bytes())
        (impostor / f"operator-admin.{end}").chmod(0o600)
    (impostor / "ca.pem").write_bytes((pki / "ca.pem").read_bytes())
    ended = running.run("array", "volumes", "ls", "--pki", impostor, ok=False)
    assert ended.code == 5
    assert "is the certificate of target/target1" in ended.err
