"""The simulated disk does what its docstring says: which states a power cut may leave, and which not."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from arraylift.durable import AppendFile
from arraylift.errors import Corruption, StoreFailed
from tests.fakes.content import SECTOR_BYTES
from tests.fakes.disk import FakeFiles, PowerCut


def pattern(seed: int, length: int) -> bytes:
    return bytes((seed * 31 + index * 7) % 255 + 1 for index in range(length))


def logs_after(files: FakeFiles, **options: int) -> list[bytes]:
    return [
        state.read("/log") if state.exists("/log") else b"" for state in files.post_crash_states(**options)
    ]


def with_log(*, synced: bytes = b"") -> tuple[FakeFiles, AppendFile]:
    files = FakeFiles()
    log = files.append_file("/log", label="l")
    if synced:
        log.append(synced)
        log.sync()
    return files, log


def test_an_unsynced_append_may_be_lost_kept_torn_or_zeros() -> None:
    files, log = with_log(synced=b"base")
    log.append(b"12345")
    assert sorted(logs_after(files)) == sorted(
        {b"base", b"base12345", b"base1", b"base12", b"base1234", b"base" + bytes(5)}
    )
    log.sync()
    assert logs_after(files) == [b"base12345"]


def test_a_later_append_may_be_kept_over_an_earlier_one_that_was_lost() -> None:
    files, log = with_log()
    log.append(b"1")
    log.append(b"2")
    assert {b"", b"1", b"12", b"\x002"} <= set(logs_after(files))


def test_a_sector_that_was_durable_is_never_torn() -> None:
    files = FakeFiles()
    slots = files.random_file("/slots", label="r")
    slots.write(0, b"o" * (3 * SECTOR_BYTES))
    slots.sync()
    slots.write(100, b"n" * (2 * SECTOR_BYTES))
    seen = set()
    for state in files.post_crash_states():
        content = state.read("/slots")
        sectors = [content[:512], content[512:1024], content[1024:]]
        fresh = [b"o" * 100 + b"n" * 412, b"n" * 512, b"n" * 100 + b"o" * 412]
        assert all(found in {b"o" * 512, new} for found, new in zip(sectors, fresh, strict=True))
        seen.add(content)
    assert len(seen) == 8, "every subset of three sectors"


def test_names_are_lost_in_any_combination_and_with_their_directory() -> None:
    files = FakeFiles()
    kernel = files.kernel
    kernel.mkdir("/d")
    kernel.close(kernel.open("/d/x", os.O_RDWR | os.O_CREAT))
    kernel.close(kernel.open("/y", os.O_RDWR | os.O_CREAT))
    states = [(state.list_dir("/"), state.list_dir("/d")) for state in files.post_crash_states()]
    expected = [([], []), (["d"], []), (["d"], ["x"]), (["y"], []), (["d", "y"], []), (["d", "y"], ["x"])]
    assert sorted(states) == sorted(expected)


def test_changes_of_one_name_keep_their_order() -> None:
    files = FakeFiles()
    files.publish("/a", [b"old"], label="t")
    kernel = files.kernel
    kernel.unlink("/a")
    kernel.close(kernel.open("/a", os.O_RDWR | os.O_CREAT))
    found = [state.read("/a") if state.exists("/a") else None for state in files.post_crash_states()]
    assert len(found) == 3
    assert set(found) == {None, b"", b"old"}


def test_a_sample_is_bounded_repeatable_and_has_the_extremes() -> None:
    files, log = with_log()
    for number in range(40):
        log.append(pattern(number, 700))
    first = logs_after(files, maximum=30, seed=7)
    assert len(first) == 30
    assert first == logs_after(files, maximum=30, seed=7)
    assert first != logs_after(files, maximum=30, seed=8)
    assert {b"", b"".join(pattern(number, 700) for number in range(40))} <= set(first)


def test_states_leave_the_machine_and_each_other_alone() -> None:
    files, log = with_log(synced=b"base")
    states = list(files.post_crash_states())
    log.append(b"more")
    for state in states:
        state.append_file("/log", label="l").append(b"mine")
        assert state.read("/log") == b"basemine"
    assert files.read("/log") == b"basemore"


def test_after_a_power_cut_nothing_works_and_before_it_everything() -> None:
    files, log = with_log()
    files.crash_after(1)
    log.append(b"1")
    attempts: list[Callable[[], object]] = [
        log.sync,
        log.sync,
        lambda: files.read("/log"),
        lambda: files.list_dir("/"),
        lambda: files.publish("/a", [b"x"], label="t"),
        lambda: files.lock("/"),
        lambda: files.free_bytes("/"),
    ]
    for attempt in attempts:
        with pytest.raises(PowerCut):
            attempt()
    log.close()


def test_a_killed_process_leaves_its_cache_and_no_lock() -> None:
    files, log = with_log(synced=b"base")
    token = files.lock("/").token
    log.append(b"more")
    again = files.after_kill()
    assert again.lock("/").token == token + 1
    assert again.read("/log") == b"basemore"
    assert b"base" in logs_after(again), "still unsynced"
    with pytest.raises(PowerCut):
        log.sync()


def test_a_failed_sync_loses_the_bytes_for_good() -> None:
    files, log = with_log(synced=b"base")
    log.append(b"more")
    files.fail_after(0, "eio")
    with pytest.raises(StoreFailed):
        log.sync()
    assert files.read("/log") == b"basemore", "the cache goes on showing it"
    assert {b"base", b"basemore"} <= set(logs_after(files))
    kernel = files.kernel
    kernel.fsync(kernel.open("/log", os.O_RDWR))
    assert logs_after(files) == [b"base"], "a sync repeated says yes and has written nothing"
    assert files.after_kill().append_file("/log", label="l").size == 4


def test_corrupt_and_fail_reads_survive_the_power_cut() -> None:
    files, _ = with_log(synced=b"\x00\x01")
    files.corrupt("/log", 1, bit=3)
    (state,) = files.post_crash_states()
    assert state.read("/log") == b"\x00\x09" == files.read("/log")
    files.fail_reads("/log")
    (state,) = files.post_crash_states()
    for broken in (files, state):
        with pytest.raises(Corruption, match="cannot be read"):
            broken.read("/log")
    files.fail_reads("/log", failing=False)
    assert files.read("/log") == b"\x00\x09"
