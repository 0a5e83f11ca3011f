"""Disks that are full or fail under a daemon: a clear error, no false answer, and on it goes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift.errors import OutOfSpace, StoreFailed
from arraylift.rpc.channel import call
from arraylift.sizes import KIB, MIB
from arraylift.v1 import image_pb2, target_admin_pb2
from tests.e2e.cluster import Cluster, Sent, last_of
from tests.e2e.disks import differing_spans, random_disk
from tests.programs import lacking


class Full:
    """One image from before, and a disk that meets the fault."""

    def __init__(self, cluster: Cluster, *, size_bytes: int = 48 * MIB) -> None:
        self.cluster = cluster
        self.old = random_disk(4 * MIB, seed=1)
        cluster.import_disk("old", self.old)
        self.old_image = cluster.back_up("old", "old").image_id
        self.disk = random_disk(size_bytes, seed=2)
        cluster.import_disk("disk", self.disk)
        self.snapshot = cluster.snapshot("disk")
        self.transfer_id, self.grant = cluster.grant("disk")
        self.restores = 0

    def send(self) -> Sent:
        """Send, or send on."""
        return last_of(list(self.cluster.send_messages(self.snapshot, self.transfer_id, self.grant)))

    def check_reads(self) -> None:
        """What was there before is served, read here and restored."""
        assert self.cluster.image_list("disk") == []
        assert differing_spans(self.cluster.image_bytes(self.old_image), self.old) == []
        self.restores += 1
        self.cluster.restore(self.old_image, f"old-{self.restores}")
        assert differing_spans(self.cluster.volume_bytes(f"old-{self.restores}"), self.old) == []

    def check_done(self, sent: Sent) -> None:
        assert [image.image_id for image in self.cluster.image_list("disk")] == [sent.image_id]
        assert differing_spans(self.cluster.image_bytes(sent.image_id), self.disk) == []


@pytest.mark.parametrize("point", ["container.write.before@4", "manifest.write.before@1"])
def test_a_target_without_space_says_so_and_the_transfer_goes_on_when_there_is(
    cluster: Cluster, point: str
) -> None:
    full = Full(cluster)
    name, _, hit = point.partition("@")
    cluster.target.stop()
    cluster.target.start(failpoints=f"{name}=enospc@{hit}")
    with pytest.raises(OutOfSpace) as caught:
        full.send()
    assert caught.value.next_step, "it says what to do"
    full.check_reads()
    sent = full.send()  # the failpoint acted once: there is room again
    assert sent.figures.spans_resumed > 0
    full.check_done(sent)


@pytest.mark.parametrize(
    "point", ["container.fsync.before@3", "transfer-log.sync.before@4", "manifest.fsync_dir.before@1"]
)
def test_a_failed_fsync_is_never_called_durable(cluster: Cluster, point: str) -> None:
    full = Full(cluster)
    name, _, hit = point.partition("@")
    cluster.target.stop()
    cluster.target.start(failpoints=f"{name}=eio@{hit}")
    with pytest.raises(StoreFailed):
        full.send()
    with pytest.raises(StoreFailed):
        full.send()  # it takes no more writes until it is restarted
    assert differing_spans(cluster.image_bytes(full.old_image), full.old) == [], "reads go on"
    cluster.target.stop()
    cluster.target.start()
    full.check_done(full.send())
    assert differing_spans(cluster.image_bytes(full.old_image), full.old) == []


def test_an_array_without_space_refuses_a_restore_and_serves_what_it_has(cluster: Cluster) -> None:
    full = Full(cluster)
    image_id = full.send().image_id
    cluster.array.stop()
    cluster.array.start(failpoints="slots.write.before=enospc@20")
    transfer_id, grant = cluster.prepare_restore("back")
    with pytest.raises(OutOfSpace):
        list(cluster.restore_messages(image_id, transfer_id, grant))
    assert sorted(cluster.volume_names()) == ["disk", "old"]
    assert differing_spans(cluster.volume_bytes("disk"), full.disk) == []
    last: Any = list(cluster.restore_messages(image_id, transfer_id, grant))[-1]
    assert last.receipt_id
    assert differing_spans(cluster.volume_bytes("back"), full.disk) == []


def test_an_array_whose_fsync_fails_restores_after_its_restart(cluster: Cluster) -> None:
    full = Full(cluster)
    image_id = full.send().image_id
    cluster.array.stop()
    cluster.array.start(failpoints="slots.sync.before=eio@2")
    transfer_id, grant = cluster.prepare_restore("back")
    with pytest.raises(StoreFailed):
        list(cluster.restore_messages(image_id, transfer_id, grant))
    cluster.array.stop()
    cluster.array.start()
    assert sorted(cluster.volume_names()) == ["disk", "old"]
    list(cluster.restore_messages(image_id, transfer_id, grant))
    for name in ("disk", "back"):
        assert differing_spans(cluster.volume_bytes(name), full.disk) == []


# -- a disk that is really full -----------------------------------------------------------------


class SmallDisk:
    """A tmpfs of a stated size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def mount(self, size_bytes: int) -> None:
        self._run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(self.path))

    def resize(self, size_bytes: int) -> None:
        self._run("mount", "-o", f"remount,size={size_bytes}", str(self.path))

    def unmount(self) -> None:
        self._run("umount", str(self.path))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Cluster, SmallDisk]]:
    disk = SmallDisk(tmp_path / "small")
    if os.geteuid() != 0:
        lacking("mounting a small disk needs root")
    try:
        disk.mount(96 * MIB)
    except subprocess.CalledProcessError as error:
        lacking(f"no tmpfs may be mounted here: {error.stderr.decode().strip()}")
    try:
        cluster = Cluster(tmp_path, target_state=disk.path / "target1")
        try:
            cluster.start()
            yield cluster, disk
        finally:
            cluster.close()
    finally:
        disk.unmount()


