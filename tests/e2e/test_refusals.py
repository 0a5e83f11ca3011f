"""What an operator may not do at the same time, and how he stops what runs."""

from __future__ import annotations

import time
from functools import partial

import pytest

from arraylift.errors import (
    Cancelled,
    Conflict,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotPermitted,
    PeerUnavailable,
    WrongState,
)
from arraylift.ids import random_id
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import backup_logic_pb2, image_pb2, target_admin_pb2, volume_pb2
from tests.e2e.cluster import ARRAY, TARGET, Cluster, Running, in_thread, last_of, wait_for_progress
from tests.e2e.daemon import free_port, wait_until
from tests.e2e.disks import differing_spans, random_disk


class Busy:
    """A transfer that is under way."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.disk = random_disk(96 * MIB, seed=1)
        cluster.import_disk(name, self.disk)
        self.snapshot = cluster.snapshot(name)
        self.transfer_id, self.grant = cluster.grant(name)
        self.running = self.again()
        wait_for_progress(self.running, 1)

    def again(self) -> Running:
        return in_thread(partial(self.cluster.send_messages, self.snapshot, self.transfer_id, self.grant))

    def resume(self) -> str:
        """Send with the same transfer id, once the cancelled call has let go of it."""
        found: list[str] = []

        def resumed() -> bool:
            try:
                found.append(last_of(self.again().wait()).image_id)
            except Conflict:
                return False
            return True

        wait_until(resumed, "the transfer is free again")
        return found[0]


def test_one_transfer_is_sent_once_at_a_time(shared: Cluster) -> None:
    busy = Busy(shared, "r1")
    with pytest.raises(Conflict, match="being sent already"):
        busy.again().wait()
    with pytest.raises(WrongState, match=r"transfer|pinned"):
        call(
            shared.volumes.DeleteSnapshot,
            volume_pb2.DeleteSnapshotRequest(snapshot_id=busy.snapshot),
            peer=ARRAY,
        )
    sent = last_of(busy.running.wait())
    assert differing_spans(shared.image_bytes(sent.image_id), busy.disk) == []
    call(
        shared.volumes.DeleteSnapshot,
        volume_pb2.DeleteSnapshotRequest(snapshot_id=busy.snapshot),
        peer=ARRAY,
    )


def test_a_cancelled_transfer_stops_and_can_be_resumed(shared: Cluster) -> None:
    busy = Busy(shared, "r2")
    cancel = backup_logic_pb2.CancelTransferRequest(transfer_id=busy.transfer_id)
    call(shared.backup_logic.CancelTransfer, cancel, peer=ARRAY)
    with pytest.raises(Cancelled):
        busy.running.wait()
    assert shared.image_list("r2") == []
    assert differing_spans(shared.image_bytes(busy.resume()), busy.disk) == []
    with pytest.raises(NotFound):
        call(shared.backup_logic.CancelTransfer, cancel, peer=ARRAY)


def test_a_grant_that_is_revoked_in_mid_transfer(shared: Cluster) -> None:
    busy = Busy(shared, "r3")
    revoke = target_admin_pb2.RevokeGrantRequest(transfer_id=busy.transfer_id)
    call(shared.admin.RevokeGrant, revoke, peer=TARGET)
    with pytest.raises((LeaseLost, NotFound)):  # the lanes are fenced, or find the transfer gone
        busy.running.wait()
    with pytest.raises(NotFound):
        busy.again().wait()
    assert shared.image_list("r3") == []


def test_grants_that_are_not_ours(shared: Cluster) -> None:
    shared.import_disk("r4", random_disk(MIB, seed=2))
    snapshot = shared.snapshot("r4")
    transfer_id, grant = shared.grant("r4")
    with pytest.raises(NotPermitted):
        list(shared.send_messages(snapshot, transfer_id, bytes(32)))
    with pytest.raises(InvalidRequest):
        list(shared.send_messages(snapshot, transfer_id, b"short"))
    with pytest.raises(NotFound):
        list(shared.send_messages(snapshot, random_id(), grant))
    other_id, other_grant = shared.grant("r4", array="array2")
    with pytest.raises(NotPermitted):
        list(shared.send_messages(snapshot, other_id, other_grant))
    restore_id, restore_grant = shared.prepare_restore("r4-back", target="target2")
    image_id = shared.send(snapshot, "r4").image_id
    with pytest.raises(NotPermitted):
        list(shared.restore_messages(image_id, restore_id, restore_grant))
    assert "r4-back" not in shared.volume_names()


def test_a_target_that_nobody_hears_is_given_up_after_the_patience(shared: Cluster) -> None:
    shared.import_disk("r5", random_disk(MIB, seed=3))
    transfer_id, grant = shared.grant("r5")
    request = backup_logic_pb2.SendSnapshotRequest(
        snapshot_id=shared.snapshot("r5"),
        target_address=f"127.0.0.1:{free_port()}",
        transfer_id=transfer_id,
        grant=grant,
        patience_seconds=1,
    )
    with pytest.raises(PeerUnavailable):
        list(shared.messages(shared.backup_logic.SendSnapshot, request))
    request.patience_seconds = 3601
    with pytest.raises(InvalidRequest, match="patience"):
        list(shared.messages(shared.backup_logic.SendSnapshot, request))


def test_an_array_that_nobody_hears_is_given_up_after_the_patience(shared: Cluster) -> None:
    shared.import_disk("r6", random_disk(MIB, seed=3))
    sent = shared.back_up("r6", "r6")
    transfer_id, grant = shared.prepare_restore("r6-back")
    request = image_pb2.SendImageRequest(
        image_id=sent.image_id,
        receiver_address=f"127.0.0.1:{free_port()}",
        transfer_id=transfer_id,
        grant=grant,
        patience_seconds=1,
    )
    began = time.monotonic()
    with pytest.raises(PeerUnavailable):
        list(shared.messages(shared.images.SendImage, request))
    assert time.monotonic() - began < 30, "and not after a minute"
    request.patience_seconds = 3601
    with pytest.raises(InvalidRequest, match="patience"):
        list(shared.messages(shared.images.SendImage, request))
