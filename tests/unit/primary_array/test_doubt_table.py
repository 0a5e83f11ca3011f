"""The table of doubted states: golden bytes, round trips, damage, every crash.

``python -m tests.unit.primary_array.test_doubt_table`` writes the golden file anew; only a new
format version may need that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift import envelope
from arraylift.errors import Corruption, WrongState
from arraylift.ids import LineageId, PoolId, SourceState
from primary_array import doubt_table
from primary_array.doubt_table import MAGIC, DoubtTable, decode, encode
from tests.fakes.disk import FakeFiles, every_power_cut

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "doubts-v1.alf"
STATES = [
    SourceState(PoolId("1" * 32), LineageId("2" * 32), 7),
    SourceState(PoolId("f" * 32), LineageId("0" * 32), (1 << 64) - 1),
]


def test_version_1_is_written_and_read_as_ever() -> None:
    assert encode(STATES) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes(), what="it") == STATES


def test_every_flipped_bit_is_an_error() -> None:
    data = encode(STATES)
    for index in range(len(data) * 8):
        bad = bytearray(data)
        bad[index // 8] ^= 1 << index % 8
        with pytest.raises((Corruption, WrongState)):
            decode(bytes(bad), what="it")


@pytest.mark.parametrize(
    "change",
    [(b",7]", b",-7]"), (b",7]", b",true]"), (b",7]", b"]"), (b"1" * 32, b"x" * 32), (b'[["', b'[7,["')],
)
def test_a_checked_body_that_makes_no_sense_is_damage(change: tuple[bytes, bytes]) -> None:
    body, _ = envelope.decode(MAGIC, encode(STATES), what="it")
    assert change[0] in body
    with pytest.raises(Corruption):
        decode(envelope.encode(MAGIC, body.replace(*change, 1)), what="it")


def opened(files: FakeFiles) -> DoubtTable:
    files.make_dirs("/pool")
    return DoubtTable(files, "/pool")


def test_the_oldest_is_forgotten_for_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt_table, "DOUBTED_MAX", 2)
    files = FakeFiles()
    table = opened(files)
    third = SourceState(PoolId("3" * 32), LineageId("3" * 32), 3)
    for state in (*STATES, STATES[0], third):
        table.add(state)
    for found in (table, opened(files)):
        assert [state in found for state in (*STATES, third)] == [True, False, True]


def test_after_every_power_cut_what_was_answered_is_doubted() -> None:
    answered: list[SourceState] = []

    def run(files: FakeFiles) -> None:
        answered.clear()
        table = opened(files)
        for state in STATES:
            table.add(state)
            answered.append(state)

    seen = set()
    for _, files in every_power_cut(run):
        files.make_dirs("/pool")
        files.sweep("/pool")
        found = opened(files)
        assert all(state in found for state in answered)
        seen.add((len(answered), sum(state in found for state in STATES)))
    assert {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)} <= seen


if __name__ == "__main__":
    GOLDEN.write_bytes(encode(STATES))
