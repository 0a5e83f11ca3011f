"""What the target lost while it was down: rebuilt, or reported as damage, never wrong bytes."""

from __future__ import annotations

import random
import secrets
import shutil
from functools import partial
from pathlib import Path

import pytest

from arraylift.errors import Corruption
from arraylift.sizes import KIB, MIB
from tests.e2e.cluster import BIRTHS, FULL_READ, Cluster, in_thread, last_of, wait_for_progress
from tests.e2e.disks import differing_spans, make_disk, random_disk

SEED = secrets.randbits(32)


def containers(cluster: Cluster) -> dict[Path, int]:
    """Container files and their sizes."""
    root = cluster.target.state / "units" / "active" / "containers"
    return {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}


class TwoImages:
    """Two images that share nothing, and which container files each of them added."""

    def __init__(self, cluster: Cluster) -> None:
        self.disks = {name: random_disk(24 * MIB, seed=number) for number, name in enumerate("ab")}
        self.images: dict[str, str] = {}
        self.files: dict[str, dict[Path, int]] = {}
        for name, disk in self.disks.items():
            before = containers(cluster)
            cluster.import_disk(name, disk)
            self.images[name] = cluster.back_up(name, name).image_id
            self.files[name] = {
                path: size for path, size in containers(cluster).items() if path not in before
            }

    def data_file(self, name: str) -> Path:
        return max(self.files[name], key=lambda path: self.files[name][path])

    def nodes_file(self, name: str) -> Path:
        return min(self.files[name], key=lambda path: self.files[name][path])


def test_a_deleted_index_is_rebuilt_from_the_containers(cluster: Cluster) -> None:
    disk = make_disk(32 * MIB, seed=1)
    cluster.import_disk("d", disk)
    states, images = [bytes(disk)], [cluster.back_up("d", "d")]
    cluster.write("d", 3 * MIB, random_disk(2 * MIB, seed=2), disk=disk)
    states.append(bytes(disk))
    images.append(cluster.back_up("d", "d"))
    listed, stats = cluster.image_list(), cluster.stats()
    cluster.target.kill()
    shutil.rmtree(cluster.target.state / "index")
    cluster.target.start()
    assert cluster.image_list() == listed
    rebuilt = cluster.stats()
    for field in ("segment_count", "container_count", "container_bytes", "plain_bytes", "image_count"):
        assert getattr(rebuilt, field) == getattr(stats, field), field
    for image, state in zip(images, states, strict=True):
        assert differing_spans(cluster.image_bytes(image.image_id), state) == []
    cluster.write("d", 20 * MIB, b"after the rebuild", disk=disk)
    third = cluster.back_up("d", "d", source=BIRTHS)
    assert third.figures.spans_read == 1
    assert third.figures.bytes_sent <= 256 * KIB
    assert differing_spans(cluster.image_bytes(third.image_id), disk) == []
    assert cluster.back_up("d", "again", full=True).figures.segments_sent == 0, "everything is known again"


@pytest.mark.parametrize("kind", ["data", "nodes"])
def test_a_lost_container_damages_its_image_until_the_next_backup(cluster: Cluster, kind: str) -> None:
    two = TwoImages(cluster)
    cluster.target.kill()
    (two.data_file("a") if kind == "data" else two.nodes_file("a")).unlink()
    cluster.target.start()
    with pytest.raises(Corruption) as caught:
        cluster.image_bytes(two.images["a"])
    assert len(caught.value.subject.split()[-1]) == 64, "it names the fingerprint that is lost"
    with pytest.raises(Corruption):
        cluster.restore(two.images["a"], "a-back")
    assert "a-back" not in cluster.volume_names()
    assert differing_spans(cluster.image_bytes(two.images["b"]), two.disks["b"]) == []
    cluster.restore(two.images["b"], "b-back")
    assert differing_spans(cluster.volume_bytes("b-back"), two.disks["b"]) == []

    # A damaged base vouches for nothing: the next backup reads everything, sends what is lost, and heals.
    healing = cluster.back_up("a", "a")
    assert healing.change_source == FULL_READ
    assert (healing.figures.segments_sent > 0) == (kind == "data")
    for image_id in (healing.image_id, two.images["a"]):
        assert differing_spans(cluster.image_bytes(image_id), two.disks["a"]) == []
    cluster.target.kill()
    cluster.target.start()
    for image_id in (healing.image_id, two.images["a"]):
        assert differing_spans(cluster.image_bytes(image_id), two.disks["a"]) == []
    assert cluster.back_up("a", "a", source=BIRTHS).figures.spans_read == 0


def test_a_container_lost_in_mid_transfer_is_sent_again(cluster: Cluster) -> None:
    """What an earlier attempt made durable is no longer true; the next attempt must not rely on it."""
    disk = random_disk(112 * MIB, seed=3)
    cluster.import_disk("d", disk)
    transfer_id, grant = cluster.grant("d")
    send = partial(cluster.send_messages, cluster.snapshot("d"), transfer_id, grant, patience_seconds=60)
    running = in_thread(send)
    wait_for_progress(running, 80)
    cluster.target.kill()
    lost = min(containers(cluster))
    lost.unlink()
    cluster.target.start()
    sent = last_of(running.wait())
    assert differing_spans(cluster.image_bytes(sent.image_id), disk) == []


def test_a_flipped_bit_is_an_error_and_never_wrong_bytes(cluster: Cluster) -> None:
    _flip_bits(cluster, SEED, rounds=4)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [secrets.randbits(32) for _ in range(4)])
def test_many_flipped_bits(cluster: Cluster, seed: int) -> None:
    _flip_bits(cluster, seed, rounds=100)


def _flip_bits(cluster: Cluster, seed: int, rounds: int) -> None:
    draw, two, refused = random.Random(seed), TwoImages(cluster), 0
    for _ in range(rounds):
        path = draw.choice(sorted(two.files["a"]))
        place = draw.randrange(two.files["a"][path]), draw.randrange(8)
        cluster.target.kill()
        _flip(path, *place)
        cluster.target.start()
        what = f"seed {seed}: bit {place} of {path.name}"
        try:
            assert differing_spans(cluster.image_bytes(two.images["a"]), two.disks["a"]) == [], what
        except Corruption:
            refused += 1
        assert differing_spans(cluster.image_bytes(two.images["b"]), two.disks["b"]) == [], what
        _flip(path, *place)
    assert refused > 0, f"seed {seed}: most bits of a container count"


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
