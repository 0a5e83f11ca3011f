"""Forks of volumes, and every source of changes, through real daemons; the check finds nothing after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arraylift.errors import NotFound, WrongState
from arraylift.ids import random_id
from arraylift.rpc.channel import call
from arraylift.sizes import GRANULE_BYTES, MIB
from arraylift.v1 import backup_logic_pb2, volume_pb2
from tests.e2e.cluster import ARRAY, BIRTHS, FULL_READ, TARGET, Cluster
from tests.e2e.disks import differing_spans, make_disk, random_disk

DIFF = backup_logic_pb2.CHANGE_SOURCE_DIFF
SUPPLIED = backup_logic_pb2.CHANGE_SOURCE_SUPPLIED


def volume(cluster: Cluster, name: str) -> volume_pb2.Volume:
    request = volume_pb2.ListVolumesRequest(name=name)
    found: volume_pb2.Volume
    (found,) = call(cluster.volumes.ListVolumes, request, peer=ARRAY).volumes
    return found


def snapshot_of(cluster: Cluster, snapshot_id: str) -> volume_pb2.Snapshot:
    listed = call(cluster.volumes.ListSnapshots, volume_pb2.ListSnapshotsRequest(), peer=ARRAY).snapshots
    found: volume_pb2.Snapshot = next(one for one in listed if one.snapshot_id == snapshot_id)
    return found


def check(cluster: Cluster, *, repair: bool = False) -> list[volume_pb2.Finding]:
    request = volume_pb2.CheckPoolRequest(repair=repair)
    news = list(cluster.messages(cluster.volumes.CheckPool, request))
    assert news[-1].done
    assert news[-1].granules_checked == news[-1].granules_total > 0
    severe = volume_pb2.FINDING_SEVERITY_NOTE
    return [finding for one in news for finding in one.findings if finding.severity != severe]


def packed(*values: int) -> bytes:
    return np.array(values, "<u8").tobytes()


def test_every_source_of_changes_gives_the_same_image(shared: Cluster) -> None:
    disk = make_disk(12 * MIB, seed=51)
    shared.import_disk("v1", disk)
    first = shared.snapshot("v1")
    shared.send(first, "v1")
    shared.send(first, "v1-diff")
    shared.send(first, "v1-supplied")
    shared.write("v1", 3 * MIB + 5, random_disk(GRANULE_BYTES, seed=52), disk=disk)
    second = shared.snapshot("v1")
    since = snapshot_of(shared, first).state
    changes = backup_logic_pb2.SuppliedChanges(
        since=since, offsets=packed(3 * MIB + 5), lengths=packed(GRANULE_BYTES)
    )
    births = shared.send(second, "v1", source=BIRTHS)
    diff = shared.send(second, "v1-diff", source=DIFF, diff_base_snapshot_id=first)
    told = shared.send(second, "v1-supplied", source=SUPPLIED, supplied=changes)
    assert [sent.change_source for sent in (births, diff, told)] == [BIRTHS, DIFF, SUPPLIED]
    assert {sent.root for sent in (births, diff, told)} == {births.root}
    assert [sent.figures.spans_read for sent in (births, diff, told)] == [1, 1, 1]
    assert differing_spans(shared.image_bytes(told.image_id), disk) == []
    late = shared.send(second, "v1", source=SUPPLIED, supplied=changes)
    assert (late.change_source, late.root) == (FULL_READ, births.root), "not since this base: all is read"
    request = backup_logic_pb2.DiffSnapshotsRequest(snapshot_id=second, base_snapshot_id=first)
    (ranges,) = shared.messages(shared.backup_logic.DiffSnapshots, request)
    assert (ranges.offsets, ranges.lengths) == (packed(3 * MIB), packed(2 * GRANULE_BYTES))


def test_snapshots_of_strangers_have_no_diff(shared: Cluster) -> None:
    shared.import_disk("v2", random_disk(MIB, seed=53))
    shared.import_disk("v2-other", random_disk(MIB, seed=53))
    request = backup_logic_pb2.DiffSnapshotsRequest(
        snapshot_id=shared.snapshot("v2"), base_snapshot_id=shared.snapshot("v2-other")
    )
    with pytest.raises(WrongState, match="no history"):
        list(shared.messages(shared.backup_logic.DiffSnapshots, request))


def test_a_volume_is_resized_cloned_and_rolled_back(shared: Cluster) -> None:
    disk = make_disk(4 * MIB, seed=54)
    shared.import_disk("v3", disk)
    before = shared.snapshot("v3")
    base = shared.send(before, "v3")
    clone_request = volume_pb2.CloneVolumeRequest(snapshot_id=before, name="v3-clone")
    clone = call(shared.volumes.CloneVolume, clone_request, peer=ARRAY).volume
    assert (clone.size_bytes, clone.unique_bytes) == (4 * MIB, 0)
    assert shared.volume_bytes("v3-clone") == disk
    unchanged = shared.back_up("v3-clone", "v3", source=BIRTHS)
    assert (unchanged.figures.spans_read, unchanged.root) == (0, base.root), "a clone's base is its origin's"
    call(shared.volumes.ResizeVolume, volume_pb2.ResizeVolumeRequest(name="v3", size_bytes=MIB), peer=ARRAY)
    grown_request = volume_pb2.ResizeVolumeRequest(name="v3", size_bytes=6 * MIB)
    call(shared.volumes.ResizeVolume, grown_request, peer=ARRAY)
    resized = bytearray(disk[:MIB]) + bytes(5 * MIB)
    assert shared.volume_bytes("v3") == resized
    shared.send(before, "v3-own")
    sent = shared.back_up("v3", "v3-own", source=BIRTHS)
    assert differing_spans(shared.image_bytes(sent.image_id), resized) == []
    back_request = volume_pb2.RollbackVolumeRequest(volume_name="v3", snapshot_id=before, safety_name="safe")
    answer = call(shared.volumes.RollbackVolume, back_request, peer=ARRAY)
    assert shared.volume_bytes("v3") == disk
    assert shared.volume_bytes(snapshot_id=answer.safety.snapshot_id) == resized
    with pytest.raises(WrongState, match="no base"):
        shared.back_up("v3", "v3-own", source=BIRTHS)
    again = shared.back_up("v3", "v3-own")
    assert (again.root, again.change_source) == (base.root, FULL_READ)
    assert volume(shared, "v3").mapped_bytes == volume(shared, "v3-clone").mapped_bytes
    call(shared.volumes.DeleteVolume, volume_pb2.DeleteVolumeRequest(name="v3", cascade=True), peer=ARRAY)
    assert shared.volume_bytes("v3-clone") == disk
    own = volume(shared, "v3-clone")
    assert own.unique_bytes == 0 < own.mapped_bytes, "its snapshot has the same"
    clone_request.name = "v3-late"
    with pytest.raises(NotFound):
        call(shared.volumes.CloneVolume, clone_request, peer=ARRAY)
    assert check(shared) == []
    assert check(shared, repair=True) == []


def restore(cluster: Cluster, image_id: str, volume_name: str, **more: str) -> tuple[str, Any]:
    """Prepare and send; returns (transfer id, the last message)."""
    transfer_id = random_id()
    request = volume_pb2.PrepareRestoreRequest(
        transfer_id=transfer_id, target=TARGET, volume_name=volume_name, **more
    )
    grant = call(cluster.volumes.PrepareRestore, request, peer=ARRAY).grant
    return transfer_id, list(cluster.restore_messages(image_id, transfer_id, grant))[-1]


def test_restores_spare_what_the_array_has(shared: Cluster) -> None:
    disk = make_disk(8 * MIB, seed=61)
    shared.import_disk("v4", disk)
    image = shared.back_up("v4", "v4")
    live = bytearray(disk)
    shared.write("v4", 2 * MIB + 9, random_disk(GRANULE_BYTES, seed=62), disk=live)
    shared.trim("v4", 5 * MIB, MIB, disk=live)
    _, whole = restore(shared, image.image_id, "v4-whole")
    _, spared = restore(shared, image.image_id, "v4-spared", reference_volume="v4")
    assert shared.volume_bytes("v4-spared") == shared.volume_bytes("v4-whole") == disk
    assert spared.figures.bytes_sent < whole.figures.bytes_sent / 2
    assert volume(shared, "v4-spared").unique_bytes <= MIB + 2 * GRANULE_BYTES
    assert shared.volume_bytes("v4") == live


def test_two_volumes_are_restored_in_place_together(shared: Cluster) -> None:
    names, disks, images = ("v5", "v6"), [make_disk(6 * MIB, seed=71 + n) for n in range(2)], []
    for name, disk in zip(names, disks, strict=True):
        shared.import_disk(name, disk)
        images.append(shared.back_up(name, name))
        shared.write(name, MIB, random_disk(2 * GRANULE_BYTES, seed=73))
    damaged = [bytes(shared.volume_bytes(name)) for name in names]
    group_id = random_id()
    transfers = []
    for name, image in zip(names, images, strict=True):
        transfer_id, sent = restore(shared, image.image_id, name, group_id=group_id)
        transfers.append(transfer_id)
        assert sent.root == image.root
        assert sent.figures.bytes_sent < MIB
    assert [bytes(shared.volume_bytes(name)) for name in names] == damaged, "not before the group"
    request = volume_pb2.CommitRestoreGroupRequest(
        group_id=group_id, transfer_ids=transfers, safety_name="before-restore"
    )
    answer = call(shared.volumes.CommitRestoreGroup, request, peer=ARRAY)
    assert [shared.volume_bytes(name) for name in names] == disks
    kept = [shared.volume_bytes(snapshot_id=safety.snapshot_id) for safety in answer.safeties]
    assert kept == damaged
    again = call(shared.volumes.CommitRestoreGroup, request, peer=ARRAY)
    assert [one.snapshot_id for one in again.safeties] == [one.snapshot_id for one in answer.safeties]
    for name, image in zip(names, images, strict=True):
        next_one = shared.back_up(name, name, source=BIRTHS)
        assert (next_one.figures.spans_read, next_one.root) == (0, image.root)
    assert check(shared) == []
