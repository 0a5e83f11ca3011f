"""Scrub and verdicts of a real target: damage on the disk is found, named, and healed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import Corruption, WrongState
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import image_pb2, target_admin_pb2
from tests.e2e.cluster import Cluster
from tests.e2e.command import a_house, make_disk
from tests.e2e.disks import differing_spans, random_disk


def scrub(cluster: Cluster, **more: Any) -> Any:
    request = target_admin_pb2.ScrubRequest(**more)
    return list(cluster.messages(cluster.admin.Scrub, request))[-1]


def verify(cluster: Cluster, image_id: str, *, max_age_seconds: int = 0) -> Any:
    request = image_pb2.VerifyImageRequest(image_id=image_id, max_age_seconds=max_age_seconds)
    return list(cluster.messages(cluster.images.VerifyImage, request))[-1]


def largest_container(cluster: Cluster) -> Path:
    root = cluster.target.state / "units" / "active" / "containers"
    return max((path for path in root.rglob("*.alc")), key=lambda path: path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_damage_is_found_named_and_healed_by_the_next_backup(cluster: Cluster) -> None:
    disks = {name: random_disk(24 * MIB, seed=number) for number, name in enumerate("ab")}
    images = {}
    for name in "ab":
        cluster.import_disk(name, disks[name])
    images["a"] = cluster.back_up("a", "a").image_id
    damaged = largest_container(cluster)
    images["b"] = cluster.back_up("b", "b").image_id
    clean = scrub(cluster)
    assert (clean.done, clean.records_damaged, list(clean.affected_images)) == (True, 0, [])
    assert clean.records_checked >= cluster.stats().segment_count
    at_once = verify(cluster, images["a"], max_age_seconds=3600)
    assert (at_once.whole, at_once.bytes_read) == (True, 0)
    flip(damaged, 2 * MIB)
    assert verify(cluster, images["a"], max_age_seconds=3600).whole, "that is what scrub saw"
    found = scrub(cluster, restart=True)
    assert found.records_damaged == 1
    assert list(found.affected_images) == [images["a"]]
    assert cluster.stats().quarantined_count == 1
    verdict = verify(cluster, images["a"], max_age_seconds=3600)
    assert (verdict.whole, verdict.damaged_span_count, verdict.bytes_read) == (False, 1, 0)
    assert verify(cluster, images["b"], max_age_seconds=3600).whole
    with pytest.raises(Corruption):
        cluster.image_bytes(images["a"])
    cluster.target.kill()
    cluster.target.start()
    assert not verify(cluster, images["a"], max_age_seconds=3600).whole, "also after a kill"

    again = cluster.back_up("a", "a")
    assert again.figures.segments_sent == 1
    for image_id in (images["a"], again.image_id):
        assert verify(cluster, image_id).whole
        assert differing_spans(cluster.image_bytes(image_id), disks["a"]) == []


def test_a_verdict_reads_the_disk_when_it_must(cluster: Cluster) -> None:
    disk = random_disk(8 * MIB, seed=7)
    cluster.import_disk("d", disk)
    image_id = cluster.back_up("d", "d").image_id
    first = verify(cluster, image_id, max_age_seconds=3600)
    assert first.whole
    assert first.bytes_read >= 8 * MIB
    flip(largest_container(cluster), MIB)
    assert verify(cluster, image_id, max_age_seconds=3600).whole
    verdict = verify(cluster, image_id)
    assert not verdict.whole
    assert len(verdict.damaged_spans) == verdict.damaged_span_count > 0


def test_a_unit_of_its_own_is_scrubbed_and_its_images_verified(cluster: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "vault"
    place.mkdir()
    request = target_admin_pb2.AddUnitRequest(
        name="vault", role=target_admin_pb2.UNIT_ROLE_ARCHIVE, location=str(place)
    )
    call(cluster.admin.AddUnit, request, peer="target")
    disk = random_disk(8 * MIB, seed=5)
    cluster.import_disk("d", disk)
    image_id = cluster.back_up("d", "d").image_id
    cluster.back_up("d", "d")
    move = target_admin_pb2.MoveImagesRequest(to_unit="vault", image_ids=[image_id])
    assert list(cluster.messages(cluster.admin.MoveImages, move))[-1].progress.images_done == 1
    stats = cluster.stats()
    assert [(unit.unit, unit.image_count) for unit in stats.units] == [("active", 1), ("vault", 1)]
    assert sum(unit.container_bytes for unit in stats.units) == stats.container_bytes
    assert scrub(cluster, unit="vault").records_checked > 0
    assert verify(cluster, image_id, max_age_seconds=3600).bytes_read == 0
    flip(max(place.rglob("*.alc"), key=lambda path: path.stat().st_size), MIB)
    found = scrub(cluster, unit="vault", restart=True)
    assert (found.records_damaged, list(found.affected_images)) == (1, [image_id])
    assert not verify(cluster, image_id, max_age_seconds=3600).whole
    assert scrub(cluster).records_damaged == 0, "the active unit is none the worse"
    until = SYSTEM_CLOCK.wall_ns() + 86_400 * 10**9
    call(
        cluster.images.LockImage, image_pb2.LockImageRequest(image_id=image_id, until_ns=until), peer="target"
    )
    retire = target_admin_pb2.RetireUnitRequest(name="vault", lose_images=True)
    for method, asked in (
        (cluster.images.DeleteImage, image_pb2.DeleteImageRequest(image_id=image_id)),
        (cluster.admin.RetireUnit, retire),
    ):
        with pytest.raises(WrongState):
            call(method, asked, peer="target")


def test_an_image_is_healed_from_a_snapshot_of_the_array(tmp_path: Path) -> None:
    """The block is gone from the volume, but a snapshot that was kept still holds it."""
    with a_house(tmp_path) as house:
        house.up()
        disk = make_disk(tmp_path / "disk.img", seed=3)
        content = disk.read_bytes()
        house.run("array", "volumes", "import", "d", disk)
        house.run("array", "snapshots", "create", "d", "--name", "kept")
        image = house.json("array", "snapshots", "send", "d@kept")["image_id"]
        disk.write_bytes(random_disk(len(content), seed=4))
        house.run("array", "volumes", "write", "d", disk)
        house.run("array", "snapshots", "create", "d", "--name", "other")
        root = house.state / "target1" / "units" / "active" / "containers"
        flip(max(root.rglob("*.alc"), key=lambda path: path.stat().st_size), MIB)

        found = house.run("target", "scrub", "--json", ok=False)
        assert found.code == 10
        assert found.document["affected_images"] == [image]
        assert house.json("target", "heal", image, "--snapshot", "d@kept")["applied"] is False
        assert house.run("target", "images", "verify", image, ok=False).code == 10, "that was a dry run"
        wrong = house.run("target", "heal", image, "--snapshot", "d@other", "--apply", ok=False)
        assert (wrong.code, "1 of 1 damaged spans" in wrong.err) == (10, True)
        healed = house.json("target", "heal", image, "--snapshot", "d@kept", "--apply")
        assert (healed["after"]["whole"], healed["figures"]["segments_sent"]) == (True, 1)
        assert [one["image_id"] for one in house.json("target", "images", "ls")] == [image]
        house.run("target", "images", "restore", image, "--as", "back")
        house.run("array", "volumes", "export", "back", tmp_path / "back.img")
        assert (tmp_path / "back.img").read_bytes() == content
