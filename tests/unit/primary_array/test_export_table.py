"""The table of exports: golden bytes, round trips, damage, every crash.

``python -m tests.unit.primary_array.test_export_table`` writes the golden file anew; only a new
format version may need that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift import envelope
from arraylift.errors import Corruption, Overloaded, WrongState
from arraylift.ids import SnapshotId, VolumeId
from primary_array import export_table
from primary_array.export_table import MAGIC, ExportRecord, ExportTable, decode, encode
from tests.fakes.disk import FakeFiles, every_power_cut

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "exports-v1.ale"
RECORDS = [
    ExportRecord("web1", VolumeId("1" * 32), None, read_only=False),
    ExportRecord(
        "web1-monday \N{GREEK SMALL LETTER ALPHA}", VolumeId("1" * 32), SnapshotId("2" * 32), read_only=True
    ),
]


def test_version_1_is_written_and_read_as_ever() -> None:
    assert encode(RECORDS[::-1]) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes(), what="it") == RECORDS


def test_every_flipped_bit_is_an_error() -> None:
    data = encode(RECORDS)
    for index in range(len(data) * 8):
        bad = bytearray(data)
        bad[index // 8] ^= 1 << index % 8
        with pytest.raises((Corruption, WrongState)):
            decode(bytes(bad), what="it")


@pytest.mark.parametrize(
    "change",
    [
        (b'"web1-monday', b'"web1\\u0000onday'),
        (b'"read_only":false', b'"read_only":0'),
        (b'"snapshot_id":null', b'"snapshot_id":true'),
        (b"1" * 32, b"x" * 32),
        (b'"name":"web1"', b'"game":"web1"'),
        (b'"exports":[', b'"exports":[7,'),
    ],
)
def test_a_checked_body_that_makes_no_sense_is_damage(change: tuple[bytes, bytes]) -> None:
    body, _ = envelope.decode(MAGIC, encode(RECORDS), what="it")
    assert change[0] in body
    with pytest.raises(Corruption):
        decode(envelope.encode(MAGIC, body.replace(*change, 1)), what="it")


def test_a_name_that_appears_twice_is_damage() -> None:
    with pytest.raises(Corruption, match="twice"):
        decode(encode([RECORDS[0], RECORDS[0]]), what="it")


def test_what_was_put_is_there_after_reopening() -> None:
    files = FakeFiles()
    files.make_dirs("/pool")
    table = ExportTable(files, "/pool")
    for record in RECORDS:
        table.put(record)
    table.remove("web1")
    assert ExportTable(files, "/pool").all() == table.all() == [RECORDS[1]]


def test_the_table_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_table, "EXPORTS_MAX", 1)
    files = FakeFiles()
    files.make_dirs("/pool")
    table = ExportTable(files, "/pool")
    table.put(RECORDS[0])
    with pytest.raises(Overloaded, match="at most 1"):
        table.put(RECORDS[1])
    assert table.all() == [RECORDS[0]]


def test_after_every_power_cut_the_table_is_the_one_before_or_after() -> None:
    answered: list[list[ExportRecord]] = []

    def run(files: FakeFiles) -> None:
        answered[:] = [[]]
        files.make_dirs("/pool")
        table = ExportTable(files, "/pool")
        for change in (
            lambda: table.put(RECORDS[0]),
            lambda: table.put(RECORDS[1]),
            lambda: table.remove("web1"),
        ):
            change()
            answered.append(table.all())

    steps = [[], [RECORDS[0]], RECORDS, [RECORDS[1]]]
    seen = set()
    for _, files in every_power_cut(run):
        files.make_dirs("/pool")
        files.sweep("/pool")
        found = ExportTable(files, "/pool").all()
        done = len(answered) - 1
        assert found in steps[done : done + 2]
        seen.add((done, steps.index(found)))
    assert len(seen) >= 2 * len(steps) - 1


if __name__ == "__main__":
    GOLDEN.write_bytes(encode(RECORDS))
