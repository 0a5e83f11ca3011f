"""What only RocksDB can do wrong: lost logs, flipped bits, full disks, second owners."""

from __future__ import annotations

import ast
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import rocksdict

from arraylift.errors import ArrayliftError, Corruption, OutOfSpace, StoreFailed, WrongState
from arraylift.ids import ContainerId
from dedup_target import rocks_index, rocks_log_check
from dedup_target.rocks_index import RocksSegmentIndex
from tests.contract.test_segment_index_contract import fingerprints, sealed_of
from tests.unit.dedup_target.material import TENANT, make_segments

RECORDS = 20


def _add(index: RocksSegmentIndex, *containers: int) -> None:
    for container in containers:
        index.add_containers([sealed_of(container, make_segments(RECORDS, seed=container))])


def _consistent(path: Path, *, alone: bool = True) -> set[int]:
    """Open; check that each marked container has all its entries, and no other is there unless it may;
    return the marks."""
    index = RocksSegmentIndex(str(path))
    try:
        marks = index.indexed_containers()
        for container in marks:
            wanted = fingerprints(make_segments(RECORDS, seed=container))
            assert [one and one.container for one in index.get_many(TENANT, wanted)] == [container] * RECORDS
        assert index.count() == RECORDS * len(marks) or not alone
    finally:
        index.close()
    return {int(container) for container in marks}


def _copy_while_open(tmp_path: Path) -> Path:
    """A database with tables (containers 1-5) and a log (6-9), as a crash leaves it."""
    index = RocksSegmentIndex(str(tmp_path / "index"))
    _add(index, 1, 2, 3, 4, 5)
    index.close()
    index = RocksSegmentIndex(str(tmp_path / "index"))
    _add(index, 6, 7, 8, 9)
    shutil.copytree(tmp_path / "index", tmp_path / "crashed")
    index.close()
    return tmp_path / "crashed"


def test_synced_batches_survive_a_crash(tmp_path: Path) -> None:
    assert _consistent(_copy_while_open(tmp_path)) == set(range(1, 10))


def test_a_lost_log_loses_marks_and_entries_alike(tmp_path: Path) -> None:
    crashed = _copy_while_open(tmp_path)
    for log in crashed.glob("*.log"):
        log.unlink()
    assert _consistent(crashed) == {1, 2, 3, 4, 5}


def test_a_torn_log_keeps_whole_batches(tmp_path: Path) -> None:
    crashed = _copy_while_open(tmp_path)
    (log,) = (path for path in crashed.glob("*.log") if path.stat().st_size)
    log.write_bytes(log.read_bytes()[:-700])
    assert _consistent(crashed) == {1, 2, 3, 4, 5, 6, 7, 8}


