"""The run record: golden bytes, damage, places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift import envelope
from arraylift.errors import Corruption, WrongState
from arraylift.vm.types import DISKS_MAX
from hostagent.qemu.run_record import MAGIC, PlacedDisk, RunRecord, decode, encode, place_for

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "vm-record-v1-run.alq"
RECORD = RunRecord(
    disks=(
        PlacedDisk("root", "127.0.0.1:7403", "web1-root-00000000000a", "vm.host1.0123.aa", 0),
        PlacedDisk("data", "127.0.0.1:7403", "data", "vm.host1.0123.bb", 1),
    ),
    stale=(("127.0.0.1:7405", "vm.host1.0123.cc"),),
    outgoing="d" * 32,
    sent=True,
    downtime_ns=1234,
)


def test_version_1_is_written_and_read_as_ever() -> None:
    assert encode(RECORD) == GOLDEN.read_bytes()
    assert decode(GOLDEN.read_bytes(), what="it") == RECORD


def test_every_flipped_bit_is_an_error() -> None:
    data = encode(RECORD)
    for index in range(len(data)):
        bad = bytearray(data)
        bad[index] ^= 1 << index % 8
        with pytest.raises((Corruption, WrongState)):
            decode(bytes(bad), what="it")


@pytest.mark.parametrize(
    "change",
    [
        {"sent": 1},
        {"outgoing": "../../etc/passwd"},
        {"downtime_ns": "1"},
        {"stale": [["a:1"]]},
        {"stale": [["127.0.0.1:7403", "vm.host1.0123.aa"]]},
        {"disks": [{}]},
        {"disks": 7},
        {"disks": [json.loads(envelope.decode(MAGIC, encode(RECORD), what="it")[0])["disks"][0]] * 2},
    ],
)
def test_a_checked_body_that_makes_no_sense_is_damage(change: dict[str, object]) -> None:
    body = json.loads(envelope.decode(MAGIC, encode(RECORD), what="it")[0])
    bad = envelope.encode(MAGIC, envelope.canonical_json(body | change))
    with pytest.raises(Corruption):
        decode(bad, what="it")


def test_what_has_ended_leaves_nothing_but_exports_that_shall_go() -> None:
    retired = RECORD.retired()
    assert retired.disks == ()
    assert set(retired.stale) == {
        ("127.0.0.1:7405", "vm.host1.0123.cc"),
        ("127.0.0.1:7403", "vm.host1.0123.aa"),
        ("127.0.0.1:7403", "vm.host1.0123.bb"),
    }
    assert not retired.outgoing
    assert not retired.sent


@given(st.sets(st.integers(0, DISKS_MAX - 1), max_size=DISKS_MAX - 1), st.integers(0, DISKS_MAX - 1))
def test_a_place_is_free_and_the_wanted_one_if_it_can_be(taken: set[int], wanted: int) -> None:
    place = place_for(wanted, taken)
    assert place not in taken
    assert 0 <= place < DISKS_MAX
    assert wanted in taken or place == wanted
