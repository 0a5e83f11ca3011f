"""kill -9 of the target or the array in mid-backup: the same transfer goes on and commits once.

What is checked after each kill: the transfer's image is bit-exact and there once, the image before
it is untouched, what is sent again stays inside the stated bound, and a retry after the commit gets
the same receipt. Long campaigns draw more points and moments; their seeds are printed.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from functools import partial

import pytest

from arraylift.errors import PeerUnavailable
from arraylift.exchange.messages import Limits
from arraylift.rpc.channel import call
from arraylift.sizes import MIB
from arraylift.v1 import volume_pb2
from tests.e2e.cluster import ARRAY, Cluster, Running, Sent, in_thread, last_of, wait_for_progress
from tests.e2e.daemon import wait_until
from tests.e2e.disks import differing_spans, make_disk, random_disk

UNDURABLE_BYTES_MAX = Limits().undurable_bytes_max
PROGRESS_BYTES_MAX = 2 * 4 * 4 * MIB
"""Two lanes tell of what they sent every four batches of four spans."""

SEED = secrets.randbits(32)

SHORT = 40 * MIB
LONG = 112 * MIB
RESTORED = 64 * MIB

STEPS = [
    f"{step}.{side}" for step in ("write", "fsync", "rename", "fsync_dir") for side in ("before", "after")
]
KILL_POINTS = [
    *(f"container.{step}" for step in STEPS),
    *(f"manifest.{step}" for step in STEPS),
    *(f"transfer-log.{step}.{side}" for step in ("append", "sync") for side in ("before", "after")),
]
FEW_KILL_POINTS = [
    "container.rename.before@3",
    "transfer-log.sync.before@3",
    "manifest.rename.before@1",
    "manifest.fsync_dir.after@1",  # committed, the answer lost
]


class Story:
    """One volume, its first image, and what every later image must be."""

    def __init__(self, cluster: Cluster, *, size_bytes: int, seed: int) -> None:
        self.cluster = cluster
        self.first = make_disk(8 * MIB, seed=seed)
        cluster.import_disk("first", self.first)
        self.first_image = cluster.back_up("first", "first").image_id
        self.disk = random_disk(size_bytes, seed=seed)
        cluster.import_disk("disk", self.disk)
        self.snapshot = cluster.snapshot("disk")
        self.transfer_id, self.grant = "", b""

    def begin(self, image: str) -> Running:
        """Ask for a grant and start sending; the array has a minute of patience."""
        self.transfer_id, self.grant = self.cluster.grant(image, full=True)
        return self.send_again()

    def send_again(self) -> Running:
        """Start sending with the same transfer and grant."""
        return in_thread(
            partial(
                self.cluster.send_messages, self.snapshot, self.transfer_id, self.grant, patience_seconds=60
            )
        )

    def check(self, sent: Sent, image: str) -> None:
        """The image is there once and exact, the old one too, and a retry gets the same receipt."""
        assert [one.image_id for one in self.cluster.image_list(image)] == [sent.image_id]
        assert differing_spans(self.cluster.image_bytes(sent.image_id), self.disk) == []
        assert differing_spans(self.cluster.image_bytes(self.first_image), self.first) == []
        again = last_of(self.send_again().wait())
        assert (again.image_id, again.root) == (sent.image_id, sent.root)
        assert again.figures == sent.figures
        assert [one.image_id for one in self.cluster.image_list(image)] == [sent.image_id]


def kill_target_at(story: Story, point: str, image: str) -> Sent:
    """Let the target die at a failpoint, start it again, and return what the same call ends with.

    A start passes some points too; where it dies there, the next one is armed for a later hit.
    """
    cluster = story.cluster
    story.transfer_id, story.grant = cluster.grant(image, full=True)
    name, _, hit = point.partition("@")
    cluster.target.stop()
    for later in range(1, 20):
        cluster.target.launch(failpoints=f"{name}=kill@{int(hit or 1) + later - 1}")
        if cluster.target.wait_started_or_dead():
            break
    running = story.send_again()
    cluster.target.wait_dead()
    cluster.target.start()
    return last_of(running.wait())


def test_the_target_dies_at_a_step_and_the_same_call_resumes(cluster: Cluster) -> None:
    """Each point on fresh bytes: what an earlier round stored would leave nothing to send."""
    story = Story(cluster, size_bytes=SHORT, seed=1)
    for number, point in enumerate(FEW_KILL_POINTS):
        cluster.write("disk", 0, random_disk(SHORT, seed=100 + number), disk=story.disk)
        story.snapshot = cluster.snapshot("disk")
        sent = kill_target_at(story, point, f"image-{number}")
        # Where the manifest was durable already, the answer alone was lost, and comes with the retry.
        assert sent.figures.attempts >= 2 or point == "manifest.fsync_dir.after@1"
        assert SHORT <= sent.figures.bytes_sent <= SHORT + UNDURABLE_BYTES_MAX
        story.check(sent, f"image-{number}")


@pytest.mark.campaign
@pytest.mark.parametrize("point", KILL_POINTS)
def test_the_target_dies_at_every_step(cluster: Cluster, point: str) -> None:
    story = Story(cluster, size_bytes=SHORT, seed=2)
    hits = 1 if point.startswith("manifest") else 4
    for hit in range(1, hits + 1):
        cluster.write("disk", 0, random_disk(SHORT, seed=200 + hit), disk=story.disk)
        story.snapshot = cluster.snapshot("disk")
        sent = kill_target_at(story, f"{point}@{hit}", f"image-{hit}")
        assert sent.figures.bytes_sent <= SHORT + UNDURABLE_BYTES_MAX
        story.check(sent, f"image-{hit}")


def test_a_target_killed_late_costs_no_more_than_what_was_not_durable(cluster: Cluster) -> None:
    story = Story(cluster, size_bytes=LONG, seed=3)
    running = story.begin("image")
    wait_for_progress(running, LONG * 3 // 4 // MIB)
    assert running.thread.is_alive(), "the kill comes in mid-transfer"
    cluster.target.kill()
    cluster.target.start()
    sent = last_of(running.wait())
    assert sent.figures.attempts >= 2
    assert sent.figures.spans_resumed > 0
    assert LONG <= sent.figures.bytes_sent <= LONG + UNDURABLE_BYTES_MAX
    story.check(sent, "image")


def test_an_array_killed_late_sends_only_what_was_not_durable(cluster: Cluster) -> None:
    story = Story(cluster, size_bytes=LONG, seed=4)
    running = story.begin("image")
    wait_for_progress(running, LONG * 3 // 4 // MIB)
    assert running.thread.is_alive(), "the kill comes in mid-transfer"
    cluster.array.kill()
    with pytest.raises(PeerUnavailable):
        running.wait()
    sent_before = running.news[-1].figures.bytes_sent
    assert sent_before > UNDURABLE_BYTES_MAX
    cluster.array.start()
    sent = last_of(story.send_again().wait())
    assert sent.figures.bytes_sent <= LONG - sent.figures.spans_resumed * MIB
    assert sent_before + sent.figures.bytes_sent <= LONG + UNDURABLE_BYTES_MAX
    story.check(sent, "image")
    assert differing_spans(cluster.volume_bytes("disk"), story.disk) == []


def test_a_worker_killed_in_mid_transfer_is_replaced(cluster: Cluster) -> None:
    story = Story(cluster, size_bytes=LONG, seed=5)
    running = story.begin("image")
    wait_for_progress(running, 32)
    workers = cluster.array.children()
    os.kill(max(workers), signal.SIGKILL)
    sent = last_of(running.wait())
    assert sent.figures.attempts >= 2
    # What the dead worker had sent since it last told us is missing from the figures.
    assert LONG - PROGRESS_BYTES_MAX <= sent.figures.bytes_sent <= LONG + UNDURABLE_BYTES_MAX
    story.check(sent, "image")
    assert len(cluster.array.children()) == len(workers)


def kill_at_random(cluster: Cluster, draw: random.Random, rounds: int) -> None:
    """Kill target, array or both at random moments of a transfer, until it has committed."""
    story = Story(cluster, size_bytes=64 * MIB, seed=draw.randrange(1 << 30))
    for number in range(rounds):
        cluster.write("disk", 0, random_disk(len(story.disk), seed=draw.randrange(1 << 30)), disk=story.disk)
        story.snapshot = cluster.snapshot("disk")
        running = story.begin(f"image-{number}")
        for _ in range(draw.randrange(1, 3)):
            running.thread.join(draw.random() * 0.8)
            victim = draw.choice([cluster.target, cluster.array])
            victim.kill()
            victim.start()
            if victim is cluster.array and not _committed(running):
                running = story.send_again()
        story.check(last_of(running.wait()), f"image-{number}")


def _committed(running: Running) -> bool:
    try:
        return bool(running.wait()[-1].receipt_id)
    except PeerUnavailable:
        return False


@pytest.mark.parametrize("seed", [SEED])
def test_kills_at_random_moments(cluster: Cluster, seed: int) -> None:
    kill_at_random(cluster, random.Random(seed), rounds=2)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [secrets.randbits(32) for _ in range(8)])
def test_many_kills_at_random_moments(cluster: Cluster, seed: int) -> None:
    kill_at_random(cluster, random.Random(seed), rounds=25)


def test_a_target_stopped_in_mid_transfer_is_waited_for(cluster: Cluster) -> None:
    """SIGTERM is no failure: the array's patience covers an upgrade."""
    story = Story(cluster, size_bytes=LONG, seed=6)
    running = story.begin("image")
    wait_for_progress(running, 40)
    assert cluster.target.stop() == 0
    cluster.target.start()
    story.check(last_of(running.wait()), "image")


