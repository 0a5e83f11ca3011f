"""A transfer's log: what was appended is what replays, up to a tear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arraylift.durable import RealFiles
from arraylift.errors import AlreadyExists, ArrayliftError, Corruption, NotFound
from arraylift.ids import Fingerprint, ImageId, TransferId
from dedup_target.transfer_log import (
    CommittedTransfer,
    LoggedLeaves,
    TransferLog,
    TransferLogs,
    TransferState,
    replay,
)
from tests.fakes.disk import FakeFiles, every_power_cut
from tests.unit.dedup_target.material import attempt, grant

TRANSFER = grant().transfer_id
PATH = f"/transfers/{TRANSFER}.alt"
NO_RUNS: list[tuple[int, int]] = []


def leaves_of(spans: list[int], runs: list[tuple[int, int]] = NO_RUNS, *, salt: int = 0) -> LoggedLeaves:
    """Leaves of one or two segments a span, recognisable by span and salt."""
    counts = [1 + span % 2 for span in spans]
    tags = [
        bytes([salt, span, number])
        for span, count in zip(spans, counts, strict=True)
        for number in range(count)
    ]
    return LoggedLeaves(
        spans=np.array(spans, dtype=np.uint32),
        counts=np.array(counts, dtype=np.uint16),
        lengths=np.array([tag[1] * 10 + tag[2] + 1 for tag in tags], dtype=np.uint32),
        fingerprints=b"".join(tag.ljust(32, b"s") for tag in tags),
        leaf_fingerprints=b"".join(bytes([salt, span]).ljust(32, b"l") for span in spans),
        hole_runs=np.array(runs, dtype=np.uint32).reshape(-1, 2),
    )


def summary(state: TransferState) -> tuple[object, ...]:
    """Everything of a state that can be compared."""
    return (
        state.grant,
        state.attempt,
        state.committed,
        state.covered.tobytes(),
        state.leaves.tobytes(),
        state.positions.tobytes(),
    )


def write_story(log: TransferLog) -> list[tuple[object, ...]]:
    """Append one of everything; returns the state after each record, the first of all first."""
    states = [summary(log.state)]

    def note() -> None:
        states.append(summary(log.state))

    log.append_attempt(attempt())
    note()
    log.append_leaves(leaves_of([0, 1, 2, 7]))
    note()
    log.sync()
    log.append_leaves(leaves_of([3], [(4, 2), (9, 1)]))
    note()
    log.append_voided(np.array([1, 4], dtype=np.uint32))
    note()
    log.sync()
    log.append_attempt(attempt(2))
    note()
    log.append_leaves(leaves_of([1, 2], salt=9))
    note()
    log.append_committed(CommittedTransfer(Fingerprint(b"r" * 32), ImageId("d" * 32), {"bytes_sent": 5}))
    note()
    log.sync()
    return states


def test_replay_gives_the_state_that_the_writer_had(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    write_story(log)
    written = summary(log.state)
    log.close()
    log = logs.open(TRANSFER)
    assert summary(log.state) == written
    assert np.flatnonzero(log.state.covered).tolist() == [0, 1, 2, 3, 5, 7, 9]
    assert log.state.attempt == attempt(2)
    assert log.state.committed is not None
    assert log.state.committed.receipt == {"bytes_sent": 5}
    log.close()


def test_leaves_are_read_back_from_the_record_that_counts(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    write_story(log)
    found = {span: (lengths, fingerprints) for span, lengths, fingerprints in log.iter_leaves()}
    expected = {}
    for salt, spans in ((0, [0, 3, 7]), (9, [1, 2])):
        for span in spans:
            logged = leaves_of([span], salt=salt)
            expected[span] = (logged.lengths.tobytes(), bytes(logged.fingerprints))
    assert found == expected
    log.close()


def test_an_open_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    log.append_attempt(attempt())
    log.close()
    log = logs.open(TRANSFER)
    log.append_leaves(leaves_of([5]))
    log.sync()
    log.sync()
    log.close()
    assert np.flatnonzero(logs.open(TRANSFER).state.covered).tolist() == [5]


def test_transfers_are_listed_created_once_and_removed(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    for number in (2, 1):
        logs.create(grant(number)).close()
    assert logs.list() == [grant(1).transfer_id, grant(2).transfer_id]
    with pytest.raises(AlreadyExists):
        logs.create(grant(1))
    logs.remove(grant(1).transfer_id)
    with pytest.raises(NotFound):
        logs.open(grant(1).transfer_id)
    with pytest.raises(NotFound):
        logs.remove(grant(1).transfer_id)
    with pytest.raises(ArrayliftError):
        logs.open(TransferId("../../etc/passwd"))


class OneLog(FakeFiles):
    """A disk with one log, whose bytes a test can exchange."""

    content = b""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.content[offset:] if length is None else self.content[offset : offset + length]


def whole_log() -> tuple[bytes, list[tuple[object, ...]]]:
    """The bytes of a log with one of everything, and the states that it went through."""
    files = FakeFiles()
    log = TransferLogs(files, "/transfers").create(grant())
    states = write_story(log)
    log.close()
    return files.read(PATH), states


def test_cut_anywhere_it_replays_to_a_state_that_was() -> None:
    whole, states = whole_log()
    files = FakeFiles()
    TransferLogs(files, "/transfers").create(grant()).close()
    first_grant, mark_bytes = files.size(PATH), 20
    seen = set()
    for size in range(first_grant, len(whole)):
        files.publish(PATH, [whole[:size]], label="test")
        log = TransferLogs(files, "/transfers").open(TRANSFER)
        seen.add(states.index(summary(log.state)))
        log.close()
        assert files.size(PATH) <= size + mark_bytes
    assert seen == set(range(len(states)))


def test_zeros_at_the_end_are_a_tear(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    states = write_story(log)
    log.close()
    path = tmp_path / "transfers" / f"{TRANSFER}.alt"
    path.write_bytes(path.read_bytes() + bytes(300))
    assert summary(logs.open(TRANSFER).state) == states[-1]


def test_every_flipped_bit_is_an_error_or_changes_nothing() -> None:
    """The last record is the sync mark: losing it loses nothing."""
    whole, states = whole_log()
    files, errors = OneLog(), 0
    for place in range(len(whole) * 8):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        files.content = bytes(content)
        try:
            found, _, _ = replay(files, PATH, len(content))
        except ArrayliftError:
            errors += 1
            continue
        assert summary(found) == states[-1], place
    mark_bytes = 20
    assert errors >= (len(whole) - mark_bytes) * 8 * 0.99


def test_hostile_records_do_not_reach_beyond_the_image(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    with pytest.raises(Corruption):
        log.append_leaves(leaves_of([0]))  # before any attempt
    log.close()
    with pytest.raises(Corruption, match="does not have"):
        logs.open(TRANSFER)


def test_after_a_power_cut_synced_spans_are_covered() -> None:
    synced: set[int] = set()

    def run(files: FakeFiles) -> None:
        synced.clear()
        logs = TransferLogs(files, "/transfers")
        log = logs.create(grant())
        log.append_attempt(attempt())
        for span in range(3):
            log.append_leaves(leaves_of([span]))
            log.sync()
            synced.add(span)
        log.close()

    for cut, files in every_power_cut(run, states_max=60):
        logs = TransferLogs(files, "/transfers")
        files.sweep("/transfers")
        covered: set[int] = set()
        for transfer in logs.list():
            log = logs.open(transfer)
            covered |= set(np.flatnonzero(log.state.covered).tolist())
            list(log.iter_leaves())
        assert synced <= covered, (cut, files.story)


def test_a_hundred_thousand_spans_stay_small(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path / "transfers"))
    log = logs.create(grant())
    spans = 100_000
    log.append_attempt(attempt(1, spans << 20))
    for first in range(0, spans, 5000):
        mine = np.arange(first, first + 5000, dtype=np.uint32)
        log.append_leaves(
            LoggedLeaves(
                mine,
                np.ones(5000, np.uint16),
                mine + 1,
                bytes(32 * 5000),
                b"x" * 160_000,
                np.empty((0, 2), np.uint32),
            )
        )
    log.sync()
    log.close()
    state = logs.open(TRANSFER).state
    assert state.covered.all()
    assert state.covered.nbytes + state.leaves.nbytes + state.positions.nbytes == 41 * spans
