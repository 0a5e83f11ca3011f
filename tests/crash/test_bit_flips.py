"""Flip bits of a whole small store, one at a time: an error or a rebuild, and never wrong bytes.

Every bit of manifests, nodes and directories; a sample of what is left: payload, headers and padding of
containers, keys, secrets, small files, and (in a real RocksDB) tables, logs and manifests of the index.
What may follow from a flip: the store refuses to open, says that a manifest is damaged, or an image reads as
Corruption. Everything that reads is bit-exact, and no image or backup is missing without a word.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from arraylift.errors import ArrayliftError, Corruption, NotFound
from arraylift.sizes import KIB, MIB
from dedup_target.backup_manifest_format import BackupManifest
from dedup_target.container_format import HEADER_BYTES, Kind, decode_header
from dedup_target.container_store import name_of
from dedup_target.image_reader import ImageReader
from dedup_target.store import Store
from tests import campaign
from tests.crash.test_index_rebuild import World as IndexWorld
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import Backup, Target
from tests.property.test_old_parts import UNIT, close_target, copy_of
from tests.property.test_target_storage_crash import IndexDisk

NAME = "bit flips"
SAMPLED, SAMPLED_IN_INDEX = 8000, 2000
FEW, FEW_IN_INDEX = 120, 24

Place = tuple[str, int, int]
"""File, byte, bit."""


def _disks() -> tuple[bytes, bytes]:
    """A hole, then a short span of repeats, text and noise; the next day a piece of it differs."""
    draw = np.random.default_rng(3)
    first = bytearray(MIB) + draw.bytes(9 * KIB) + b"words and words " * KIB + draw.bytes(7 * KIB)
    second = first.copy()
    second[MIB + 30 * KIB :] = draw.bytes(len(first) - MIB - 30 * KIB)
    return bytes(first), bytes(second)


FIRST, SECOND = _disks()
BACKUPS = [Backup(1, FIRST, None), Backup(2, SECOND, frozenset({1}))]


@dataclass(frozen=True)
class Ground:
    """A store in good order, and where its bits lie."""

    files: FakeFiles
    index: MemorySegmentIndex
    manifest: BackupManifest
    all_bits: list[tuple[str, range]]
    """Manifests, nodes and directories."""
    sampled: list[tuple[str, range]]
    """Everything else."""


@cache
def ground() -> Ground:
    files, disk = FakeFiles(), IndexDisk(MemorySegmentIndex())
    target = Target(files, disk)
    for one in BACKUPS:
        target.send(one)
    image = target.store.manifests.all()[0]
    manifest = BackupManifest(
        backup_id=f"{7:032x}",  # type: ignore[arg-type]
        tenant=image.tenant,
        tenant_name=image.tenant_name,
        vm_id="e" * 32,
        vm_name="web1",
        snapshot_at_ns=5,
        images=tuple((f"disk{one.number}", one.image_id) for one in BACKUPS),
        attributes=b"attributes",
    )
    target.store.unit.backups.publish(manifest)
    containers = {name_of(one): one for one in target.store.containers.containers()}
    close_target(target)
    files = copy_of(files)  # without what nobody synced
    all_bits, sampled = list[tuple[str, range]](), list[tuple[str, range]]()
    for path, size in _files(files):
        name = path.removeprefix(f"{UNIT}/")
        if name in containers:
            header = decode_header(files.read(path, 0, HEADER_BYTES), containers[name])
            at = header.directory_offset
            end = at + header.record_count * 56
            frames = all_bits if header.kind == Kind.NODES else sampled
            frames.append((path, range(HEADER_BYTES, at)))
            all_bits.append((path, range(at, end)))
            sampled += [(path, range(HEADER_BYTES)), (path, range(end, size))]
        elif name.startswith(("manifests/", "backups/")):
            all_bits.append((path, range(size)))
        else:
            sampled.append((path, range(size)))
    return Ground(files, disk.batches[-1].copy(), manifest, all_bits, sampled)


def _files(files: FakeFiles, folder: str = "/state") -> Iterator[tuple[str, int]]:
    for name in files.list_dir(folder):
        path = f"{folder}/{name}"
        try:
            size = len(files.read(path))
        except (ArrayliftError, OSError):
            yield from _files(files, path)
        else:
            if size:
                yield path, size


# -- one flip -----------------------------------------------------------------------------------


def flip(places: Iterable[Place], *, index_lost: bool) -> str:
    """Flip bits, start, look at everything; returns what came of it."""
    good = ground()
    files = copy_of(good.files)
    for path, offset, bit in places:
        files.corrupt(path, offset, bit)
    index = MemorySegmentIndex() if index_lost else good.index.copy()
    try:
        store = Store(files, "/state", opener_of=lambda _: IndexDisk(index))
    except ArrayliftError:
        return "refused at start"
    try:
        return _look(store)
    finally:
        store.close()


def _look(store: Store) -> str:
    images, outcome = ImageReader(store), "harmless"
    shown = {one.image_id for one in store.manifests.all()}
    damaged_manifests = len(store.manifests.damaged)
    assert len(shown) + damaged_manifests >= len(BACKUPS), "an image is missing without a word"
    for backup in BACKUPS:
        if backup.image_id not in shown:
            outcome = "manifest refused"
            continue
        try:
            pieces = images.read(images.open(backup.image_id), 0, 0)
            content = b"".join(bytes(piece.data) or bytes(piece.zero_bytes) for piece in pieces)
            assert content == backup.disk, "wrong bytes"
        except (Corruption, NotFound):
            outcome = "read refused"
    try:
        assert store.unit.backups.read(ground().manifest.backup_id) == ground().manifest, "a wrong backup"
    except Corruption:
        outcome = "manifest refused"
    except NotFound:
        assert store.unit.backups.damaged_names, "a backup is missing without a word"
        outcome = "manifest refused"
    if outcome == "harmless" and store.in_doubt:
        return "mended"
    return outcome


def flip_all(places: Iterable[Place], *, index_lost: Callable[[], bool], what: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for place in places:
        lost = index_lost()
        try:
            found[flip([place], index_lost=lost)] += 1
        except Exception as error:
            raise AssertionError(f"{what}: {place}, index lost: {lost}: {error!r}") from error
    return found


def flip_index(path: Path, count: int, seed: int) -> Counter[str]:
    """The same over the files of a real index: set-equal afterwards, at the latest at the next start."""
    world, found = IndexWorld(path, big=0, seed=seed), Counter[str]()
    index = world.path / "index"
    world.close()
    shutil.copytree(index, world.aside / "closed")
    kinds = ("*.sst", "*.log", "MANIFEST-*", "*")
    try:
        for number in range(count):
            shutil.rmtree(index)
            shutil.copytree(world.aside / ("crashed" if number % 2 else "closed"), index)
            victims = sorted(one for one in index.rglob(kinds[number // 2 % 4]) if one.is_file())
            victims = [one for one in victims if one.stat().st_size] or [next(index.rglob("MANIFEST-*"))]
            victim = world.draw.choice(victims)
            content = bytearray(victim.read_bytes())
            offset, bit = world.draw.randrange(len(content)), world.draw.randrange(8)
            content[offset] ^= 1 << bit
            victim.write_bytes(content)
            try:
                world.start()
                later = world.settle()
                rebuilt = bool(world.unit.report.index.rebuilt)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {victim.name}, byte {offset}, bit {bit}") from error
            found["met by a read" if later else "mended" if rebuilt else "harmless"] += 1
            world.close()
    finally:
        with contextlib.suppress(ArrayliftError):
            world.close()
    return found


# -- campaigns ----------------------------------------------------------------------------------


def every_bit(parts: Iterable[tuple[str, range]]) -> Iterator[Place]:
    for path, span in parts:
        for offset in span:
            for bit in range(8):
                yield path, offset, bit


def sample(parts: list[tuple[str, range]], count: int, draw: random.Random) -> Iterator[Place]:
    """Half of them anywhere, half in a file that was drawn first: small files matter as much."""
    weights = [len(span) for _, span in parts]
    for number in range(count):
        path, span = draw.choices(parts, weights if number % 2 else None)[0]
        if len(span):
            yield path, draw.choice(span), draw.randrange(8)


def _report(found: Counter[str], seed: int) -> None:
    figures = {name: found[name] for name in sorted(found)}
    campaign.report(NAME, seed=seed, flips=sum(found.values()), silent=0, **figures)


def test_a_share_of_all_bits(tmp_path: Path) -> None:
    seed = campaign.seed_of(NAME)
    draw, what = random.Random(seed), f"seed {seed}"

    def index_lost() -> bool:
        return draw.random() < 0.5

    found = flip_all(sample(ground().all_bits, FEW, draw), index_lost=index_lost, what=what)
    assert found["harmless"] < sum(found.values()) / 2, "these bits count"
    found += flip_all(sample(ground().sampled, FEW, draw), index_lost=index_lost, what=what)
    found += flip_index(tmp_path, FEW_IN_INDEX, seed)
    _report(found, seed)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_every_bit_that_counts_and_ten_thousand_others(tmp_path: Path) -> None:
    seed = campaign.seed_of(NAME)
    draw, what = random.Random(seed), f"seed {seed}"
    found: Counter[str] = Counter()
    for lost in (False, True):
        found += flip_all(every_bit(ground().all_bits), index_lost=lambda lost=lost: lost, what=what)  # type: ignore[misc]
    others = sample(ground().sampled, campaign.scaled(SAMPLED), draw)
    found += flip_all(others, index_lost=lambda: draw.random() < 0.5, what=what)
    found += flip_index(tmp_path, campaign.scaled(SAMPLED_IN_INDEX), seed)
    _report(found, seed)
