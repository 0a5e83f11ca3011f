"""Backup and restore, bit by bit and figure by figure: what is read, sent, shared and inherited."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from arraylift.errors import AlreadyExists, NotFound, TrackerMismatch, WrongState
from arraylift.rpc.channel import call
from arraylift.sizes import KIB, MIB
from arraylift.v1 import volume_pb2
from tests.e2e.cluster import ARRAY, BIRTHS, FULL_READ, Cluster, in_thread, last_of
from tests.e2e.disks import differing_spans, make_disk, random_disk

SAMPLE_SPANS = 4
"""Unchanged spans that a backup of a small disk reads all the same."""


def mapped_bytes(cluster: Cluster, volume: str) -> int:
    listed = call(cluster.volumes.ListVolumes, volume_pb2.ListVolumesRequest(name=volume), peer=ARRAY)
    return int(listed.volumes[0].mapped_bytes)


def test_every_byte_comes_back_and_the_next_backups_read_what_changed(shared: Cluster) -> None:
    disk = make_disk(48 * MIB, seed=1)
    shared.import_disk("d1", disk)
    full = shared.back_up("d1", "d1")
    assert full.change_source == FULL_READ
    assert (full.figures.spans_total, full.figures.spans_sampled, full.figures.attempts) == (48, 0, 1)
    assert full.figures.spans_read + full.figures.spans_hole == 48
    assert 0 < full.figures.bytes_sent_wire < full.figures.bytes_sent < len(disk)
    assert full.figures.bytes_stored >= full.figures.bytes_sent_wire
    shared.restore(full.image_id, "d1-back")
    assert differing_spans(shared.volume_bytes("d1-back"), disk) == []

    # 1 MiB changes, across the border of two spans.
    shared.write("d1", 9 * MIB + 512 * KIB, random_disk(MIB, seed=2), disk=disk)
    second = shared.back_up("d1", "d1")
    figures = second.figures
    assert second.change_source == BIRTHS
    assert figures.bytes_sent < 3 * MIB
    assert (figures.spans_read, figures.spans_sampled) == (2, SAMPLE_SPANS)
    assert figures.bytes_read <= (2 + SAMPLE_SPANS) * MIB
    assert differing_spans(shared.image_bytes(second.image_id), disk) == []
    assert differing_spans(shared.volume_bytes("d1"), disk) == [], "the volume itself is what we think"

    # The restored volume equals the first image: its backup on that base reads nothing but the sample ...
    again = shared.back_up("d1-back", "d1-back-of")  # ... where there is a base; this name has none.
    assert again.change_source == FULL_READ
    assert again.figures.segments_sent == 0
    assert again.root == full.root


def test_a_restored_volume_goes_on_with_an_incremental(shared: Cluster) -> None:
    disk = make_disk(32 * MIB, seed=3)
    shared.import_disk("d2", disk)
    full = shared.back_up("d2", "d2")
    shared.restore(full.image_id, "d2-back")
    unchanged = shared.back_up("d2-back", "d2")
    assert (unchanged.change_source, unchanged.figures.spans_read) == (BIRTHS, 0)
    assert (unchanged.figures.spans_sampled, unchanged.root) == (SAMPLE_SPANS, full.root)
    shared.write("d2-back", 5 * MIB, b"changed", disk=disk)
    changed = shared.back_up("d2-back", "d2", source=BIRTHS)
    assert (changed.figures.spans_read, changed.figures.spans_sampled) == (1, SAMPLE_SPANS)
    assert changed.figures.bytes_sent <= 256 * KIB
    assert differing_spans(shared.image_bytes(changed.image_id), disk) == []


def test_a_second_identical_disk_sends_nothing(shared: Cluster) -> None:
    disk = make_disk(32 * MIB, seed=4)
    for name in ("d3", "d3-twin"):
        shared.import_disk(name, disk)
    first, second = (shared.back_up(name, name) for name in ("d3", "d3-twin"))
    assert first.figures.segments_sent > 0
    assert (second.figures.segments_sent, second.figures.bytes_sent) == (0, 0)
    assert second.root == first.root
    shared.restore(second.image_id, "d3-twin-back")
    assert differing_spans(shared.volume_bytes("d3-twin-back"), disk) == []


def test_an_interrupted_disk_shares_what_lies_inside_it_twice(shared: Cluster) -> None:
    """A transfer resolves its own repeats before anything of it is sealed."""
    piece = random_disk(4 * MIB, seed=5)
    disk = piece * 4
    shared.import_disk("d4", disk)
    sent = shared.back_up("d4", "d4")
    assert sent.figures.bytes_offered == len(disk)
    assert sent.figures.bytes_sent == len(piece)
    assert differing_spans(shared.image_bytes(sent.image_id), disk) == []


@pytest.mark.parametrize(
    "size_bytes", [512, 64 * KIB, MIB - 512, MIB, MIB + 512, 5 * MIB + 3 * 512, 17 * MIB + 64 * KIB + 512]
)
def test_disks_of_odd_sizes(shared: Cluster, size_bytes: int) -> None:
    name = f"odd-{size_bytes}"
    disk = random_disk(size_bytes, seed=size_bytes)
    shared.import_disk(name, disk)
    full = shared.back_up(name, name)
    shared.restore(full.image_id, f"{name}-back")
    assert shared.volume_bytes(f"{name}-back") == disk
    shared.write(name, size_bytes - 512, b"x" * 512, disk=disk)
    shared.write(name, 0, b"y" * 512, disk=disk)
    second = shared.back_up(name, name, source=BIRTHS)
    assert shared.image_bytes(second.image_id) == disk
    fresh = shared.back_up(name, f"{name}-full", source=FULL_READ)
    assert fresh.root == second.root


@pytest.mark.parametrize("written", [False, True], ids=["never written", "written with zeros"])
def test_a_disk_of_zeros_costs_nothing(shared: Cluster, written: bool) -> None:
    name = f"zero-{written}"
    call(
        shared.volumes.CreateVolume,
        volume_pb2.CreateVolumeRequest(name=name, size_bytes=40 * MIB + 512),
        peer=ARRAY,
    )
    if written:
        shared.write(name, 3 * MIB, bytes(2 * MIB))
    sent = shared.back_up(name, name)
    assert (sent.figures.spans_hole, sent.figures.segments_offered) == (41, 0)
    assert sent.figures.spans_read == (2 if written else 0)
    shared.restore(sent.image_id, f"{name}-back")
    assert not any(shared.volume_bytes(f"{name}-back"))
    assert mapped_bytes(shared, f"{name}-back") == 0


def test_trimmed_ranges_become_holes(shared: Cluster) -> None:
    disk = random_disk(16 * MIB, seed=6)
    shared.import_disk("d5", disk)
    shared.back_up("d5", "d5")
    shared.trim("d5", 4 * MIB, 6 * MIB, disk=disk)
    shared.trim("d5", 12 * MIB + 64 * KIB, 128 * KIB, disk=disk)
    second = shared.back_up("d5", "d5")
    figures = second.figures
    assert (figures.spans_hole, figures.spans_read, figures.spans_sampled) == (6, 1, SAMPLE_SPANS)
    assert figures.bytes_read == (MIB - 128 * KIB) + SAMPLE_SPANS * MIB, "a hole is not read"
    assert differing_spans(shared.image_bytes(second.image_id), disk) == []
    shared.restore(second.image_id, "d5-back")
    assert differing_spans(shared.volume_bytes("d5-back"), disk) == []
    assert mapped_bytes(shared, "d5-back") == 10 * MIB - 128 * KIB


def test_zeros_that_were_written_are_the_holes_that_were_trimmed(shared: Cluster) -> None:
    disk = random_disk(8 * MIB, seed=7)
    for name in ("d6-zeros", "d6-trim"):
        shared.import_disk(name, disk)
        shared.back_up(name, name)
    shared.write("d6-zeros", 2 * MIB, bytes(3 * MIB))
    shared.trim("d6-trim", 2 * MIB, 3 * MIB)
    zeros, trimmed = (shared.back_up(name, name) for name in ("d6-zeros", "d6-trim"))
    assert zeros.root == trimmed.root
    assert zeros.figures.bytes_sent == trimmed.figures.bytes_sent == 0


def test_the_same_bytes_have_the_same_root_whatever_path_led_there(shared: Cluster) -> None:
    disk = make_disk(24 * MIB + 512, seed=8)
    shared.import_disk("d7", disk)
    shared.back_up("d7", "d7")
    draw = np.random.default_rng(8)
    for _ in range(3):
        for _ in range(6):
            offset = int(draw.integers(0, len(disk) - 200_000))
            shared.write("d7", offset, draw.bytes(int(draw.integers(1, 200_000))), disk=disk)
        shared.trim("d7", int(draw.integers(0, 20)) * MIB, 2 * MIB)
        shared.back_up("d7", "d7", source=BIRTHS)
    incremental = shared.back_up("d7", "d7", source=BIRTHS)
    disk = shared.volume_bytes("d7")
    full_read = shared.back_up("d7", "d7", source=FULL_READ)
    other_name = shared.back_up("d7", "d7-full", full=True)
    shared.restore(incremental.image_id, "d7-back")
    restored = shared.back_up("d7-back", "d7-restored", full=True)
    shared.import_disk("d7-copy", disk)
    copied = shared.back_up("d7-copy", "d7-copy")
    roots = {one.root for one in (incremental, full_read, other_name, restored, copied)}
    assert roots == {incremental.root}
    assert full_read.change_source == FULL_READ
    assert full_read.figures.spans_read + full_read.figures.spans_hole >= 24
    assert differing_spans(shared.image_bytes(incremental.image_id), disk) == []


def test_births_that_are_demanded_and_cannot_be_had(shared: Cluster) -> None:
    shared.import_disk("d8", random_disk(2 * MIB, seed=9))
    with pytest.raises(WrongState, match="no base"):
        shared.back_up("d8", "d8", source=BIRTHS)
    shared.back_up("d8", "d8")
    assert shared.back_up("d8", "d8", source=BIRTHS).figures.spans_read == 0
    shared.import_disk("d8-other", random_disk(2 * MIB, seed=9))
    with pytest.raises(WrongState, match="no base"):
        shared.back_up("d8-other", "d8", source=BIRTHS)  # another volume's history vouches for nothing


def test_names_that_are_taken_and_ids_that_nobody_knows(shared: Cluster) -> None:
    shared.import_disk("d9", random_disk(MIB, seed=10))
    sent = shared.back_up("d9", "d9")
    with pytest.raises(AlreadyExists):
        shared.restore(sent.image_id, "d9")
    with pytest.raises(NotFound):
        shared.send("0" * 32, "d9")
    transfer_id, grant = shared.prepare_restore("d9-back")
    with pytest.raises(NotFound):
        list(shared.restore_messages("0" * 32, transfer_id, grant))
    assert list(shared.restore_messages(sent.image_id, transfer_id, grant))[-1].root == sent.root


def test_an_older_image_is_not_changed_by_the_next(shared: Cluster) -> None:
    disk = make_disk(12 * MIB, seed=11)
    shared.import_disk("d10", disk)
    states, images = [], []
    for number in range(4):
        shared.write("d10", number * 2 * MIB + 77 * KIB, random_disk(300 * KIB, seed=number), disk=disk)
        images.append(shared.back_up("d10", "d10").image_id)
        states.append(bytes(disk))
    for image_id, state in zip(images, states, strict=True):
        assert differing_spans(shared.image_bytes(image_id), state) == []
    assert [image.image_id for image in shared.image_list("d10")] == images[::-1]


def overwrite_in_pool(cluster: Cluster, piece: bytes | bytearray, new: bytes) -> None:
    """Change the array's disk behind its back, where ``piece`` lies."""
    path = Path(cluster.array.state) / "slots.data"
    with path.open("r+b") as file:
        at = file.read().find(piece)
        assert at >= 0, "the piece lies somewhere in the pool"
        file.seek(at)
        file.write(new)


