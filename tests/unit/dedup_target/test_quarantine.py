"""Quarantine: durable before it counts, by record, with a generation."""

from __future__ import annotations

from pathlib import Path

from arraylift.durable import RealFiles
from arraylift.ids import ContainerId
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.quarantine import Quarantine
from tests.unit.dedup_target.material import TENANT

ONE, TWO = b"1" * 32, b"2" * 32


def _open(path: Path) -> Quarantine:
    return Quarantine(DirectoryBackend(RealFiles(), str(path)))


def test_what_is_quarantined_stays_so(tmp_path: Path) -> None:
    store = _open(tmp_path)
    assert store.is_empty
    before = store.generation
    store.add(ContainerId(5), TENANT, [ONE], "checksum")
    store.add(ContainerId(5), TENANT, [TWO, ONE], "fingerprint")
    store.add(ContainerId(6), TENANT, [ONE], "x" * 900)
    assert store.generation == before + 3
    for one in (store, _open(tmp_path)):
        assert not one.is_empty
        assert one.record_count == 3
        assert one.bad_of(ContainerId(5)) == {ONE, TWO}
        assert one.bad_of(ContainerId(7)) == frozenset()
        assert {(container, tenant) for container, tenant, _ in one.records()} == {(5, TENANT), (6, TENANT)}
        assert one.reason(TENANT, TWO) == "fingerprint"
        assert one.reason(TENANT, b"3" * 32) == ""


def test_a_container_can_be_dropped(tmp_path: Path) -> None:
    store = _open(tmp_path)
    store.add(ContainerId(5), TENANT, [ONE], "checksum")
    store.drop_container(ContainerId(5))
    store.drop_container(ContainerId(5))
    assert store.is_empty
    assert _open(tmp_path).is_empty


def test_a_damaged_file_is_replaced_by_a_new_look_at_the_container(tmp_path: Path) -> None:
    store = _open(tmp_path)
    for number in (5, 6):
        store.add(ContainerId(number), TENANT, [ONE, TWO], "checksum")
        path = tmp_path / "quarantine" / f"{number:016x}.alq"
        path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "quarantine" / "notes.txt").write_text("hello")
    again = _open(tmp_path)
    assert again.damaged == [5, 6]
    again.verify_damaged(lambda container: (TENANT, [TWO] if container == 5 else []))
    assert again.damaged == []
    fresh = _open(tmp_path)
    assert fresh.damaged == []
    assert fresh.bad_of(ContainerId(5)) == {TWO}
    assert fresh.bad_of(ContainerId(6)) == frozenset()