def test_a_manifest_that_lost_its_tail_loses_no_entry_of_a_marked_container(tmp_path: Path) -> None:
    _copy_while_open(tmp_path)
    (manifest,) = (tmp_path / "index").glob("MANIFEST-*")
    whole, outcomes = manifest.read_bytes(), set[object]()
    step, work = max(1, len(whole) // 60), tmp_path / "work"
    for size in range(random.randrange(step), len(whole), step):
        shutil.copytree(tmp_path / "index", work)
        (work / manifest.name).write_bytes(whole[:size])
        try:
            outcomes.add(len(_consistent(work, alone=False)))
        except Corruption:
            outcomes.add("refused")
        rocks_index.destroy(str(work))
    assert outcomes > {"refused"}, "some tails are lost without a word"


@pytest.mark.parametrize("pattern", ["MANIFEST-*", "*.log"])
def test_a_record_type_that_makes_rocksdb_spin_is_refused(tmp_path: Path, pattern: str) -> None:
    crashed = _copy_while_open(tmp_path)
    assert rocks_log_check.recycled_record(str(crashed)) == ""
    (victim,) = (path for path in crashed.glob(pattern) if path.stat().st_size)
    whole, places, at = victim.read_bytes(), list[int](), 0
    while at + 7 <= len(whole) and whole[at + 6]:
        places.append(at + 6)
        at += 7 + int.from_bytes(whole[at + 4 : at + 6], "little")
    assert len(places) >= 4
    for place in places:
        content = bytearray(whole)
        content[place] ^= 4  # 1, a whole record, becomes 5, the same of a recycled log
        victim.write_bytes(content)
        with pytest.raises(Corruption, match="recycled"):
            RocksSegmentIndex(str(crashed))
    victim.write_bytes(whole)
    assert _consistent(crashed) == set(range(1, 10))


def test_logs_are_walked_over_blocks_and_unwritten_ends() -> None:
    block = rocks_log_check.BLOCK_BYTES
    payload = block - 7 - 3
    first = (
        b"crc4" + payload.to_bytes(2, "little") + b"\x01" + bytes(payload) + bytes(3)
    )  # no header fits behind
    strange = b"crc4" + b"\x01\x00" + b"\x06" + b"x"
    find = rocks_log_check.find_recycled
    assert find(first + first) is None
    assert find(first + strange) == block
    assert find(first + bytes(block) + strange) == 2 * block
    assert find(b"") is find(b"short") is find(first + strange[:6]) is None


@pytest.mark.parametrize("pattern", ["*.log", "*.sst", "MANIFEST-*", "CURRENT"])
def test_a_flipped_bit_is_an_error_or_harmless(tmp_path: Path, pattern: str) -> None:
    crashed = _copy_while_open(tmp_path)
    draw, work, refused = random.Random(pattern), tmp_path / "work", 0
    for _ in range(25):
        shutil.copytree(crashed, work)
        victim = draw.choice(sorted(path for path in work.glob(pattern) if path.stat().st_size))
        content = bytearray(victim.read_bytes())
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
        try:
            assert _consistent(work) == set(range(1, 10)), (victim.name, place)
        except Corruption:
            refused += 1
        rocks_index.destroy(str(work))
    assert refused, "no flip was noticed: the test flips the wrong bytes"


def test_damage_met_while_reading_is_told(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = RocksSegmentIndex(str(path))
    _add(index, *range(1, 40))
    index.close()
    for table in path.glob("*.sst"):
        content = bytearray(table.read_bytes())
        content[200] ^= 1
        table.write_bytes(content)
    told: list[str] = []
    try:
        index = RocksSegmentIndex(str(path), on_damage=told.append)
        with pytest.raises(Corruption, match="rebuilds"):
            index.count()
        index.close()
    except Corruption:
        pass  # the flipped table was the marks' own: found at once
    assert told


def test_two_owners_are_refused(tmp_path: Path) -> None:
    index = RocksSegmentIndex(str(tmp_path / "index"))
    with pytest.raises(WrongState, match="open in another process"):
        RocksSegmentIndex(str(tmp_path / "index"))
    index.close()


class _Failing:
    """A database whose writes fail; everything else is the real one's."""

    def __init__(self, database: object, text: str) -> None:
        self._database = database
        self._text = text

    def write(self, *_: object) -> None:
        raise Exception(self._text)  # noqa: TRY002 - what rocksdict raises

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)


def _refuse_to_open(*_: object) -> None:
    raise Exception("IO error: No space left on device: While opening")  # noqa: TRY002 - as rocksdict


class Usage(NamedTuple):
    free: int


def _broken(tmp_path: Path, text: str) -> RocksSegmentIndex:
    index = RocksSegmentIndex(str(tmp_path / "index"))
    _add(index, 1)
    index._database = _Failing(index._database, text)  # type: ignore[assignment]
    return index


def test_after_a_failed_write_the_index_takes_no_more_but_still_reads(tmp_path: Path) -> None:
    index = _broken(tmp_path, "IO error: Input/output error: While fdatasync")
    for _ in range(2):
        with pytest.raises(StoreFailed):
            _add(index, 2)
    with pytest.raises(StoreFailed):
        index.remove_container(ContainerId(1), fingerprints(make_segments(RECORDS, seed=1)))
    assert index.count() == RECORDS
    assert index.indexed_containers() == {1}
    index.close()


def test_a_full_disk_refuses_writes_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = _broken(tmp_path, "IO error: No space left on device: While appending to file")
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(free[0]))
    for _ in range(2):
        with pytest.raises(OutOfSpace):
            _add(index, 2)
    assert index.count() == RECORDS  # restores go on
    free[0] = rocks_index.REOPEN_FREE_BYTES
    with monkeypatch.context() as still_full:
        still_full.setattr(rocksdict, "Rdict", _refuse_to_open)
        with pytest.raises(OutOfSpace):
            _add(index, 2)
        with pytest.raises(OutOfSpace):
            index.count()
    assert index.count() == RECORDS
    free[0] = rocks_index.REOPEN_FREE_BYTES
    _add(index, 2)
    assert index.indexed_containers() == {1, 2}
    assert index.count() == 2 * RECORDS
    index.close()
    assert _consistent(tmp_path / "index") == {1, 2}


def test_batches_are_bounded_and_whole_containers_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = RocksSegmentIndex(str(tmp_path / "index"))
    monkeypatch.setattr(rocks_index, "BATCH_RECORDS_MAX", 2 * RECORDS)
    sizes: list[int] = []
    write: Callable[..., None] = index._write

    def watched(batch: object, **kwargs: object) -> None:
        sizes.append(len(batch))  # type: ignore[arg-type]
        write(batch, **kwargs)

    monkeypatch.setattr(index, "_write", watched)
    index.add_containers([sealed_of(one, make_segments(RECORDS, seed=one)) for one in range(1, 6)])
    assert sizes == [2 * RECORDS + 2, 2 * RECORDS + 2, RECORDS + 1]
    index.close()
    assert _consistent(tmp_path / "index") == {1, 2, 3, 4, 5}


