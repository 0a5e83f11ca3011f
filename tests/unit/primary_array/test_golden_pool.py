"""The pool's format, version 1, does not drift: what was written then is read, and written, now.

``python -m tests.unit.primary_array.test_golden_pool`` writes the files anew; only a new format
version may need that.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.ids import SourceState
from arraylift.sizes import GRANULE_BYTES
from primary_array import draft as draft_module
from primary_array import pool as pool_module
from primary_array import pool_open
from primary_array.pool import Pool
from primary_array.pool_types import Origin, SnapshotSource, VolumeSource
from tests.fakes.disk import FakeFiles
from tests.unit.primary_array.test_pool import FixedClock, read

G = GRANULE_BYTES
GOLDEN = Path(__file__).parents[2] / "golden" / "pool-v1"
NAMES = (
    "pool.json",
    "checkpoint-0000000002.alc",
    "journal-0000000002.alj",
    "slots.data",
)


def stored(name: str) -> bytes:
    """slots.data is kept compressed: it is mostly one byte value a slot."""
    if name == "slots.data":
        return zlib.decompress((GOLDEN / f"{name}.zlib").read_bytes())
    return (GOLDEN / name).read_bytes()


def history(files: FakeFiles) -> Pool:
    """Every kind of event, some before the checkpoint, some after it. Ids count up from 1."""
    pool = Pool.open(files, "/pool", clock=FixedClock())
    pool.create_volume("first", 3 * G)
    pool.write("first", 0, b"a" * (2 * G))
    pool.snapshot(["first"], "one")
    pool.write("first", G, b"b")
    draft = pool.begin_volume("saved", 2 * G)
    draft.write(0, b"s" * G)
    draft.save_progress(b"tag one")
    with pool._commit.transaction():
        pool._commit.checkpoint()
    pool.create_volume("second", 512)
    pool.trim("first", 0, G)
    (two,) = pool.snapshot(["first"], "two")
    pool.snapshot(["second", "first"], "")
    pool.delete_snapshot(two.snapshot_id)
    pool.distrust("second")
    draft.save_progress(b"tag two")
    done = pool.begin_volume("restored", G)
    done.write(0, b"r" * G)
    done.commit(root=bytes(range(32)))
    gone = pool.begin_volume("gone", G)
    gone.save_progress(b"")
    gone.abort()
    pool.create_volume("third", 512)
    pool.delete_volume("third")
    return pool


@pytest.fixture
def counted_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(1)
    for module in (pool_module, pool_open, draft_module):
        monkeypatch.setattr(module, "random_id", lambda: f"{next(numbers):032x}")


def test_the_same_history_gives_the_same_bytes(counted_ids: None) -> None:
    files = FakeFiles()
    history(files)
    for name in NAMES:
        assert files.read(f"/pool/{name}") == stored(name), name


def test_golden_pool_is_read() -> None:
    files = FakeFiles()
    files.make_dirs("/pool")
    for name in NAMES:
        files.publish(f"/pool/{name}", [stored(name)], label="test")
    pool = Pool.open(files, "/pool")
    names = [info.name for info in pool.volumes()]
    assert names == ["first", "restored", "second"]
    first = pool.volume("first")
    assert (first.size_bytes, first.mapped_bytes, first.state.birth) == (3 * G, G, 4)
    assert read(pool, VolumeSource("first"), 0, 3 * G) == bytes(G) + b"b" + b"a" * (G - 1) + bytes(G)
    one, last = pool.snapshots("first")
    assert (one.label, one.state.birth, last.label, last.state.birth) == ("one", 1, "", 3)
    assert one.created_at_ns == 1_700_000_000_000_000_000
    assert read(pool, SnapshotSource(one.snapshot_id), 0, 3 * G) == b"a" * (2 * G) + bytes(G)
    ranges = pool.changed_ranges(last.snapshot_id, one.state)
    assert ranges is not None
    assert [part.tolist() for part in ranges] == [[0], [2 * G]]
    (second,) = pool.snapshots("second")
    assert second.group_id == last.group_id
    assert pool.volume("second").state.lineage_id != second.state.lineage_id
    restored = pool.volume("restored")
    state = SourceState(pool.pool_id, restored.state.lineage_id, 1)
    assert restored.origin == Origin(bytes(range(32)), state)
    assert read(pool, VolumeSource("restored"), 0, G) == b"r" * G
    (saved,) = pool.drafts()
    assert (saved.name, saved.tag, saved.mapped_bytes) == ("saved", b"tag two", G)
    assert pool.stats().slots_used == 5


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        counter: Iterator[int] = itertools.count(1)
        for target in (pool_module, pool_open, draft_module):
            patch.setattr(target, "random_id", lambda: f"{next(counter):032x}")
        made = FakeFiles()
        history(made)
    GOLDEN.mkdir(exist_ok=True)
    for each in NAMES:
        content = made.read(f"/pool/{each}")
        if each == "slots.data":
            (GOLDEN / f"{each}.zlib").write_bytes(zlib.compress(content, 9))
        else:
            (GOLDEN / each).write_bytes(content)
