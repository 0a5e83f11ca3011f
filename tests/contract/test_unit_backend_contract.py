"""What every ``UnitBackend`` must do: directories, object stores, caches and the fake pass one suite."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arraylift.errors import ArrayliftError, Corruption, NotFound, PeerUnavailable, StoreFailed
from dedup_target.unit_backend import walk
from tests.contract.backend_rig import KINDS, Rig, make_rig
from tests.fakes.object_store import ObjectStore


@pytest.fixture(params=KINDS)
def rig(
    request: pytest.FixtureRequest, tmp_path: Path, object_store: Callable[[], ObjectStore]
) -> Iterator[Rig]:
    yield from make_rig(request.param, tmp_path, object_store)


def _put(rig: Rig, name: str, *parts: bytes) -> None:
    rig.backend.put(name, parts, label="t")


def test_what_is_put_can_be_read_and_listed_also_by_the_next_process(rig: Rig) -> None:
    _put(rig, "manifests/a.alm", b"one", b"", b"two")
    for backend in (rig.backend, rig.reopen()):
        assert backend.get("manifests/a.alm") == b"onetwo"
        assert backend.size("manifests/a.alm") == 6
        assert backend.exists("manifests/a.alm")
        assert backend.list("manifests") == ["a.alm"]
        assert "manifests" in backend.list("")


def test_ranges_are_exact_or_an_error(rig: Rig) -> None:
    _put(rig, "keys/a.alk", bytes(range(100)))
    get = rig.backend.get
    assert get("keys/a.alk", 10, 5) == bytes(range(10, 15))
    assert get("keys/a.alk", 90) == bytes(range(90, 100))
    assert get("keys/a.alk", 100) == b""
    assert get("keys/a.alk", 7, 0) == b""
    for offset, length in ((96, 5), (100, 1), (200, 1)):
        with pytest.raises(Corruption):
            get("keys/a.alk", offset, length)


def test_a_put_replaces_whole(rig: Rig) -> None:
    for content in (b"a longer one", b"short", b""):
        _put(rig, "high-water.alu", content)
        assert rig.backend.get("high-water.alu") == content
        assert rig.backend.size("high-water.alu") == len(content)
    assert rig.reopen().get("high-water.alu") == b""


def test_what_is_not_there_is_not_found(rig: Rig) -> None:
    _put(rig, "manifests/a.alm", b"x")
    for name in ("manifests/b.alm", "backups/a.alb"):
        assert not rig.backend.exists(name)
        for call in (rig.backend.get, rig.backend.size):
            with pytest.raises(NotFound):
                call(name)
        with pytest.raises(NotFound):
            rig.backend.remove(name, label="t")
        rig.backend.remove(name, label="t", missing_ok=True)
    assert rig.backend.list("backups") == []


def test_what_is_removed_is_gone_for_everybody(rig: Rig) -> None:
    _put(rig, "manifests/a.alm", b"x")
    _put(rig, "manifests/b.alm", b"y")
    rig.backend.remove("manifests/a.alm", label="t")
    for backend in (rig.backend, rig.reopen()):
        assert not backend.exists("manifests/a.alm")
        assert backend.list("manifests") == ["b.alm"]
        with pytest.raises(NotFound):
            backend.get("manifests/a.alm")


def test_folders_nest_and_listings_are_sorted_and_not_deep(rig: Rig) -> None:
    names = [f"replicas/{unit}/keys/{number:03d}.alk" for unit in "ba" for number in range(12)]
    for name in names:
        _put(rig, name, name.encode())
    assert rig.backend.list("replicas") == ["a", "b"]
    assert rig.backend.list("replicas/b") == ["keys"]
    assert rig.backend.list("replicas/b/keys") == [f"{number:03d}.alk" for number in range(12)]
    assert sorted(walk(rig.backend, "replicas")) == sorted(names)
    assert rig.backend.list("replica") == [], "a folder's name is whole"


def test_a_page_aligned_buffer_is_taken_as_it_is(rig: Rig) -> None:
    buffer = mmap.mmap(-1, 3 << 20)
    buffer[:] = bytes(range(256)) * (3 << 12)
    rig.backend.put("quarantine/a.alq", [memoryview(buffer)[: 2 << 20]], label="t")
    buffer[:5] = b"other"
    found = rig.reopen().get("quarantine/a.alq")
    assert found == bytes(range(256)) * (2 << 12)


def test_two_who_put_at_once_one_of_them_wins_whole(rig: Rig) -> None:
    contents = [bytes([number]) * 50_000 for number in range(4)]
    threads = [threading.Thread(target=_put, args=(rig, "manifests/a.alm", content)) for content in contents]
    for thread in threads:
        thread.start()
    seen = [rig.backend.get("manifests/a.alm") for _ in range(5) if rig.backend.exists("manifests/a.alm")]
    for thread in threads:
        thread.join()
    assert set(seen) <= set(contents)
    assert rig.reopen().get("manifests/a.alm") in contents


def test_a_put_that_fails_leaves_the_old_or_the_new_and_nothing_partial(rig: Rig) -> None:
    old, new = b"old" * 30_000, b"new" * 40_000
    for number, fault in enumerate(rig.faults):
        name = f"manifests/{number}.alm"
        for before in (None, old):
            backend = rig.reopen()
            if before is not None:
                backend.put(name, [before], label="t")
            fault()
            with pytest.raises(ArrayliftError) as raised:
                backend.put(name, [new], label="t")
            rig.after_fault()
            found = rig.reopen()
            found.sweep("manifests")
            shown = found.get(name) if found.exists(name) else None
            if isinstance(raised.value, (StoreFailed, PeerUnavailable)):
                assert shown in (before, new), number
            else:
                assert shown == before, number
            assert found.list("manifests") == sorted({*found.list("manifests")})
            found.put(name, [new], label="t")
            assert found.get(name) == new, "the next one heals"


def test_sweeping_a_sound_place_changes_nothing(rig: Rig) -> None:
    _put(rig, "manifests/a.alm", b"x")
    for folder in ("", "manifests", "missing"):
        assert rig.backend.sweep(folder) == 0
    assert rig.backend.get("manifests/a.alm") == b"x"
    rig.backend.close()
    rig.backend.close()
