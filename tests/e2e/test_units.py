"""Units of a real target: an archive in an object store that goes away and comes back, moves, rebuilds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import PeerUnavailable
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import target_admin_pb2 as pb
from tests.contract.backend_rig import object_store
from tests.e2e.cluster import TARGET, Cluster
from tests.e2e.daemon import wait_until
from tests.e2e.disks import differing_spans, make_disk, random_disk
from tests.e2e.running import run_cluster
from tests.fakes.object_store import ObjectStore

__all__ = ["object_store"]


@pytest.fixture
def archived(
    tmp_path: Path, object_store: Callable[[], ObjectStore]
) -> Iterator[tuple[Cluster, ObjectStore]]:
    """A cluster whose target may reach the store: its environment has the credentials."""
    store = object_store()
    assert os.environ["AWS_ACCESS_KEY_ID"]
    for cluster in run_cluster(tmp_path):
        yield cluster, store


def _units(cluster: Cluster) -> dict[str, Any]:
    found = call(cluster.admin.ListUnits, pb.ListUnitsRequest(), peer=TARGET)
    return {unit.name: unit for unit in found.units}


def _move(cluster: Cluster, *image_ids: str) -> pb.MoveProgress:
    request = pb.MoveImagesRequest(image_ids=image_ids)
    last: pb.MoveProgress = list(cluster.messages(cluster.admin.MoveImages, request))[-1].progress
    assert last.done
    return last


def test_an_archive_in_an_object_store_from_the_first_day_to_the_last(
    archived: tuple[Cluster, ObjectStore],
) -> None:
    cluster, store = archived
    location = f"{store.make_bucket()}/target1"
    disk, states, images = make_disk(24 * MIB, seed=1), [], []
    cluster.import_disk("d", disk)
    for seed in range(3):
        cluster.write("d", 5 * MIB, random_disk(2 * MIB, seed=seed), disk=disk)
        states.append(bytes(disk))
        images.append(cluster.back_up("d", "d").image_id)
    request = pb.AddUnitRequest(
        name="cold", role=pb.UNIT_ROLE_ARCHIVE, location=location, endpoint=store.endpoint
    )
    assert call(cluster.admin.AddUnit, request, peer=TARGET).unit.name == "cold"
    moved = _move(cluster, *images)
    assert (moved.images_done, list(moved.kept_image_ids)) == (2, [images[2]])
    assert {one.image_id: one.unit for one in cluster.image_list()} == dict(
        zip(images, ("cold", "cold", "active"), strict=True)
    )
    for image, state in zip(images, states, strict=True):
        assert differing_spans(cluster.image_bytes(image), state) == []
    cluster.restore(images[0], "from-the-archive")
    assert differing_spans(cluster.volume_bytes("from-the-archive"), states[0]) == []

    # Away, over a restart: the rest is served, and what is away is named.
    cluster.target.kill()
    with store.switched_off():
        cluster.target.start()
        wait_until(lambda: _units(cluster)["cold"].absent, "the archive is missed", seconds=90)
        assert sorted(_units(cluster)["cold"].affected_images) == sorted(images[:2])
        assert [one.unit_absent for one in cluster.image_list()] == [False, True, True]
        with pytest.raises(PeerUnavailable, match="cold"):
            cluster.image_bytes(images[0])
        assert differing_spans(cluster.image_bytes(images[2]), states[2]) == []
        assert cluster.back_up("d", "d").figures.spans_read == 0
    cluster.target.kill()
    cluster.target.start()
    wait_until(lambda: not _units(cluster)["cold"].absent, "the archive is taken back", seconds=90)
    assert differing_spans(cluster.image_bytes(images[1]), states[1]) == []

    # Its index is made anew while it serves, without a download of segments.
    before = len(store.requests)
    rebuilt = list(cluster.messages(cluster.admin.RebuildUnit, pb.RebuildUnitRequest(unit="cold")))[-1]
    assert rebuilt.done
    assert rebuilt.containers_done > 0
    fetched = [path for method, path in store.requests[before:] if method == "GET" and "containers" in path]
    assert fetched == []
    assert differing_spans(cluster.image_bytes(images[0]), states[0]) == []

    drained = list(cluster.messages(cluster.admin.DrainUnit, pb.DrainUnitRequest(name="cold")))[-1].progress
    assert (drained.images_done, drained.done) == (2, True)
    call(cluster.admin.RetireUnit, pb.RetireUnitRequest(name="cold"), peer=TARGET)
    assert list(_units(cluster)) == ["active"]
    for image, state in zip(images, states, strict=True):
        assert differing_spans(cluster.image_bytes(image), state) == []
