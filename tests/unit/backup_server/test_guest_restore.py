"""Files put back into a running guest through its agent, real parsers before a fake one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift import errors
from arraylift.v1 import vm_pb2
from backup_server import file_reads
from backup_server.engine import JobView
from backup_server.file_reads import Data
from backup_server.job_rules import FileOrder, JobState
from tests.fakes.backup_server import Killed, Rig
from tests.fakes.world import Fault
from tests.fakes.world_array import SPAN
from tests.unit.backup_server.catalog.images import make_image

TREE = {
    "etc/hosts": b"hosts",
    "etc/large": b"\0" * 70_000 + b"end",
    "srv/deep/file": b"deep",
    "etc/empty": b"",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tree = tmp_path_factory.mktemp("tree")
    for name, content in TREE.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
        (tree / name).chmod(0o640)
    (tree / "odd").mkdir()
    Path(os.fsdecode(os.fsencode(tree) + b"/odd/caf\xe9")).write_bytes(b"latin")
    (tree / "etc/twin").hardlink_to(tree / "etc/hosts")
    (tree / "etc/link").symlink_to("hosts")
    made: Path = make_image(tree.parent / "guest.img", tree, "ext2", "-b", "1024", size=3 * SPAN)
    return made.read_bytes()


@pytest.fixture
def backup_id(rig: Rig, image: bytes) -> str:
    backup = rig.back_up()
    rig.world.image_content[backup.disks[0].image_id] = image
    rig.world.image_content[backup.disks[1].image_id] = bytes(4 * SPAN)
    return backup.backup_id


def restore(rig: Rig, backup_id: str, *paths: str, **more: Any) -> JobView:
    plain: dict[str, Any] = {"volume": "", "on_disk": False, "directory": "", "overwrite": False}
    order = FileOrder(paths=paths, **(plain | more))
    return rig.run(rig.server.orders.start_file_restore(backup_id, order, vm="", direct=False))


def test_files_go_where_they_were(rig: Rig, backup_id: str) -> None:
    view = restore(rig, backup_id, "/etc/hosts", "/etc/large", "/etc/twin", "/etc/empty")
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert rig.world.guest_files == {
        f"/etc/{name}": ("disk0", 0o640, content)
        for name, content in (
            ("hosts", b"hosts"), ("large", TREE["etc/large"]), ("twin", b"hosts"), ("empty", b"")
        )
    }  # fmt: skip
    assert view.outcome.result_vm_id == view.job.vm_id


def test_a_directory_of_the_guest_takes_what_lies_below_a_path(rig: Rig, backup_id: str) -> None:
    rig.world.guest_folders |= {"/back", "/back/deep"}
    view = restore(rig, backup_id, "/srv/deep", "/etc/hosts", directory="/back")
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert {path: one[0] for path, one in rig.world.guest_files.items()} == {
        "/back/deep/file": "",
        "/back/hosts": "",
    }


def test_what_cannot_pass_is_told_and_the_rest_comes(rig: Rig, backup_id: str) -> None:
    rig.world.guest_files["/etc/hosts"] = ("", 0, b"mine")
    view = restore(rig, backup_id, "/etc", "/srv")
    assert view.job.failure is not None
    assert view.job.failure.fields["problem_count"] == "3"
    for told in ("/etc/hosts: there is one already", "/etc/link: links", "/srv/deep/file: there is no"):
        assert told in view.job.failure.message
    assert rig.world.guest_files["/etc/hosts"][2] == b"mine"
    assert set(rig.world.guest_files) == {"/etc/hosts", "/etc/twin", "/etc/large", "/etc/empty"}
    view = restore(rig, backup_id, "/etc/hosts", overwrite=True)
    assert view.job.state is JobState.SUCCEEDED
    assert rig.world.guest_files["/etc/hosts"][2] == b"hosts"


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_name_that_is_no_text_is_told_as_such(rig: Rig, backup_id: str, on_disk: bool) -> None:
    view = restore(rig, backup_id, "/odd", "/etc/hosts", on_disk=on_disk)
    said = (
        view.job.failure.message
        if view.job.failure
        else next(step.detail for step in view.steps if step.name == "compose")
    )
    assert "/odd/caf\\xe9: " in said
    assert (view.job.state is JobState.SUCCEEDED) is on_disk


def test_a_host_that_is_away_for_a_while_gets_the_rest(rig: Rig, backup_id: str) -> None:
    away = Fault("fail", errors.PeerUnavailable("it is away"))
    rig.world.fault("PutGuestFile", Fault("none"), away)
    view = restore(rig, backup_id, "/etc/hosts", "/etc/large", "/etc/empty")
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    assert len(rig.world.guest_files) == 3
    assert rig.world.count("PutGuestFile") == 4


def test_damaged_content_never_replaces_a_file(
    rig: Rig, backup_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.world.guest_files["/etc/large"] = ("", 0, b"mine")

    def broken(*_: object) -> Iterator[Data]:
        yield Data(0, b"half")
        raise errors.Corruption("these bytes are gone")

    monkeypatch.setattr(file_reads, "data_of", broken)
    view = restore(rig, backup_id, "/etc/large", overwrite=True)
    assert view.job.failure is not None
    assert "/etc/large: these bytes are gone" in view.job.failure.message
    assert rig.world.guest_files["/etc/large"][2] == b"mine"


def test_what_makes_no_sense(rig: Rig, backup_id: str) -> None:
    view = restore(rig, backup_id, "/nothing")
    assert view.job.failure is not None
    assert view.job.failure.reason == "not_found"
    view = restore(rig, backup_id, "/etc/hosts", volume="disk1")
    assert view.job.failure is not None
    rig.world.vm_named("web1").power = vm_pb2.POWER_STATE_OFF
    with pytest.raises(errors.WrongState, match="does not run"):
        restore(rig, backup_id, "/etc/hosts")
    assert rig.world.guest_files == {}


# -- on a disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [vm_pb2.POWER_STATE_ON, vm_pb2.POWER_STATE_OFF])
def test_files_come_on_a_disk_of_their_own(rig: Rig, backup_id: str, power: vm_pb2.PowerState) -> None:
    rig.world.vm_named("web1").power = power
    composed: list[bytes] = []
    rig.on_boundary = lambda name: composed.extend(
        rig.world.image_content[one]
        for one in rig.world.images
        if name == "job.compose.after" and one not in old
    )
    old = set(rig.world.images)
    view = restore(rig, backup_id, "/etc", "/srv", on_disk=True)
    assert view.job.state is JobState.SUCCEEDED, view.job.failure
    (iso,) = composed
    for name, content in TREE.items():
        assert content in iso, name
    assert iso[32769:32774] == b"CD001"
    disk = rig.world.vm_named("web1").config.disks[-1]
    assert disk.name == f"files-{view.job.job_id[:12]}"
    assert disk.size_bytes == len(iso)
    assert set(rig.world.images) == old, "the volume stays, and not the image"
    assert rig.world.leftovers() == []
    (sent,) = [request for method, request in rig.world.calls if method == "ComposeImage"]
    assert sent is not None


def test_killed_anywhere_a_disk_of_files_is_made_once(rig: Rig, backup_id: str) -> None:
    order = FileOrder("", ("/etc",), on_disk=True, directory="", overwrite=False)
    rig.boundaries.clear()
    start = rig.server.orders.start_file_restore
    assert rig.run(start(backup_id, order, vm="", direct=False)).job.state is JobState.SUCCEEDED
    for at in range(1, len(rig.boundaries)):
        rig.boundaries.clear()
        before = len(rig.world.vm_named("web1").config.disks)
        job_id = rig.server.orders.start_file_restore(backup_id, order, vm="", direct=False)
        rig.kill_at = at
        with pytest.raises(Killed):
            rig.run(job_id)
        rig.restart()
        view = rig.run(job_id)
        assert view.job.state is JobState.SUCCEEDED, (at, view.job.failure)
        assert len(rig.world.vm_named("web1").config.disks) == before + 1, at
        assert rig.world.leftovers() == []


@pytest.mark.parametrize("method", ["ComposeImage", "SendImage", "AttachVmVolume"])
def test_a_failure_leaves_nothing(rig: Rig, backup_id: str, method: str) -> None:
    rig.world.fault(method, Fault("fail", errors.OutOfSpace("it is full")))
    volumes = set(rig.world.volumes)
    view = restore(rig, backup_id, "/etc", on_disk=True)
    assert view.job.failure is not None
    assert view.job.failure.message == "it is full"
    rig.sweep()
    assert set(rig.world.volumes) == volumes
    assert rig.world.leftovers() == []
