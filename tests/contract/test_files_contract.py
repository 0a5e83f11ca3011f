"""What every ``Files`` must do: the real disk and the simulated one pass the same suite."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from arraylift.durable import TEMPORARY_SUFFIX, RealFiles
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Corruption,
    NotFound,
    OutOfSpace,
    Overloaded,
    StoreFailed,
    WrongState,
)
from arraylift.failpoints import Failpoints
from tests.contract.files_rig import KINDS, Rig, make_rig
from tests.fakes.disk import FakeFiles

PAGE = 4096


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return make_rig(request.param, tmp_path)


# -- directories and names -------------------------------------------------------------------


def test_make_dirs_makes_parents_and_may_be_repeated(rig: Rig) -> None:
    rig.files.make_dirs(rig.path("a", "b", "c"))
    rig.files.make_dirs(rig.path("a", "b", "c"))
    assert rig.files.list_dir(rig.root) == ["a"]
    assert rig.files.list_dir(rig.path("a", "b")) == ["c"]


def test_make_dirs_over_a_file_is_refused(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    with pytest.raises(AlreadyExists):
        rig.files.make_dirs(rig.path("a"))


def test_list_dir_is_sorted_hides_temporaries_and_takes_missing_for_empty(rig: Rig) -> None:
    for name in ("b", "a", "c"):
        rig.files.publish(rig.path(name), [b""], label="t")
    rig.files.append_file(rig.path("d" + TEMPORARY_SUFFIX), label="t").close()
    assert rig.files.list_dir(rig.root) == ["a", "b", "c"]
    assert rig.files.list_dir(rig.path("missing")) == []


def test_list_dir_of_a_file_is_empty(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    assert rig.files.list_dir(rig.path("a")) == []


def test_exists_and_size(rig: Rig) -> None:
    assert not rig.files.exists(rig.path("a"))
    with pytest.raises(NotFound) as caught:
        rig.files.size(rig.path("a"))
    assert caught.value.subject == rig.path("a")
    rig.files.publish(rig.path("a"), [b"12345"], label="t")
    assert rig.files.exists(rig.path("a"))
    assert rig.files.size(rig.path("a")) == 5
    assert not rig.files.exists(rig.path("a", "below"))


def test_free_bytes_is_positive_and_a_missing_path_is_not_found(rig: Rig) -> None:
    assert 0 < rig.files.free_bytes(rig.root) <= rig.files.total_bytes(rig.root)
    with pytest.raises(NotFound):
        rig.files.free_bytes(rig.path("missing"))
    with pytest.raises(NotFound):
        rig.files.total_bytes(rig.path("missing"))


# -- publish and read ------------------------------------------------------------------------


def test_publish_creates_and_replaces_by_the_concatenation(rig: Rig) -> None:
    path = rig.path("a")
    rig.files.publish(path, [b"one", bytearray(b"two"), memoryview(b"three"), b""], label="t")
    assert rig.files.read(path) == b"onetwothree"
    rig.files.publish(path, [b"4"], label="t")
    assert rig.files.read(path) == b"4"
    rig.files.publish(path, [], label="t")
    assert rig.files.read(path) == b""
    assert rig.files.sweep(rig.root) == 0


@pytest.mark.parametrize("start", [0, 8, 512])
@pytest.mark.parametrize("length", [PAGE, 3 * PAGE, PAGE + 1])
def test_publish_of_pages_aligned_or_not(rig: Rig, start: int, length: int) -> None:
    memory = mmap.mmap(-1, 8 * PAGE)
    memory[:] = os.urandom(len(memory))
    view = memoryview(memory)[start : start + length]
    rig.files.publish(rig.path("a"), [view], label="t")
    assert rig.files.read(rig.path("a")) == view.tobytes()


def test_publish_counts_bytes_not_items(rig: Rig) -> None:
    words = memoryview(bytes(range(64))).cast("Q")
    rig.files.publish(rig.path("a"), [words, words], label="t")
    assert rig.files.read(rig.path("a")) == bytes(range(64)) * 2


def test_publish_into_a_missing_directory_changes_nothing(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.files.publish(rig.path("missing", "a"), [b"x"], label="t")
    rig.files.publish(rig.path("a"), [b"x"], label="t")


def test_a_path_that_sweep_would_take_is_our_bug(rig: Rig) -> None:
    with pytest.raises(AssertionError):
        rig.files.publish(rig.path("a" + TEMPORARY_SUFFIX), [b"x"], label="t")


def test_read_ranges(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [bytes(range(100))], label="t")
    assert rig.files.read(rig.path("a"), 10) == bytes(range(10, 100))
    assert rig.files.read(rig.path("a"), 10, 5) == bytes(range(10, 15))
    assert rig.files.read(rig.path("a"), 100) == b"" == rig.files.read(rig.path("a"), 200, 0)


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (500, 1), (101, None)])
def test_a_read_past_the_end_is_corruption(rig: Rig, offset: int, length: int | None) -> None:
    rig.files.publish(rig.path("a"), [bytes(100)], label="t")
    with pytest.raises(Corruption):
        rig.files.read(rig.path("a"), offset, length)


def test_read_of_nothing_is_not_found_and_of_a_directory_corruption(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.files.read(rig.path("a"))
    rig.files.make_dirs(rig.path("d"))
    with pytest.raises(Corruption):
        rig.files.read(rig.path("d"))


# -- remove, move, sweep ---------------------------------------------------------------------


def test_remove(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    rig.files.remove(rig.path("a"), label="t")
    assert not rig.files.exists(rig.path("a"))
    for missing in (rig.path("a"), rig.path("missing", "a")):
        with pytest.raises(NotFound):
            rig.files.remove(missing, label="t")
        rig.files.remove(missing, label="t", missing_ok=True)


def test_move_within_and_across_directories_replaces(rig: Rig) -> None:
    rig.files.make_dirs(rig.path("d"))
    rig.files.publish(rig.path("a"), [b"a"], label="t")
    rig.files.publish(rig.path("d", "b"), [b"b"], label="t")
    rig.files.move(rig.path("a"), rig.path("c"), label="t")
    rig.files.move(rig.path("c"), rig.path("d", "b"), label="t")
    assert rig.files.list_dir(rig.root) == ["d"]
    assert rig.files.read(rig.path("d", "b")) == b"a"


def test_move_of_nothing_or_to_nowhere_is_not_found(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.files.move(rig.path("a"), rig.path("b"), label="t")
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    with pytest.raises(NotFound):
        rig.files.move(rig.path("a"), rig.path("missing", "b"), label="t")
    assert rig.files.read(rig.path("a")) == b"x"


def test_sweep_takes_only_what_publish_left(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    for name in ("a.0", "a.1"):
        rig.files.append_file(rig.path(name + TEMPORARY_SUFFIX), label="t").close()
    assert rig.files.sweep(rig.root) == 2
    assert not rig.files.exists(rig.path("a.0" + TEMPORARY_SUFFIX))
    assert rig.files.list_dir(rig.root) == ["a"]
    assert rig.files.sweep(rig.root) == 0 == rig.files.sweep(rig.path("missing"))


# -- logs ------------------------------------------------------------------------------------


def test_a_log_grows_and_is_found_again(rig: Rig) -> None:
    log = rig.files.append_file(rig.path("log"), label="l")
    assert log.size == 0
    log.append(b"one")
    log.append(memoryview(b"two"))
    log.append(b"")
    log.sync()
    assert log.size == 6
    log.close()
    log.close()
    again = rig.files.append_file(rig.path("log"), label="l")
    assert again.size == 6
    again.append(bytearray(b"3"))
    assert rig.files.read(rig.path("log")) == b"onetwo3"


def test_a_log_is_cut_and_grows_from_there(rig: Rig) -> None:
    log = rig.files.append_file(rig.path("log"), label="l")
    log.append(b"good-torn")
    log.truncate(4)
    assert log.size == 4
    log.append(b"!")
    assert rig.files.read(rig.path("log")) == b"good!"
    with pytest.raises(AssertionError):
        log.truncate(6)


def test_a_log_in_a_missing_directory_is_not_found(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.files.append_file(rig.path("missing", "log"), label="l")


def test_a_closed_file_is_our_bug_and_poisons_nothing(rig: Rig) -> None:
    log = rig.files.append_file(rig.path("l"), label="l")
    slots = rig.files.random_file(rig.path("r"), label="r")
    log.close()
    slots.close()
    for use in (
        lambda: log.append(b"x"),
        log.sync,
        lambda: log.truncate(0),
        lambda: slots.write(0, b"x"),
        lambda: slots.read_into(0, memoryview(bytearray(1))),
        lambda: slots.read_exactly(0, memoryview(bytearray(1))),
        lambda: slots.punch(0, 1),
        slots.sync,
        slots.allocated_bytes,
    ):
        with pytest.raises(AssertionError):
            use()
    rig.files.publish(rig.path("a"), [b"x"], label="t")


# -- slot files ------------------------------------------------------------------------------


def test_slots_are_written_in_place_and_read_past_the_end_as_zeros(rig: Rig) -> None:
    slots = rig.files.random_file(rig.path("slots"), label="r")
    assert slots.path == rig.path("slots")
    slots.write(2 * PAGE, b"abc")
    slots.write(2 * PAGE + 1, memoryview(b"B"))
    slots.sync()
    into = bytearray(b"\xff" * (PAGE + 6))
    slots.read_into(PAGE, memoryview(into))
    assert into == bytes(PAGE) + b"aBc" + bytes(3)
    slots.read_into(99 * PAGE, memoryview(into))
    assert into == bytes(PAGE + 6)
    slots.read_into(0, memoryview(b"")[:0])
    words = memoryview(bytearray(16)).cast("Q")
    slots.read_into(2 * PAGE, words)
    assert words.tobytes() == b"aBc" + bytes(13)


def test_what_is_to_be_read_exactly_is_no_zeros_past_the_end(rig: Rig) -> None:
    slots = rig.files.random_file(rig.path("slots"), label="r")
    slots.write(PAGE, b"abc")
    into = bytearray(b"\xff" * (PAGE + 3))
    slots.read_exactly(0, memoryview(into))
    assert into == bytes(PAGE) + b"abc"
    for offset in (1, PAGE + 3, 99 * PAGE):
        with pytest.raises(Corruption, match="ends before"):
            slots.read_exactly(offset, memoryview(into))
    slots.read_exactly(99 * PAGE, memoryview(b""))


def test_punch_gives_space_back_and_keeps_the_size_and_the_neighbours(rig: Rig) -> None:
    slots = rig.files.random_file(rig.path("slots"), label="r")
    slots.write(0, b"x" * (8 * PAGE))
    slots.sync()
    before = slots.allocated_bytes()
    slots.punch(PAGE, 4 * PAGE)
    slots.punch(6 * PAGE - 10, 20)
    slots.punch(7 * PAGE, 100 * PAGE)
    slots.sync()
    assert before - slots.allocated_bytes() >= 4 * PAGE
    assert rig.files.size(rig.path("slots")) == 8 * PAGE
    expected = bytearray(b"x" * (8 * PAGE))
    expected[PAGE : 5 * PAGE] = bytes(4 * PAGE)
    expected[6 * PAGE - 10 : 6 * PAGE + 10] = bytes(20)
    expected[7 * PAGE :] = bytes(PAGE)
    assert rig.files.read(rig.path("slots")) == expected


# -- the lock --------------------------------------------------------------------------------


def test_the_lock_is_exclusive_and_names_its_owner(rig: Rig) -> None:
    lock = rig.files.lock(rig.root)
    for _ in range(2):
        with pytest.raises(WrongState) as caught:
            rig.files.lock(rig.root)
        assert f"pid {os.getpid()}" in str(caught.value)
        assert rig.root in str(caught.value)
    rig.files.make_dirs(rig.path("other"))
    rig.files.lock(rig.path("other")).close()
    lock.close()
    lock.close()
    assert rig.files.exists(rig.path("lock"))
    assert rig.files.lock(rig.root).token == lock.token + 1


def test_the_token_grows_with_every_holder(rig: Rig) -> None:
    tokens = []
    for _ in range(12):
        lock = rig.files.lock(rig.root)
        tokens.append(lock.token)
        lock.close()
    assert tokens == list(range(1, 13))


def test_a_damaged_lock_file_is_not_taken_for_a_new_one(rig: Rig) -> None:
    rig.files.lock(rig.root).close()
    rig.files.random_file(rig.path("lock"), label="r").write(3, b"?")
    with pytest.raises(Corruption):
        rig.files.lock(rig.root)


def test_a_lock_on_a_missing_directory_is_not_found(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.files.lock(rig.path("missing"))


# -- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "create", "write", "rename"])
def test_a_full_disk_during_publish_leaves_the_old_and_nothing_else(rig: Rig, step: str) -> None:
    path = rig.path("a")
    rig.files.publish(path, [b"old"], label="t")
    rig.failpoints.arm(f"t.{step}.before=enospc")
    with pytest.raises(OutOfSpace) as caught:
        rig.files.publish(path, [b"new"], label="t")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.next_step
    assert rig.files.read(path) == b"old"
    assert rig.files.sweep(rig.root) == 0, "D4: nothing left behind"
    rig.files.publish(path, [b"new"], label="t")
    assert rig.files.read(path) == b"new"


def test_a_full_disk_during_append_leaves_the_log_as_it_was(rig: Rig) -> None:
    log = rig.files.append_file(rig.path("log"), label="l")
    log.append(b"before")
    rig.failpoints.arm("l.append.before=enospc")
    with pytest.raises(OutOfSpace):
        log.append(b"lost")
    assert log.size == 6 == rig.files.size(rig.path("log"))
    log.append(b"-after")
    log.sync()
    assert rig.files.read(rig.path("log")) == b"before-after"


def test_a_full_disk_during_a_slot_write_is_told_and_poisons_nothing(rig: Rig) -> None:
    slots = rig.files.random_file(rig.path("slots"), label="r")
    for step, use in (("write", lambda: slots.write(0, b"x")), ("punch", lambda: slots.punch(0, PAGE))):
        rig.failpoints.arm(f"r.{step}.before=enospc")
        with pytest.raises(OutOfSpace):
            use()
        use()


@pytest.mark.parametrize("action", ["eio", "enospc"])
@pytest.mark.parametrize("step", ["fsync", "fsync_dir"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_sync_in_publish_poisons(rig: Rig, action: str, step: str, when: str) -> None:
    path = rig.path("a")
    rig.files.publish(path, [b"old"], label="t")
    log = rig.files.append_file(rig.path("log"), label="l")
    slots = rig.files.random_file(rig.path("slots"), label="r")
    rig.failpoints.arm(f"t.{step}.{when}={action}")
    with pytest.raises(StoreFailed) as caught:
        rig.files.publish(path, [b"new"], label="t")
    assert isinstance(caught.value.__cause__, OSError)
    for change in (
        lambda: rig.files.publish(path, [b"x"], label="u"),
        lambda: rig.files.remove(path, label="u"),
        lambda: rig.files.move(path, rig.path("b"), label="u"),
        lambda: rig.files.make_dirs(rig.path("d")),
        lambda: rig.files.sweep(rig.root),
        lambda: rig.files.lock(rig.root),
        lambda: rig.files.append_file(rig.path("log"), label="u"),
        lambda: rig.files.random_file(rig.path("slots"), label="u"),
        lambda: log.append(b"x"),
        lambda: log.truncate(0),
        log.sync,
        lambda: slots.write(0, b"x"),
        lambda: slots.punch(0, 1),
        slots.sync,
    ):
        with pytest.raises(StoreFailed) as again:
            change()
        assert f"{step} of" in again.value.message, "names the first failure"
    allowed = {"fsync": {b"old"}, "fsync_dir": {b"old", b"new"}}[step]
    assert rig.files.read(path) in allowed, "reads go on"
    rig.reopened().publish(path, [b"newer"], label="t")
    assert rig.files.read(path) == b"newer"


@pytest.mark.parametrize(
    ("spec", "use"),
    [
        ("l.append.before=eio", "append"),
        ("l.append.after=enospc", "append"),
        ("l.sync.before=eio", "sync"),
        ("l.sync.before=enospc", "sync"),
        ("l.truncate.before=eio", "truncate"),
        ("r.write.before=eio", "write"),
        ("r.punch.after=eio", "punch"),
        ("r.sync.after=eio", "slot sync"),
        ("t.remove.before=eio", "remove"),
        ("t.fsync_dir.before=eio", "remove"),
        ("t.rename.before=eio", "move"),
        ("t.fsync_dir.before=eio", "move"),
        ("directory.create.before=eio", "make_dirs"),
        ("directory.fsync_dir.before=eio", "make_dirs"),
        ("sweep.fsync_dir.before=eio", "sweep"),
        ("lock.sync.before=eio", "lock"),
        ("lock.write.before=eio", "lock"),
        ("l.fsync_dir.before=eio", "open log"),
    ],
)
def test_every_step_that_may_have_happened_poisons(rig: Rig, spec: str, use: str) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    log = rig.files.append_file(rig.path("log"), label="l")
    slots = rig.files.random_file(rig.path("slots"), label="r")
    uses = {
        "append": lambda: log.append(b"x"),
        "sync": log.sync,
        "truncate": lambda: log.truncate(0),
        "write": lambda: slots.write(0, b"x"),
        "punch": lambda: slots.punch(0, 1),
        "slot sync": slots.sync,
        "remove": lambda: rig.files.remove(rig.path("a"), label="t"),
        "move": lambda: rig.files.move(rig.path("a"), rig.path("b"), label="t"),
        "make_dirs": lambda: rig.files.make_dirs(rig.path("d")),
        "sweep": lambda: rig.files.sweep(rig.root),
        "lock": lambda: rig.files.lock(rig.root),
        "open log": lambda: rig.files.append_file(rig.path("log"), label="l"),
    }
    rig.failpoints.arm(spec)
    with pytest.raises(StoreFailed):
        uses[use]()
    rig.failpoints.arm("")
    with pytest.raises(StoreFailed):
        rig.files.publish(rig.path("b"), [b"x"], label="t")


def test_without_handles_nothing_changes_and_nothing_is_poisoned(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    slots = rig.files.random_file(rig.path("slots"), label="r")
    caught: list[type[ArrayliftError] | None] = []
    with rig.no_handles():
        for use in (
            lambda: rig.files.publish(rig.path("a"), [b"y"], label="t"),
            lambda: rig.files.remove(rig.path("a"), label="t"),
            lambda: rig.files.move(rig.path("a"), rig.path("b"), label="t"),
            lambda: rig.files.make_dirs(rig.path("d")),
            lambda: rig.files.append_file(rig.path("log"), label="t"),
            lambda: rig.files.lock(rig.root),
            lambda: rig.files.read(rig.path("a")),
            lambda: slots.write(0, b"x"),
        ):
            try:
                use()
                caught.append(None)
            except ArrayliftError as error:
                caught.append(type(error))
    assert caught == [Overloaded] * 7 + [None]
    assert rig.files.list_dir(rig.root) == ["a", "slots"]
    assert rig.files.read(rig.path("a")) == b"x"
    rig.files.publish(rig.path("a"), [b"y"], label="t")


def test_stores_are_poisoned_one_by_one(rig: Rig) -> None:
    other = FakeFiles() if isinstance(rig.files, FakeFiles) else RealFiles(Failpoints())
    rig.failpoints.arm("t.fsync.before=eio")
    with pytest.raises(StoreFailed):
        rig.files.publish(rig.path("a"), [b"x"], label="t")
    other.make_dirs(rig.root)
    other.publish(rig.path("b"), [b"x"], label="t")


def test_a_failed_publish_of_another_process_is_swept(rig: Rig) -> None:
    rig.files.publish(rig.path("a"), [b"x"], label="t")
    files = rig.reopened()
    files.append_file(rig.path("a.7" + TEMPORARY_SUFFIX), label="t").append(b"half")
    assert rig.reopened().sweep(rig.root) == 1
    assert rig.files.list_dir(rig.root) == ["a"]
