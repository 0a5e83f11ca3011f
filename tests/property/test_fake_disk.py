"""The durable algorithm under power cuts everywhere, and that the simulated disk would tell.

D1 to D5 are those of ``arraylift.durable``. Mutants of the kernel that skip one duty show that the
same checks fail when an fsync or a rename is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from arraylift.durable import AppendFile, RandomFile
from arraylift.errors import NotFound, OutOfSpace, StoreFailed
from tests.fakes.content import SECTOR_BYTES
from tests.fakes.disk import FakeFiles, PowerCut, every_power_cut
from tests.fakes.kernel import FakeKernel, Inode

DIR = "/store"
NAMES = ("a", "b")
STATES_MAX = 32
"""Per cut here; the deterministic tests below take them all."""


@dataclass(frozen=True, slots=True)
class Op:
    kind: str
    name: str = "a"
    data: bytes = b""
    number: int = 0


def pattern(seed: int, length: int) -> bytes:
    """Bytes that are never zero, so that lost ones show."""
    return bytes((seed * 31 + index * 7) % 255 + 1 for index in range(length))


LENGTHS = st.sampled_from([1, 3, 200, 511, 512, 513, 1500, 4096, 5000])
OPS = st.one_of(
    st.builds(
        lambda name, seed, length: Op("publish", name, pattern(seed, length)),
        st.sampled_from(NAMES),
        st.integers(0, 99),
        LENGTHS,
    ),
    st.builds(lambda name: Op("remove", name), st.sampled_from(NAMES)),
    st.builds(lambda name: Op("move", name), st.sampled_from(NAMES)),
    st.builds(lambda seed, length: Op("append", "log", pattern(seed, length)), st.integers(0, 99), LENGTHS),
    st.just(Op("sync", "log")),
    st.builds(lambda percent: Op("truncate", "log", number=percent), st.integers(0, 100)),
    st.builds(
        lambda slot, seed: Op("slot", "slots", pattern(seed, SECTOR_BYTES), slot),
        st.integers(0, 7),
        st.integers(0, 99),
    ),
    st.builds(lambda slot: Op("punch", "slots", number=slot), st.integers(0, 7)),
    st.just(Op("slot sync", "slots")),
)


@dataclass
class Notes:
    """What the store may promise: for each thing, the contents that are allowed now."""

    published: dict[str, set[bytes | None]] = field(default_factory=lambda: {name: {None} for name in NAMES})
    log_synced: bytes = b""
    log_written: bytes = b""
    log_cut_to: int = 0
    """The shortest that the log may be: a truncate in flight gives up the rest."""
    slots: dict[int, set[bytes]] = field(
        default_factory=lambda: {slot: {bytes(SECTOR_BYTES)} for slot in range(8)}
    )

    def check(self, files: FakeFiles) -> None:
        """Assert D1 and D2 on a disk found after a crash."""
        files.sweep(DIR)
        told = files.story
        for name, allowed in self.published.items():
            found = files.read(f"{DIR}/{name}") if files.exists(f"{DIR}/{name}") else None
            assert found in allowed, f"D1 {name}: {told}"
        log = files.read(f"{DIR}/log") if files.exists(f"{DIR}/log") else b""
        promised = self.log_synced[: self.log_cut_to]
        assert log.startswith(promised), f"D2 log: {told}"
        assert len(log) <= max(len(self.log_synced), len(self.log_written)), told
        for index in range(len(promised), len(log)) if not self.log_written.startswith(log) else ():
            legal = {0, *self.log_synced[index : index + 1], *self.log_written[index : index + 1]}
            assert log[index] in legal, f"log byte {index}: {told}"
        if files.exists(f"{DIR}/slots"):
            slots = files.random_file(f"{DIR}/slots", label="slots")
            into = bytearray(8 * SECTOR_BYTES)
            slots.read_into(0, memoryview(into))
            for slot, allowed_slot in self.slots.items():
                assert bytes(into[slot * SECTOR_BYTES :][:SECTOR_BYTES]) in allowed_slot, f"D2 slot: {told}"
        assert all(name in {*NAMES, "log", "slots", "lock"} for name in files.list_dir(DIR)), told


class Run:
    """Perform ops on a disk, noting what is promised before and after each."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.notes = Notes()

    def __call__(self, files: FakeFiles) -> None:
        self.notes = Notes()
        files.make_dirs(DIR)
        log = files.append_file(f"{DIR}/log", label="log")
        slots = files.random_file(f"{DIR}/slots", label="slots")
        # Sectors that were durable before are atomic; those of a growing file are not.
        slots.write(0, bytes(8 * SECTOR_BYTES))
        slots.sync()
        for op in self.ops:
            if op.name == "log":
                self._log(op, log)
            elif op.name == "slots":
                self._slots(op, slots)
            else:
                self._names(op, files)

    def _names(self, op: Op, files: FakeFiles) -> None:
        path, notes = f"{DIR}/{op.name}", self.notes.published
        if op.kind == "publish":
            notes[op.name] = notes[op.name] | {op.data}
            files.publish(path, [op.data[:100], op.data[100:]], label="t")
            notes[op.name] = {op.data}
        elif op.kind == "remove":
            notes[op.name] = notes[op.name] | {None}
            files.remove(path, label="t", missing_ok=True)
            notes[op.name] = {None}
        else:
            other = NAMES[1 - NAMES.index(op.name)]
            before = notes[op.name], notes[other]
            if before[0] == {None}:
                with pytest.raises(NotFound):
                    files.move(path, f"{DIR}/{other}", label="t")
                return
            notes[op.name], notes[other] = before[0] | {None}, before[0] | before[1]
            files.move(path, f"{DIR}/{other}", label="t")
            notes[op.name], notes[other] = {None}, before[0]

    def _log(self, op: Op, log: AppendFile) -> None:
        notes = self.notes
        if op.kind == "append":
            notes.log_written += op.data
            log.append(op.data)
            return
        if op.kind == "truncate":
            size = len(notes.log_written) * op.number // 100
            notes.log_cut_to = min(size, notes.log_cut_to)
            log.truncate(size)
            notes.log_written = notes.log_written[:size]
        else:
            log.sync()
        notes.log_synced, notes.log_cut_to = notes.log_written, len(notes.log_written)

    def _slots(self, op: Op, slots: RandomFile) -> None:
        notes = self.notes.slots
        if op.kind == "slot sync":
            slots.sync()
            into = bytearray(8 * SECTOR_BYTES)
            slots.read_into(0, memoryview(into))
            self.notes.slots = {slot: {bytes(into[slot * SECTOR_BYTES :][:SECTOR_BYTES])} for slot in notes}
            return
        data = op.data or bytes(SECTOR_BYTES)
        notes[op.number] = notes[op.number] | {data}
        try:
            if op.kind == "slot":
                slots.write(op.number * SECTOR_BYTES, data)
            else:
                slots.punch(op.number * SECTOR_BYTES, SECTOR_BYTES)
        except (OutOfSpace, StoreFailed):
            # A failed write leaves its own range undefined; the others keep their promises.
            del notes[op.number]
            raise


