"""A running transfer is slowed down, sped up, stopped, resumed; others get their turn."""

from __future__ import annotations

import time

import pytest

from arraylift.errors import Cancelled, InvalidRequest, NotFound
from arraylift.rpc.channel import call
from arraylift.sizes import KIB, MIB
from arraylift.v1 import backup_logic_pb2 as pb
from tests.e2e.cluster import ARRAY, Cluster, Running, in_thread, last_of
from tests.e2e.daemon import wait_until
from tests.e2e.disks import differing_spans, random_disk

SIZE = 48 * MIB


def start(
    cluster: Cluster,
    name: str,
    *,
    rate: int = 0,
    transfer: tuple[str, bytes] | None = None,
    snapshot: str = "",
) -> tuple[Running, tuple[str, bytes], str]:
    snapshot = snapshot or cluster.snapshot(name)
    transfer_id, grant = transfer or cluster.grant(name)
    running = in_thread(
        lambda: cluster.send_messages(snapshot, transfer_id, grant, bytes_per_second_max=rate)
    )
    return running, (transfer_id, grant), snapshot


def set_rate(cluster: Cluster, transfer_id: str, rate: int) -> None:
    request = pb.SetTransferRateRequest(transfer_id=transfer_id, bytes_per_second_max=rate)
    call(cluster.backup_logic.SetTransferRate, request, peer=ARRAY)


def bytes_read(running: Running) -> int:
    return int(running.news[-1].figures.bytes_read) if running.news else 0


def test_a_rate_is_kept_changed_and_lifted_while_a_transfer_runs(shared: Cluster) -> None:
    disk = random_disk(SIZE, seed=31)
    shared.import_disk("slow", disk)
    began = time.monotonic()
    running, (transfer_id, _), _ = start(shared, "slow", rate=12 * MIB)
    wait_until(lambda: bytes_read(running) >= 16 * MIB, "16 MiB are read")
    read, seconds = bytes_read(running), time.monotonic() - began
    assert read <= 12 * MIB * (seconds + 0.5) + 4 * MIB, "the rate is kept"
    assert running.thread.is_alive()
    set_rate(shared, transfer_id, 64 * KIB)
    time.sleep(0.5)  # what was handed out is read
    before = bytes_read(running)
    time.sleep(1.0)
    assert bytes_read(running) - before <= 4 * MIB, "slower from now on"
    (listed,) = call(shared.backup_logic.ListTransfers, pb.ListTransfersRequest(), peer=ARRAY).transfers
    assert (listed.transfer_id, listed.bytes_per_second_max) == (transfer_id, 64 * KIB)
    assert listed.figures.bytes_read == bytes_read(running)
    assert listed.source.startswith("snapshot ")
    lifted = time.monotonic()
    set_rate(shared, transfer_id, 0)
    sent = last_of(running.wait())
    assert time.monotonic() - lifted < 10, "without a limit the rest takes no time"
    assert differing_spans(shared.image_bytes(sent.image_id), disk) == []
    with pytest.raises(NotFound):
        set_rate(shared, transfer_id, 0)


def test_cancelling_stops_a_slow_transfer_at_once_and_it_resumes(shared: Cluster) -> None:
    disk = random_disk(SIZE, seed=32)
    shared.import_disk("stopped", disk)
    running, transfer, snapshot = start(shared, "stopped", rate=12 * MIB)
    wait_until(lambda: bytes_read(running) >= 16 * MIB, "some of it is read")
    asked = time.monotonic()
    call(shared.backup_logic.CancelTransfer, pb.CancelTransferRequest(transfer_id=transfer[0]), peer=ARRAY)
    with pytest.raises(Cancelled):
        running.wait()
    assert time.monotonic() - asked < 2
    again, _, _ = start(shared, "stopped", transfer=transfer, snapshot=snapshot)
    sent = last_of(again.wait())
    assert sent.figures.spans_resumed > 0, "what was durable is not sent again"
    assert differing_spans(shared.image_bytes(sent.image_id), disk) == []


def test_a_small_disk_does_not_wait_for_a_large_one(shared: Cluster) -> None:
    large, small = random_disk(SIZE, seed=33), random_disk(4 * MIB, seed=34)
    shared.import_disk("large", large)
    shared.import_disk("small", small)
    first, (transfer_id, _), _ = start(shared, "large", rate=4 * MIB)  # 12 s, with both workers
    wait_until(lambda: bytes_read(first) > 0, "the large one runs")
    second, _, _ = start(shared, "small")
    sent = last_of(second.wait())
    assert first.thread.is_alive()
    assert differing_spans(shared.image_bytes(sent.image_id), small) == []
    set_rate(shared, transfer_id, 0)
    assert differing_spans(shared.image_bytes(last_of(first.wait()).image_id), large) == []


def test_rates_that_make_no_sense(shared: Cluster) -> None:
    shared.import_disk("odd", random_disk(MIB, seed=35))
    running, _, _ = start(shared, "odd", rate=1)
    with pytest.raises(InvalidRequest, match="bytes a second"):
        running.wait()
    with pytest.raises(InvalidRequest):
        set_rate(shared, "0" * 32, 1)
    with pytest.raises(NotFound):
        set_rate(shared, "0" * 32, MIB)
