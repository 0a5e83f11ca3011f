"""The pool's formats do not drift: what version 2 wrote is read, and written, now; what version 1
wrote is read, and goes on as version 2.

``python -m tests.unit.primary_array.test_golden_pool`` writes the files of version 2 anew; only a new
format version may need that.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.ids import LineageId, SourceState
from arraylift.sizes import GRANULE_BYTES
from primary_array import draft as draft_module
from primary_array import pool as pool_module
from primary_array import pool_open, volume_ops
from primary_array.pool import Pool
from primary_array.pool_types import Origin, SnapshotSource, VolumeSource
from primary_array.volume_ops import Swap
from tests.fakes.disk import FakeFiles, PowerCut
from tests.unit.primary_array.test_pool import FixedClock, read

G = GRANULE_BYTES
GOLDEN = Path(__file__).parents[2] / "golden"
NAMES_V1 = ("pool.json", "checkpoint-0000000002.alc", "journal-0000000002.alj", "slots.data")
NAMES = (*NAMES_V1, "map.pages")
COMPRESSED = ("slots.data", "map.pages")
"""Mostly zeros, or one byte value."""
MODULES = (pool_module, pool_open, draft_module, volume_ops)


def stored(version: str, name: str) -> bytes:
    if name in COMPRESSED:
        return zlib.decompress((GOLDEN / version / f"{name}.zlib").read_bytes())
    return (GOLDEN / version / name).read_bytes()


def lay(version: str, names: tuple[str, ...]) -> FakeFiles:
    files = FakeFiles()
    files.make_dirs("/pool")
    for name in names:
        files.publish(f"/pool/{name}", [stored(version, name)], label="test")
    return files


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
    cloned(pool, "early")
    with pool._commit.transaction():
        pool._checkpointer.write_inside()
    cloned(pool, "late")
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


def cloned(pool: Pool, name: str) -> None:
    """What version 2 added, once before and once after the checkpoint."""
    pool.create_volume(name, 2 * G + 512)
    pool.write(name, 0, b"c" * (2 * G + 512))
    (base,) = pool.snapshot([name], "base")
    pool.clone_volume(base.snapshot_id, f"{name}-clone")
    pool.write(f"{name}-clone", 0, b"d" * G)
    pool.resize_volume(f"{name}-clone", G + 512)
    pool.resize_volume(f"{name}-clone", 5 * G)
    pool.write(name, G, b"e" * G)
    pool.rollback_volume(name, base.snapshot_id, safety_name="safe")
    pool.write(name, 2 * G, b"f" * 512)
    draft = pool.begin_clone(f"{name}-draft", base.snapshot_id, 2 * G)
    draft.write(0, b"g" * G)
    draft.save_progress(b"half")
    line = LineageId(vars(volume_ops)["random_id"]())  # the one that counts
    pool.swap_drafts([Swap(draft.draft_id, name, bytes(32), line)], safety_name="swapped")
    open_draft = pool.begin_clone(f"{name}-open", base.snapshot_id, 3 * G)
    open_draft.write(G, b"h")
    open_draft.save_progress(b"open")


@pytest.fixture
def counted_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(1)
    for module in MODULES:
        monkeypatch.setattr(module, "random_id", lambda: f"{next(numbers):032x}")


def test_the_same_history_gives_the_same_bytes(counted_ids: None) -> None:
    files = FakeFiles()
    history(files)
    for name in NAMES:
        assert files.read(f"/pool/{name}") == stored("pool-v2", name), name


def check_first(pool: Pool) -> None:
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
    saved = next(draft for draft in pool.drafts() if draft.name == "saved")
    assert (saved.tag, saved.mapped_bytes) == (b"tag two", G)


def check_cloned(pool: Pool, name: str) -> None:
    labels = [(info.label, info.size_bytes, info.state.birth) for info in pool.snapshots(name)]
    assert labels == [("base", 2 * G + 512, 1), ("safe", 2 * G + 512, 2), ("swapped", 2 * G + 512, 4)]
    base, safe, swapped = pool.snapshots(name)
    assert read(pool, SnapshotSource(base.snapshot_id), 0, 2 * G + 512) == b"c" * (2 * G + 512)
    assert read(pool, SnapshotSource(safe.snapshot_id), 0, 2 * G + 512) == b"c" * G + b"e" * G + b"c" * 512
    found = read(pool, SnapshotSource(swapped.snapshot_id), 0, 2 * G + 512)
    assert found == b"c" * (2 * G) + b"f" * 512
    volume = pool.volume(name)
    assert (volume.size_bytes, volume.state.birth) == (2 * G, 6)
    assert volume.origin == Origin(bytes(32), SourceState(pool.pool_id, volume.state.lineage_id, 2))
    assert read(pool, VolumeSource(name), 0, 2 * G) == b"g" * G + b"c" * G
    clone = read(pool, VolumeSource(f"{name}-clone"), 0, 5 * G)
    assert clone == b"d" * G + b"c" * 512 + bytes(4 * G - 512)
    draft = next(draft for draft in pool.drafts() if draft.name == f"{name}-open")
    assert (draft.size_bytes, draft.tag) == (3 * G, b"open")
    lines = pool._state.lineages
    assert lines.is_ancestor(base.state, volume.state)
    assert not lines.is_ancestor(safe.state, volume.state)
    assert lines.is_ancestor(base.state, pool.volume(f"{name}-clone").state)


def test_golden_pool_is_read() -> None:
    pool = Pool.open(lay("pool-v2", NAMES), "/pool")
    names = [info.name for info in pool.volumes()]
    assert names == ["early", "early-clone", "first", "late", "late-clone", "restored", "second"]
    check_first(pool)
    check_cloned(pool, "early")
    check_cloned(pool, "late")


def test_pool_of_version_1_is_read_and_goes_on_as_version_2() -> None:
    files = lay("pool-v1", NAMES_V1)
    pool = Pool.open(files, "/pool")
    assert [info.name for info in pool.volumes()] == ["first", "restored", "second"]
    check_first(pool)
    assert pool.stats().slots_used == 5
    cloned(pool, "new")
    pool.close()
    again = Pool.open(files, "/pool")
    check_first(again)
    check_cloned(again, "new")
    assert b'"version": 2' in files.read("/pool/pool.json")


def test_upgrade_may_be_cut_anywhere() -> None:
    cut, finished = 0, False
    while not finished:
        files = lay("pool-v1", NAMES_V1)
        files.crash_after(cut)
        try:
            Pool.open(files, "/pool").close()
            finished = True
        except PowerCut:
            pass
        for state in files.post_crash_states(maximum=20, seed=cut):
            check_first(Pool.open(state, "/pool"))
        cut += 1
    assert cut > 5


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        counter: Iterator[int] = itertools.count(1)
        for target in MODULES:
            patch.setattr(target, "random_id", lambda: f"{next(counter):032x}")
        made = FakeFiles()
        history(made)
    folder = GOLDEN / "pool-v2"
    folder.mkdir(exist_ok=True)
    for each in NAMES:
        content = made.read(f"/pool/{each}")
        if each in COMPRESSED:
            (folder / f"{each}.zlib").write_bytes(zlib.compress(content, 9))
        else:
            (folder / each).write_bytes(content)
