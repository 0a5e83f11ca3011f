"""Firmware variables: golden bytes, bounds, what is left behind."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from arraylift import envelope
from arraylift.durable import RealFiles
from arraylift.errors import Corruption, InvalidRequest
from arraylift.ids import VmId
from arraylift.vm.types import FIRMWARE_VARIABLES_BYTES_MAX
from hostagent.firmware_store import (
    FIRMWARE_VARIABLES_UNPACKED_MAX,
    MAGIC,
    FirmwareStore,
    pack_variables,
    unpack_variables,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "vm-record-v1-firmware.alf"
ONE, OTHER = VmId("1" * 32), VmId("2" * 32)
VARIABLES = b"Boot0000 " * 100


def test_version_1_is_read_as_ever() -> None:
    packed, _ = envelope.decode(MAGIC, GOLDEN.read_bytes(), what="it")
    assert unpack_variables(packed) == VARIABLES


def test_what_was_kept_comes_back_and_goes_with_its_owner(tmp_path: Path) -> None:
    store = FirmwareStore(RealFiles(), str(tmp_path))
    assert store.get(ONE) == b""
    for owner in (ONE, OTHER):
        store.put(owner, pack_variables(VARIABLES))
    again = FirmwareStore(RealFiles(), str(tmp_path))
    assert unpack_variables(again.get(ONE)) == VARIABLES
    again.keep_only([OTHER])
    assert again.get(ONE) == b""
    again.put(OTHER, b"")
    again.remove(OTHER)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_seen(tmp_path: Path) -> None:
    store = FirmwareStore(RealFiles(), str(tmp_path))
    store.put(ONE, pack_variables(VARIABLES))
    path = tmp_path / f"{ONE}.alf"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Corruption):
        store.get(ONE)


@pytest.mark.parametrize(
    "packed",
    [
        b"rubbish",
        zlib.compress(VARIABLES)[:-1],
        zlib.compress(VARIABLES) + b"x",
        zlib.compress(bytes(FIRMWARE_VARIABLES_UNPACKED_MAX + 1)),  # a bomb
        zlib.compress(b"x" * (FIRMWARE_VARIABLES_BYTES_MAX + 1), level=0),
    ],
)
def test_what_does_not_unpack_within_bounds_is_refused(packed: bytes, tmp_path: Path) -> None:
    store = FirmwareStore(RealFiles(), str(tmp_path))
    with pytest.raises(InvalidRequest):
        store.put(ONE, packed)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidRequest):
        pack_variables(bytes(FIRMWARE_VARIABLES_UNPACKED_MAX + 1))