def test_a_tracker_that_lies_is_caught_by_the_sample_and_no_longer_believed(cluster: Cluster) -> None:
    disk = random_disk(SAMPLE_SPANS * MIB, seed=12)  # all of it is in the sample
    cluster.import_disk("d", disk)
    base = cluster.back_up("d", "d")
    overwrite_in_pool(cluster, disk[MIB : MIB + 512], b"z" * 512)
    lied_to = bytes(disk)
    disk[MIB : MIB + 512] = b"z" * 512
    snapshot = cluster.snapshot("d")
    with pytest.raises(TrackerMismatch):
        cluster.send(snapshot, "d")
    assert [image.image_id for image in cluster.image_list()] == [base.image_id], "nothing was committed"
    cluster.array.kill()
    cluster.array.start()  # the distrust is durable
    with pytest.raises(WrongState):
        cluster.send(snapshot, "d", source=BIRTHS)
    for one in (snapshot, cluster.snapshot("d")):
        healed = cluster.send(one, "d")
        assert healed.figures.spans_read + healed.figures.spans_sampled == SAMPLE_SPANS
        assert differing_spans(cluster.image_bytes(healed.image_id), disk) == []
    assert cluster.back_up("d", "d", source=BIRTHS).figures.spans_read == 0, "new births vouch again"
    assert differing_spans(cluster.image_bytes(base.image_id), lied_to) == []


def test_two_volumes_go_in_parallel(shared: Cluster) -> None:

    disks = [make_disk(24 * MIB, seed=20 + number % 2) for number in range(4)]
    calls = []
    for number, disk in enumerate(disks):
        shared.import_disk(f"p{number}", disk)
        transfer_id, grant = shared.grant(f"p{number}")
        snapshot = shared.snapshot(f"p{number}")
        calls.append(in_thread(partial(shared.send_messages, snapshot, transfer_id, grant)))
    for call_, disk in zip(calls, disks, strict=True):
        assert differing_spans(shared.image_bytes(last_of(call_.wait()).image_id), disk) == []