@pytest.mark.campaign
def test_two_transfers_survive_one_kill(cluster: Cluster) -> None:
    disks = [random_disk(96 * MIB, seed=30 + number) for number in range(2)]
    calls = []
    for number, disk in enumerate(disks):
        cluster.import_disk(f"v{number}", disk)
        transfer_id, grant = cluster.grant(f"v{number}")
        send = partial(cluster.send_messages, cluster.snapshot(f"v{number}"), transfer_id, grant)
        calls.append(in_thread(send))
    wait_for_progress(calls[0], 32)
    cluster.target.kill()
    cluster.target.start()
    for running, disk in zip(calls, disks, strict=True):
        assert differing_spans(cluster.image_bytes(last_of(running.wait()).image_id), disk) == []


# -- restores -----------------------------------------------------------------------------------


@pytest.fixture
def image(cluster: Cluster) -> tuple[str, bytearray]:
    disk = random_disk(RESTORED, seed=7)
    cluster.import_disk("source", disk)
    return cluster.back_up("source", "image").image_id, disk


def test_an_array_killed_in_mid_restore_goes_on_with_the_same_call(
    cluster: Cluster, image: tuple[str, bytearray]
) -> None:
    image_id, disk = image
    transfer_id, grant = cluster.prepare_restore("back")
    running = in_thread(partial(cluster.restore_messages, image_id, transfer_id, grant))
    _wait_for_pool_growth(cluster, RESTORED // 4)
    assert running.thread.is_alive(), "the kill comes in mid-restore"
    cluster.array.kill()
    cluster.array.start()
    assert cluster.volume_names() == ["source"], "half a volume is none"
    last = running.wait()[-1]
    assert last.figures.attempts >= 2
    assert differing_spans(cluster.volume_bytes("back"), disk) == []
    assert sorted(cluster.volume_names()) == ["back", "source"]


def test_a_target_killed_in_mid_restore_is_asked_again(
    cluster: Cluster, image: tuple[str, bytearray]
) -> None:
    image_id, disk = image
    transfer_id, grant = cluster.prepare_restore("back")
    running = in_thread(partial(cluster.restore_messages, image_id, transfer_id, grant))
    _wait_for_pool_growth(cluster, RESTORED // 4)
    assert running.thread.is_alive(), "the kill comes in mid-restore"
    cluster.target.kill()
    with pytest.raises(PeerUnavailable):
        running.wait()
    assert cluster.volume_names() == ["source"]
    cluster.target.start()
    last = list(cluster.restore_messages(image_id, transfer_id, grant))[-1]
    assert last.figures.spans_resumed > 0
    assert differing_spans(cluster.volume_bytes("back"), disk) == []
    again = list(cluster.restore_messages(image_id, transfer_id, grant))[-1]
    assert (again.receipt_id, again.root) == (last.receipt_id, last.root)


def _wait_for_pool_growth(cluster: Cluster, growth_bytes: int) -> None:
    def used() -> int:
        stats = call(cluster.volumes.GetPoolStats, volume_pb2.GetPoolStatsRequest(), peer=ARRAY)
        return int(stats.slots_used * stats.granule_bytes)

    start = RESTORED  # the source volume
    wait_until(lambda: used() >= start + growth_bytes, "the restore gets going")


def test_a_grant_that_nobody_used_leaves_nothing(cluster: Cluster) -> None:
    cluster.prepare_restore("back")
    cluster.array.kill()
    cluster.array.start()
    assert cluster.volume_names() == []
    cluster.prepare_restore("back")  # the name is free again


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [secrets.randbits(32) for _ in range(4)])
def test_restores_under_many_kills(cluster: Cluster, image: tuple[str, bytearray], seed: int) -> None:
    draw, (image_id, disk) = random.Random(seed), image
    for number in range(10):
        transfer_id, grant = cluster.prepare_restore(f"back-{number}")
        running = in_thread(partial(cluster.restore_messages, image_id, transfer_id, grant))
        _wait_for_pool_growth(cluster, MIB * draw.randrange(1, RESTORED // MIB))
        victim = draw.choice([cluster.target, cluster.array])
        victim.kill()
        victim.start()
        if victim is cluster.target:
            with pytest.raises(PeerUnavailable):
                running.wait()
            running = in_thread(partial(cluster.restore_messages, image_id, transfer_id, grant))
        running.wait()
        assert differing_spans(cluster.volume_bytes(f"back-{number}"), disk) == []


assert 2 * LONG > LONG + UNDURABLE_BYTES_MAX, "else sending everything again would pass"
