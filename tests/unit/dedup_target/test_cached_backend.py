"""The copy of a far unit's metadata: enough to open, list and collect; never ahead; made anew when lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import NotFound, PeerUnavailable
from arraylift.ids import UnitId
from dedup_target import superblock
from dedup_target.cached_backend import CachedBackend
from dedup_target.container_store import ContainerStore, name_of
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.segment_index import Locator
from dedup_target.superblock import Role, Superblock
from tests.contract.backend_rig import SUPERBLOCK
from tests.fakes.backend import MemoryBackend
from tests.unit.dedup_target.material import UNIT, fill, make_segments


@pytest.fixture
def there() -> MemoryBackend:
    made = MemoryBackend()
    made.objects[superblock.NAME] = SUPERBLOCK
    return made


def _open(there: MemoryBackend, path: Path) -> CachedBackend:
    return CachedBackend(there, DirectoryBackend(RealFiles(), str(path / "cache")), UNIT)


def _reads(there: MemoryBackend) -> list[str]:
    return [name for call, name in there.calls if call in {"get", "size", "list", "exists"}]


def test_a_start_after_a_clean_end_asks_the_unit_nothing(there: MemoryBackend, tmp_path: Path) -> None:
    backend = _open(there, tmp_path)
    store = ContainerStore(backend, UNIT)
    segments = make_segments(20)
    sealed = fill(store, [segments])
    backend.put("manifests/a.alm", [b"manifest"], label="t")
    store.close()
    backend.close()
    there.calls.clear()
    again = _open(there, tmp_path)
    found = ContainerStore(again, UNIT)
    assert found.containers() == [sealed.container_id]
    assert found.read_directory(sealed.container_id).directory.tobytes() == sealed.directory.tobytes()
    assert again.get("manifests/a.alm") == b"manifest"
    assert again.list("") == ["containers", "high-water.alu", "manifests", "unit.alu"]
    assert again.size(name_of(sealed.container_id)) == sealed.file_bytes
    assert _reads(there) == []
    row = sealed.directory[3]
    locator = Locator(sealed.container_id, int(row["offset"]), int(row["stored_bytes"]), 1, 0)
    assert bytes(found.read_record(locator).data) == segments[3].stored
    assert _reads(there) != []


def test_a_lost_cache_is_made_anew_from_heads_alone(there: MemoryBackend, tmp_path: Path) -> None:
    store = ContainerStore(_open(there, tmp_path), UNIT)
    sealed = [fill(store, [make_segments(30, seed=seed)]) for seed in range(3)]
    there.objects["quarantine/x.alq"] = b"q"
    shutil.rmtree(tmp_path / "cache")
    there.calls.clear()
    again = _open(there, tmp_path)
    assert again.get("quarantine/x.alq") == b"q"
    fetched = [name for call, name in there.calls if call == "get" and name.startswith("containers/")]
    assert sorted(fetched) == sorted(2 * [name_of(one.container_id) for one in sealed])
    found = ContainerStore(again, UNIT)
    for one in sealed:
        assert found.read_directory(one.container_id).directory.tobytes() == one.directory.tobytes()


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("call", ["put", "remove"])
def test_what_happened_unseen_is_seen_after_the_next_start(
    there: MemoryBackend, tmp_path: Path, call: str, killed: bool
) -> None:
    backend = _open(there, tmp_path)
    backend.put("manifests/old.alm", [b"old"], label="t")
    there.fail(call, PeerUnavailable("the answer was lost"), effect=True)
    change = {
        "put": lambda: backend.put("manifests/new.alm", [b"new"], label="t"),
        "remove": lambda: backend.remove("manifests/old.alm", label="t"),
    }[call]
    with pytest.raises(PeerUnavailable):
        change()
    assert backend.list("manifests") == ["old.alm"], "it may or may not have happened"
    if not killed:
        backend.close()
    again = _open(there, tmp_path)
    assert again.list("manifests") == (["new.alm", "old.alm"] if call == "put" else [])


def test_a_removal_that_broke_off_can_be_repeated(there: MemoryBackend, tmp_path: Path) -> None:
    backend = _open(there, tmp_path)
    backend.put("manifests/old.alm", [b"old"], label="t")
    there.fail("remove", PeerUnavailable("the answer was lost"), effect=True)
    with pytest.raises(PeerUnavailable):
        backend.remove("manifests/old.alm", label="t")
    backend.remove("manifests/old.alm", label="t")
    assert backend.list("manifests") == []
    with pytest.raises(NotFound):
        backend.remove("manifests/old.alm", label="t")


def test_a_unit_that_is_away_opens_from_its_cache(there: MemoryBackend, tmp_path: Path) -> None:
    backend = _open(there, tmp_path)
    sealed = fill(ContainerStore(backend, UNIT), [make_segments(5)])
    backend.put("manifests/a.alm", [b"manifest"], label="t")
    backend.close()
    there.is_down = True
    again = _open(there, tmp_path)
    assert again.get("manifests/a.alm") == b"manifest"
    assert again.sweep("manifests") == 0
    store = ContainerStore(again, UNIT)
    assert store.read_directory(sealed.container_id).directory.tobytes() == sealed.directory.tobytes()
    with pytest.raises(PeerUnavailable):
        store.read_container(sealed.container_id)
    with pytest.raises(PeerUnavailable):
        again.put("manifests/b.alm", [b"x"], label="t")
    again.close()
    with pytest.raises(PeerUnavailable):
        _open(there, tmp_path)  # that put may have happened
    there.is_down = False
    assert _open(there, tmp_path).list("manifests") == ["a.alm"]


def test_a_cache_that_may_name_what_is_gone_serves_nothing(there: MemoryBackend, tmp_path: Path) -> None:
    """Killed while it was removed: a container that is gone would count as present."""
    backend = _open(there, tmp_path)
    sealed = fill(ContainerStore(backend, UNIT), [make_segments(5)])
    there.fail("remove", PeerUnavailable("killed right after"), effect=True)
    with pytest.raises(PeerUnavailable):
        backend.remove(name_of(sealed.container_id), label="t")
    there.is_down = True
    with pytest.raises(PeerUnavailable):
        _open(there, tmp_path)
    there.is_down = False
    assert ContainerStore(_open(there, tmp_path), UNIT).containers() == []


def test_without_a_whole_cache_a_unit_that_is_away_does_not_open(
    there: MemoryBackend, tmp_path: Path
) -> None:
    there.is_down = True
    with pytest.raises(PeerUnavailable):
        _open(there, tmp_path)


def test_an_empty_place_does_not_empty_the_cache(there: MemoryBackend, tmp_path: Path) -> None:
    _open(there, tmp_path).put("manifests/a.alm", [b"manifest"], label="t")
    there.objects.clear()
    with pytest.raises(PeerUnavailable, match="no storage unit"):
        _open(there, tmp_path)
    assert (tmp_path / "cache/manifests/a.alm").read_bytes() == b"manifest"


@pytest.mark.parametrize("whole", [True, False])
def test_another_units_place_does_not_change_the_cache(
    there: MemoryBackend, tmp_path: Path, whole: bool
) -> None:
    if whole:
        _open(there, tmp_path).put("manifests/a.alm", [b"manifest"], label="t")
    other = MemoryBackend()
    other.objects[superblock.NAME] = superblock.encode(
        Superblock(UnitId("f" * 32), "other", Role.ARCHIVE, 32 << 20)
    )
    with pytest.raises(PeerUnavailable, match="another unit, other"):
        _open(other, tmp_path)
    assert (tmp_path / "cache/unit.alu").exists() == whole
    assert (tmp_path / "cache/manifests/a.alm").exists() == whole


def test_a_container_with_a_damaged_header_is_asked_of_the_unit(there: MemoryBackend, tmp_path: Path) -> None:
    segments = make_segments(5)
    sealed = fill(ContainerStore(_open(there, tmp_path), UNIT), [segments])
    name = name_of(sealed.container_id)
    content = bytearray(there.objects[name])
    content[20] ^= 1
    there.objects[name] = bytes(content)
    shutil.rmtree(tmp_path / "cache")
    again = _open(there, tmp_path)
    found = ContainerStore(again, UNIT).read_directory(sealed.container_id)
    assert found.damage
    assert found.directory.tobytes() == sealed.directory.tobytes()
    assert again.size(name) == len(content)


def test_a_damaged_head_in_the_cache_is_not_believed(there: MemoryBackend, tmp_path: Path) -> None:
    backend = _open(there, tmp_path)
    sealed = fill(ContainerStore(backend, UNIT), [make_segments(5)])
    path = tmp_path / "cache" / name_of(sealed.container_id)
    content = bytearray(path.read_bytes())
    content[200 if len(content) % 2 else 300] ^= 1
    content[-9] ^= 1
    path.write_bytes(content)
    found = ContainerStore(backend, UNIT).read_directory(sealed.container_id)
    assert found.directory.tobytes() == sealed.directory.tobytes()


def test_a_foreign_object_among_containers_disturbs_nothing(there: MemoryBackend, tmp_path: Path) -> None:
    there.objects["containers/00000000/notes.txt"] = b"hello"
    backend = _open(there, tmp_path)
    assert ContainerStore(backend, UNIT).containers() == []
    assert backend.get("containers/00000000/notes.txt", 1, 3) == b"ell"