def test_errors_are_ours(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "CURRENT").write_text("nonsense")
    with pytest.raises(ArrayliftError) as caught:
        RocksSegmentIndex(str(tmp_path / "index"))
    assert isinstance(caught.value, Corruption)
    rocks_index.destroy(str(tmp_path / "index"))
    rocks_index.destroy(str(tmp_path / "index"))
    RocksSegmentIndex(str(tmp_path / "index")).close()


def test_filters_are_sized_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = rocks_index.filter_bits
    tib = 64 << 20  # segments of 16 KiB
    assert bits(0) == bits(1) == bits(tib) == bits(12 * tib) == rocks_index.FILTER_BITS
    for records in (16 * tib, 24 * tib, 30 * tib):
        assert bits(records) < rocks_index.FILTER_BITS
        assert records * bits(records) / 8 <= rocks_index.FILTER_BYTES_MAX
    assert bits(1000 * tib) == rocks_index.FILTER_BITS_MIN

    index = RocksSegmentIndex(str(tmp_path / "index"))
    _add(index, 1, 2)
    index.close()
    monkeypatch.setattr(rocks_index, "FILTER_BYTES_MAX", 2 * RECORDS * 6 // 8)
    asked: list[int] = []
    make = rocks_index._options

    def noted(bits: int, cache: rocksdict.Cache) -> rocksdict.Options:
        asked.append(bits)
        return make(bits, cache)

    monkeypatch.setattr(rocks_index, "_options", noted)
    assert _consistent(tmp_path / "index") == {1, 2}
    assert asked == [rocks_index.FILTER_BITS] * 2 + [6] * 2, "known once the marks are read"


def test_filters_and_cache_are_there_at_every_start(tmp_path: Path) -> None:
    """rocksdict prefers the options that it finds on disk where it may, and those have neither."""
    path, records = str(tmp_path / "index"), 3000
    index = RocksSegmentIndex(path)
    index.add_containers([sealed_of(1, make_segments(records, bytes_max=9))])
    index.close()
    index = RocksSegmentIndex(path)
    for database in (index._database, index._containers):
        assert database.property_int_value("rocksdb.block-cache-capacity") == rocks_index.BLOCK_CACHE_BYTES
    in_memory = index._database.property_int_value("rocksdb.estimate-table-readers-mem")
    assert in_memory is not None
    assert in_memory >= records * rocks_index.FILTER_BITS / 8
    index.close()


ITERATING = {"iter", "items", "keys", "values", "columns", "entities", "snapshot"}


def _iterations(source: str) -> list[tuple[str, str]]:
    """(function, expression) of every iteration over a database that a module could make."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr in ITERATING:
                text = ast.unparse(node)
                if not text.startswith(("self._marks.", "(added or {}).")):  # dicts
                    found.append((function.name, text))
            elif isinstance(node, ast.For | ast.comprehension):
                text = ast.unparse(node.iter)
                if re.search(r"_(database|containers)\b", text) and "self._iterate(" not in text:
                    found.append((function.name, text))
    return found


def test_nothing_iterates_but_the_checked_iteration() -> None:
    """RocksDB's own iteration stops in silence at damage (I4); no other module imports it."""
    for offender in ("self._database.items()", "self._containers.keys()", "list(self._database.iter())"):
        assert _iterations(f"def f(self):\n    return {offender}"), offender
    assert _iterations("def f(self):\n    for key in self._database:\n        pass")
    source = Path(rocks_index.__file__).read_text(encoding="utf-8")
    assert _iterations(source) == [("_iterate", "family().iter")]


def test_an_index_of_another_version_is_refused_so_that_it_is_made_anew(tmp_path: Path) -> None:
    """Version 1: marks of 37 bytes that begin with the tenant, values of 21 bytes."""
    index = RocksSegmentIndex(str(tmp_path / "index"))
    _add(index, 5)
    key = (5).to_bytes(8, "big")
    current = index._containers[key]
    index.close()
    assert isinstance(current, bytes)
    for number, old in enumerate((current[1:15] + current[19:], b"\x03" + current[1:], current[:-1])):
        path = str(tmp_path / f"old{number}")
        index = RocksSegmentIndex(path)
        index._containers[key] = old
        index.close()
        told: list[str] = []
        with pytest.raises(Corruption, match="another release"):
            RocksSegmentIndex(path, on_damage=told.append)
        assert not told
