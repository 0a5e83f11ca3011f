"""Records: golden bytes, round trips, damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift import envelope
from arraylift.errors import Corruption, WrongState
from hostagent import ended_migrations
from hostagent.disk_copy import decode_write_back, encode_write_back
from hostagent.mark_record import MAGIC as MARKS_MAGIC
from hostagent.mark_record import decode_marks, encode_marks
from hostagent.vm_record import (
    SNAPSHOT_MAGIC,
    VM_MAGIC,
    decode_snapshot,
    decode_vm,
    encode_snapshot,
    encode_vm,
)
from tests.unit.hostagent.material import ENDED, MARKS, MOVING_VM, SNAPSHOT, STATED_SNAPSHOT, VM, WRITE_BACK

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
KINDS = [
    ("vm-record-v1.alv", VM, encode_vm, decode_vm),
    ("vm-record-v1-moving.alv", MOVING_VM, encode_vm, decode_vm),
    ("vm-record-v1-ended.alm", ENDED, ended_migrations.encode, ended_migrations.decode),
    ("vm-record-v1-snapshot.alv", SNAPSHOT, encode_snapshot, decode_snapshot),
    ("vm-record-v1-snapshot-states.alv", STATED_SNAPSHOT, encode_snapshot, decode_snapshot),
    ("marks-v1.alm", MARKS, encode_marks, decode_marks),
    ("vm-record-v1-write-back.alw", WRITE_BACK, encode_write_back, decode_write_back),
]


@pytest.mark.parametrize(("file", "record", "encode", "decode"), KINDS)
def test_version_1_is_written_and_read_as_ever(file, record, encode, decode) -> None:  # type: ignore[no-untyped-def]
    golden = (GOLDEN / file).read_bytes()
    assert encode(record) == golden
    assert decode(golden, what=file) == record


@pytest.mark.parametrize(("file", "record", "encode", "decode"), KINDS)
def test_every_flipped_bit_is_an_error(file, record, encode, decode) -> None:  # type: ignore[no-untyped-def]
    data = encode(record)
    for index in range(len(data)):
        bad = bytearray(data)
        bad[index] ^= 1 << index % 8
        with pytest.raises((Corruption, WrongState)):
            decode(bytes(bad), what="it")


@pytest.mark.parametrize(
    ("magic", "good", "decode", "change"),
    [
        (VM_MAGIC, encode_vm(VM), decode_vm, (b'"cpus":2', b'"cpus":"2"')),
        (VM_MAGIC, encode_vm(VM), decode_vm, (b'"state":"on"', b'"state":"up"')),
        (VM_MAGIC, encode_vm(VM), decode_vm, (b'"firmware":"bios",', b"")),
        (VM_MAGIC, encode_vm(VM), decode_vm, (b'"mac":', b'"pac":')),
        (VM_MAGIC, encode_vm(VM), decode_vm, (b'"state":"on"', b'"state":"expected"')),
        (VM_MAGIC, encode_vm(MOVING_VM), decode_vm, (b'"live":true', b'"live":"no"')),
        (VM_MAGIC, encode_vm(MOVING_VM), decode_vm, (b'"live":true,', b"")),
        (VM_MAGIC, encode_vm(MOVING_VM), decode_vm, (b"c" * 32, b"c" * 31)),
        (
            ended_migrations.MAGIC,
            ended_migrations.encode(ENDED),
            ended_migrations.decode,
            (b"b" * 32, b"../" * 10),
        ),
        (SNAPSHOT_MAGIC, encode_snapshot(SNAPSHOT), decode_snapshot, (b'"level":2', b'"level":9')),
        (MARKS_MAGIC, encode_marks(MARKS), decode_marks, (b'"revision":3', b'"revision":-3')),
        (MARKS_MAGIC, encode_marks(MARKS), decode_marks, (b'"mark_id":"2', b'"mark_id":"../')),
        (MARKS_MAGIC, encode_marks(MARKS), decode_marks, (b'"states":[]', b'"states":[7]')),
        (
            SNAPSHOT_MAGIC,
            encode_snapshot(SNAPSHOT),
            decode_snapshot,
            (b"e" * 32, b"../../../../../../../../../../a.."),
        ),
    ],
)
def test_a_checked_body_that_makes_no_sense_is_damage(magic, good, decode, change) -> None:  # type: ignore[no-untyped-def]
    body, _ = envelope.decode(magic, good, what="it")
    assert change[0] in body
    with pytest.raises(Corruption):
        decode(envelope.encode(magic, body.replace(*change)), what="it")
