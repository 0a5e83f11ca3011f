"""Garbage collection by real daemons: beside a backup, counted byte by byte, and what stays reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import InvalidRequest, NotFound
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import image_pb2
from arraylift.v1 import target_admin_pb2 as pb
from tests.e2e.cluster import TARGET, Cluster, in_thread, last_of
from tests.e2e.disks import differing_spans, make_disk, random_disk


def collect(cluster: Cluster, **how: Any) -> pb.CollectGarbageResponse:
    last: pb.CollectGarbageResponse
    *progress, last = cluster.messages(cluster.admin.CollectGarbage, pb.CollectGarbageRequest(**how))
    assert last.phase == "done"
    assert all(each.cycle == last.cycle for each in progress)
    return last


def survey(cluster: Cluster) -> pb.SpaceUse:
    *_, last = cluster.messages(cluster.admin.SurveySpace, pb.SurveySpaceRequest())
    use: pb.SpaceUse = last.total
    assert use.stored_bytes + use.metadata_bytes + use.garbage_bytes == use.container_bytes
    return use


def container_bytes(cluster: Cluster) -> int:
    root = Path(cluster.target.state, "units", "active", "containers")
    return sum(path.stat().st_size for path in root.glob("*/*.alc"))


def test_deleted_images_give_their_space_back_beside_a_backup(cluster: Cluster) -> None:
    first = random_disk(24 * MIB, seed=1)
    second = bytearray(first)
    second[8 * MIB :] = random_disk(16 * MIB, seed=2)
    cluster.import_disk("d1", first)
    cluster.import_disk("d2", second)
    gone, kept = cluster.back_up("d1", "d1"), cluster.back_up("d2", "d2")
    assert survey(cluster).garbage_bytes == 0
    assert survey(cluster).container_bytes == container_bytes(cluster)

    request = image_pb2.PreviewDeleteRequest(image_ids=[gone.image_id])
    told = call(cluster.images.PreviewDelete, request, peer=TARGET)
    assert 15 * MIB < told.unique_stored_bytes < 17 * MIB
    call(cluster.images.DeleteImage, image_pb2.DeleteImageRequest(image_id=gone.image_id), peer=TARGET)
    assert 15 * MIB < survey(cluster).garbage_bytes < 17 * MIB
    plan = collect(cluster, dry_run=True, live_percent_min=100)
    assert plan.dead_bytes == told.unique_stored_bytes

    third = make_disk(32 * MIB, seed=3)
    third[: 8 * MIB] = first[: 8 * MIB]
    cluster.import_disk("d3", third)
    snapshot, granted = cluster.snapshot("d3"), cluster.grant("d3")
    running = in_thread(lambda: cluster.send_messages(snapshot, *granted))
    collect(cluster, live_percent_min=100)
    new = last_of(running.wait())
    cycles = [collect(cluster, live_percent_min=100) for _ in range(4)]
    assert cycles[-1].condemned_count == 0
    use = survey(cluster)
    assert use.garbage_bytes == 0
    assert use.container_bytes == container_bytes(cluster) < 24 * MIB + 33 * MIB
    assert cluster.stats().condemned_bytes == 0
    assert differing_spans(cluster.image_bytes(kept.image_id), second) == []
    assert differing_spans(cluster.image_bytes(new.image_id), third) == []

    for image in (kept, new):
        call(cluster.images.DeleteImage, image_pb2.DeleteImageRequest(image_id=image.image_id), peer=TARGET)
    collect(cluster)
    assert cluster.stats().condemned_bytes == container_bytes(cluster) > 0
    cluster.target.kill()
    cluster.target.start()
    for _ in range(2):
        collect(cluster)
    assert container_bytes(cluster) == 0, "condemned before the kill, deleted after it"


def test_wrong_requests_are_refused(shared: Cluster) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        collect(shared, unit="nowhere")
    with pytest.raises(InvalidRequest):
        collect(shared, live_percent_min=101)
    with pytest.raises(InvalidRequest):
        call(shared.images.PreviewDelete, image_pb2.PreviewDeleteRequest(), peer=TARGET)
    with pytest.raises(NotFound):
        call(shared.images.PreviewDelete, image_pb2.PreviewDeleteRequest(vm_id="1" * 32), peer=TARGET)