@given(ops=st.lists(OPS, max_size=12), where=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_a_power_cut_anywhere_keeps_what_was_promised(ops: list[Op], where: int, seed: int) -> None:
    run = Run(ops)
    files = FakeFiles()
    run(files)
    cut = FakeFiles()
    cut.crash_after(where % (files.op_count + 1))
    try:
        run(cut)
    except PowerCut:
        event("cut in mid-run")
    for state in cut.post_crash_states(maximum=STATES_MAX, seed=seed):
        run.notes.check(state)


@given(ops=st.lists(OPS, max_size=12), where=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_what_recovery_read_survives_the_next_power_cut(ops: list[Op], where: int, seed: int) -> None:
    """D5: killed at any operation, recovered from the cache, then the power goes."""
    run = Run(ops)
    files = FakeFiles()
    run(files)
    killed = FakeFiles()
    killed.crash_after(where % (files.op_count + 1))
    try:
        run(killed)
    except PowerCut:
        event("killed in mid-run")
    recovered = killed.after_kill()
    found = recover(recovered)
    run.notes.check(recovered)
    for state in recovered.post_crash_states(maximum=STATES_MAX, seed=seed):
        assert recover(state) == found, f"D5: {state.story}"


def recover(files: FakeFiles) -> dict[str, bytes]:
    """What a store does at start: make its directory, sweep, open its files, read everything."""
    files.make_dirs(DIR)
    files.sweep(DIR)
    files.append_file(f"{DIR}/log", label="log").close()
    files.random_file(f"{DIR}/slots", label="slots").close()
    return {name: files.read(f"{DIR}/{name}") for name in files.list_dir(DIR)}


@given(
    ops=st.lists(OPS, min_size=1, max_size=10),
    where=st.integers(0, 10_000),
    kind=st.sampled_from(["eio", "enospc"]),
    seed=st.integers(0, 1000),
)
def test_a_failing_disk_never_breaks_a_promise(ops: list[Op], where: int, kind: str, seed: int) -> None:
    """D3, D4: any operation fails, the process restarts, recovers, and then the power goes."""
    run = Run(ops)
    files = FakeFiles()
    run(files)
    failing = FakeFiles()
    failing.fail_after(where % files.op_count, kind)
    try:
        run(failing)
        event("failure went unnoticed by the sequence")
    except (OutOfSpace, StoreFailed) as error:
        event(type(error).__name__)
        if isinstance(error, OutOfSpace):
            assert kind == "enospc"
            assert failing.sweep(DIR) == 0, "D4: nothing left behind"
    restarted = failing.after_kill()
    found = recover(restarted)
    run.notes.check(restarted)
    for state in restarted.post_crash_states(maximum=STATES_MAX, seed=seed):
        assert recover(state) == found, state.story
        run.notes.check(state)


@given(ops=st.lists(OPS, max_size=10), capacity_pages=st.integers(0, 6))
def test_a_small_disk_gives_out_of_space_and_nothing_else(ops: list[Op], capacity_pages: int) -> None:
    run = Run(ops)
    files = FakeFiles()
    files.make_dirs(DIR)
    files.set_capacity(capacity_pages * 4096)
    try:
        run(files)
    except OutOfSpace:
        event("full")
        assert files.sweep(DIR) == 0, "D4: nothing left behind"
        run.notes.check(files)
        assert files.free_bytes(DIR) >= 0
    files.set_capacity(None)
    files.publish(f"{DIR}/a", [b"x"], label="t")


# -- every state of the fixed sequences, and mutants that must be caught -----------------------

SEQUENCE = [
    Op("publish", "a", pattern(1, 700)),
    Op("append", "log", pattern(2, 600)),
    Op("sync", "log"),
    Op("publish", "a", pattern(3, 1300)),
    Op("append", "log", pattern(4, 600)),
    Op("slot", "slots", pattern(5, SECTOR_BYTES), 1),
    Op("slot sync", "slots"),
    Op("slot", "slots", pattern(6, SECTOR_BYTES), 1),
    Op("move", "a"),
    Op("truncate", "log", number=50),
    Op("punch", "slots", number=1),
    Op("truncate", "log", number=0),
    Op("remove", "b"),
]


def check_everywhere(kernel: type[FakeKernel] = FakeKernel) -> int:
    """Check SEQUENCE at every cut, in every state; return how many states there were."""
    run, count, cut = Run(SEQUENCE), 0, 0
    while True:
        files = FakeFiles(kernel=kernel())
        files.crash_after(cut)
        finished = False
        try:
            run(files)
            finished = True
        except PowerCut:
            pass
        for state in files.post_crash_states(maximum=100_000):
            run.notes.check(state)
            count += 1
        if finished:
            return count
        cut += 1


def test_every_state_of_every_cut_keeps_the_promises() -> None:
    assert check_everywhere() > 300


@pytest.mark.parametrize("kind", ["killed", "eio", "enospc"])
def test_recovery_from_every_operation_killed_or_failed_is_durable(kind: str) -> None:
    whole = FakeFiles()
    Run(SEQUENCE)(whole)
    for cut in range(whole.op_count):
        run, files = Run(SEQUENCE), FakeFiles()
        if kind == "killed":
            files.crash_after(cut)
        else:
            files.fail_after(cut, kind)
        with pytest.raises((PowerCut, OutOfSpace, StoreFailed)):
            run(files)
        restarted = files.after_kill()
        found = recover(restarted)
        run.notes.check(restarted)
        for state in restarted.post_crash_states():
            assert recover(state) == found, f"D5, operation {cut}: {state.story}"
            run.notes.check(state)


class ForgetsData(FakeKernel):
    """As if the code did not sync files."""

    def fdatasync(self, descriptor: int) -> None:
        pass


class ForgetsLogs(FakeKernel):
    """As if ``sync`` of an open file did nothing, though ``publish`` does sync."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: set[int] = set()

    def open(self, path: str, flags: int) -> int:
        descriptor = super().open(path, flags)
        if flags & os.O_RDWR:
            self.logs.add(descriptor)
        return descriptor

    def fdatasync(self, descriptor: int) -> None:
        if descriptor not in self.logs:
            super().fdatasync(descriptor)


class ForgetsNames(FakeKernel):
    """As if the code did not sync directories."""

    def fsync(self, descriptor: int) -> None:
        if not self.fstat(descriptor).is_dir:
            super().fsync(descriptor)


class WritesInPlace(FakeKernel):
    """As if ``publish`` wrote to the path itself instead of renaming."""

    def rename(self, path: str, to: str) -> None:
        content = self.resolve(path).current
        with self.mutex:
            descriptor = self.open(to, os.O_RDWR | os.O_CREAT)
            self.ftruncate(descriptor, 0)
            self.pwrite(descriptor, memoryview(content.read(0, content.size)), 0)
            self.fdatasync(descriptor)
            self.close(descriptor)
            self.unlink(path)


class RenamesBeforeSync(FakeKernel):
    """As if ``publish`` renamed first and synced after."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Inode] = []

    def fdatasync(self, descriptor: int) -> None:
        self.late.append(self.handles[descriptor])

    def rename(self, path: str, to: str) -> None:
        super().rename(path, to)
        with self.operation("late fsync"):
            for inode in self.late:
                if not self.dead:
                    inode.commit()


@pytest.mark.parametrize(
    ("mutant", "broken"),
    [
        (ForgetsData, "D1"),
        (ForgetsNames, "D1"),
        (WritesInPlace, "D1"),
        (RenamesBeforeSync, "D1"),
        (ForgetsLogs, "D2"),
    ],
)
def test_a_missing_duty_is_caught(mutant: type[FakeKernel], broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        check_everywhere(mutant)


def test_every_power_cut_visits_each_operation_once_and_the_end() -> None:
    whole = FakeFiles()
    Run(SEQUENCE)(whole)
    cuts: Iterator[int] = (cut for cut, _ in every_power_cut(Run(SEQUENCE), states_max=2))
    assert sorted(set(cuts)) == list(range(whole.op_count + 1))
