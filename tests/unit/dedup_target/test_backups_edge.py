"""The edge of backup manifests: messages to values and back, and what ``missing_ok`` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import InvalidRequest, NotFound
from arraylift.v1 import image_pb2 as pb
from dedup_target.service.backups import BackupsEdge
from tests.unit.dedup_target.material import manifest
from tests.unit.dedup_target.test_backup_manifests import Rig

CONTEXT: Any = None  # no method looks at it


def message(number: int, images: tuple[int, ...] = (1, 2)) -> pb.BackupManifest:
    return pb.BackupManifest(
        backup_id=f"{number:032x}",
        vm_id="e" * 32,
        vm_name="web1",
        snapshot_at_ns=number,
        images=[pb.BackupImage(disk_name=f"disk{one}", image_id=f"{one:032x}") for one in images],
        attributes=b"\0\xff",
    )


@pytest.fixture
def edge(tmp_path: Path) -> BackupsEdge:
    rig = Rig(tmp_path)
    for number in (1, 2, 3):
        rig.images.publish(manifest(number))
    return BackupsEdge(rig.backups)


def listed(edge: BackupsEdge, **more: Any) -> pb.ListBackupManifestsResponse:
    return edge.ListBackupManifests(pb.ListBackupManifestsRequest(**more), CONTEXT)


def test_what_is_published_is_listed_as_it_came(edge: BackupsEdge) -> None:
    for number in (1, 2, 3):
        for _ in range(2):
            edge.PublishBackup(pb.PublishBackupRequest(manifest=message(number)), CONTEXT)
    page = listed(edge, page_size=2)
    rest = listed(edge, page_size=2, page_token=page.next_page_token)
    found = [*page.manifests, *rest.manifests]
    for one in found:
        assert one.tenant == "default"
        one.tenant = ""
    assert found == [message(3), message(2), message(1)]
    assert rest.next_page_token == ""
    with pytest.raises(InvalidRequest):
        listed(edge, page_size=1001)


def test_deletion_and_what_may_be_missing(edge: BackupsEdge) -> None:
    edge.PublishBackup(pb.PublishBackupRequest(manifest=message(1)), CONTEXT)
    edge.DeleteBackupManifest(pb.DeleteBackupManifestRequest(backup_id="0" * 31 + "1"), CONTEXT)
    with pytest.raises(NotFound):
        edge.DeleteBackupManifest(pb.DeleteBackupManifestRequest(backup_id="0" * 31 + "1"), CONTEXT)
    edge.DeleteBackupManifest(
        pb.DeleteBackupManifestRequest(backup_id="0" * 31 + "1", missing_ok=True), CONTEXT
    )
    edge.DeleteImage(pb.DeleteImageRequest(image_id="0" * 31 + "3"), CONTEXT)
    with pytest.raises(NotFound):
        edge.DeleteImage(pb.DeleteImageRequest(image_id="0" * 31 + "3"), CONTEXT)
    edge.DeleteImage(pb.DeleteImageRequest(image_id="0" * 31 + "3", missing_ok=True), CONTEXT)
    assert list(listed(edge).manifests) == []


@pytest.mark.parametrize("token", ["x", ".", "-1.a", "\u00b2.a", "\u0661.a", "9" * 5000])
def test_a_strange_page_token_is_refused(edge: BackupsEdge, token: str) -> None:
    with pytest.raises(InvalidRequest, match="page token"):
        listed(edge, page_token=token)


@pytest.mark.parametrize("bad", ["", "../x", "0" * 33, "A" * 32])
def test_bad_ids_are_refused(edge: BackupsEdge, bad: str) -> None:
    with pytest.raises(InvalidRequest):
        edge.DeleteImage(pb.DeleteImageRequest(image_id=bad, missing_ok=True), CONTEXT)
    with pytest.raises(InvalidRequest):
        edge.DeleteBackupManifest(pb.DeleteBackupManifestRequest(backup_id=bad, missing_ok=True), CONTEXT)
    broken = message(1)
    broken.backup_id = bad
    with pytest.raises(InvalidRequest):
        edge.PublishBackup(pb.PublishBackupRequest(manifest=broken), CONTEXT)