def test_a_disk_that_fills_up_and_is_enlarged(small: tuple[Cluster, SmallDisk]) -> None:
    cluster, disk = small
    full = Full(cluster, size_bytes=112 * MIB)
    with pytest.raises(OutOfSpace):
        full.send()
    full.check_reads()
    with pytest.raises(OutOfSpace):
        full.send()
    full.check_reads()
    disk.resize(512 * MIB)
    sent = full.send()
    assert sent.figures.spans_resumed > 0
    full.check_done(sent)


def test_a_full_disk_survives_a_restart(small: tuple[Cluster, SmallDisk]) -> None:
    cluster, disk = small
    full = Full(cluster, size_bytes=112 * MIB)
    with pytest.raises(OutOfSpace):
        full.send()
    cluster.target.kill()
    cluster.target.start()
    full.check_reads()
    cluster.target.stop()
    disk.resize(512 * MIB)
    cluster.target.start()
    full.check_done(full.send())


def test_a_full_target_deletes_restores_and_takes_backups_again(small: tuple[Cluster, SmallDisk]) -> None:
    """The reserve refuses what is new before the disk is full; then another program fills it up."""
    cluster, disk = small
    full = Full(cluster, size_bytes=112 * MIB)
    with pytest.raises(OutOfSpace):
        full.send()
    stats = cluster.stats()
    assert stats.free_bytes >= stats.reserve_bytes // 2 > 0, "that much is kept"
    filler = disk.path / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * KIB))
    assert cluster.stats().below_reserve
    with pytest.raises(OutOfSpace, match="keeps"):
        cluster.grant("another")
    full.check_reads()
    cluster.target.kill()
    cluster.target.start()  # by the ballast
    full.check_reads()
    cluster.target.stop()
    cluster.target.start()
    call(cluster.images.DeleteImage, image_pb2.DeleteImageRequest(image_id=full.old_image), peer="target")
    assert cluster.image_list() == []
    stored = cluster.stats().container_bytes
    for _ in range(3):
        list(cluster.messages(cluster.admin.CollectGarbage, target_admin_pb2.CollectGarbageRequest()))
    assert cluster.stats().container_bytes <= stored - 4 * MIB, (
        "what was deleted is collected while it is full"
    )
    filler.unlink()
    disk.resize(512 * MIB)
    full.check_done(full.send())
    assert not cluster.stats().below_reserve


def test_a_quota_stops_a_transfer_in_its_middle_and_the_next_at_its_grant(cluster: Cluster) -> None:
    full = Full(cluster)
    tenant = target_admin_pb2.SetQuotaRequest(tenant="default", quota_bytes=24 * MIB)
    call(cluster.admin.SetQuota, tenant, peer="target")
    with pytest.raises(OutOfSpace, match="of its quota of 24"):
        full.send()
    listed = call(cluster.admin.ListTenants, target_admin_pb2.ListTenantsRequest(), peer="target").tenants
    assert [(one.name, one.quota_bytes, one.image_count) for one in listed] == [("default", 24 * MIB, 1)]
    assert 4 * MIB < listed[0].stored_bytes <= 24 * MIB
    full.check_reads()
    tenant.quota_bytes = 5 * MIB
    call(cluster.admin.SetQuota, tenant, peer="target")
    with pytest.raises(OutOfSpace, match="quota"):
        cluster.grant("another")
    cluster.target.kill()
    cluster.target.start()
    with pytest.raises(OutOfSpace, match="quota"):
        full.send()
    tenant.quota_bytes = 0
    call(cluster.admin.SetQuota, tenant, peer="target")
    full.check_done(full.send())
