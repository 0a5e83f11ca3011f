"""Scrub misses nothing: any changed bit of a container is noticed, wherever it is, and a power cut or a
kill in the middle of a scrub never lets its place pass damage that is not in quarantine."""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Iterable

import pytest

from arraylift.errors import Corruption
from arraylift.ids import ContainerId, TenantId
from arraylift.segments.codecs import compress_lz4, compress_zstandard
from arraylift.segments.fingerprint import FingerprintKey
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_check import CheckedContainer, check_container
from dedup_target.container_format import RECORD_BYTES, Kind, decode_header
from dedup_target.container_store import LoadedContainer, _sealed_of
from tests.fakes.disk import FakeFiles, PowerCut
from tests.property.test_commit_states import BACKUPS
from tests.property.test_target_storage_crash import IndexDisk
from tests.unit.dedup_target.material import KEY_ID, TENANT, UNIT, Segment, append
from tests.unit.dedup_target.scrub_stage import ScrubStage

NUMBER = ContainerId(5)
KEY = FingerprintKey(bytes(range(32)))
SHARE = 97
"""The default run tries one of so many bits, from a place that it draws."""


def _container() -> tuple[bytes, dict[bytes, bytes]]:
    """Two frames of every codec; returns the file and the plain bytes by fingerprint."""
    draw = random.Random(1)
    plains = [draw.randbytes(200) + bytes(300) for _ in range(6)]
    buffer = ContainerBuffer(UNIT)
    buffer.begin(NUMBER, TENANT, KEY_ID, Kind.DATA)
    for frame in (plains[:4], plains[4:]):
        stored = [compress_lz4(frame[0]), compress_zstandard(frame[1]), *((0, plain) for plain in frame[2:])]
        append(
            buffer,
            [
                Segment(KEY.segment(plain), bytes(data), len(plain), int(codec))
                for plain, (codec, data) in zip(frame, stored, strict=True)
            ],
        )
    return bytes(buffer.finish()), {KEY.segment(plain): plain for plain in plains}


DATA, PLAINS = _container()
HEADER = decode_header(DATA[:4096], NUMBER)
PADDING = range(HEADER.directory_offset + HEADER.record_count * RECORD_BYTES, len(DATA))


def key_of(_tenant: TenantId) -> FingerprintKey:
    return KEY


def _check(data: bytes) -> CheckedContainer:
    def read() -> LoadedContainer:
        view = memoryview(data)
        return LoadedContainer(_sealed_of(NUMBER, len(data), lambda at, size: view[at : at + size]), data)

    return check_container(read, key_of)


def _flip(places: Iterable[int]) -> None:
    noticed = {"record": 0, "worn": 0}
    for bit in places:
        offset = bit // 8
        data = bytearray(DATA)
        data[offset] ^= 1 << bit % 8
        found = _check(bytes(data))
        where = f"bit {bit % 8} of byte {offset}"
        if offset in PADDING:
            assert (found.bad, found.problem) == ({}, ""), where
            continue
        assert found.bad or found.problem, f"{where} was not noticed"
        assert found.sealed is not None, f"{where}: one bit never costs a container"
        listed = set(found.sealed.directory["fingerprint"].tolist())
        for fingerprint in listed - found.bad.keys():
            assert fingerprint in PLAINS, f"{where}: what is called whole was stored"
        noticed["record" if found.bad else "worn"] += 1
    assert noticed["record"] > 0
    assert noticed["worn"] > 0


@pytest.mark.parametrize("phase", [secrets.randbelow(SHARE)])
def test_a_flipped_bit_is_noticed(phase: int) -> None:
    _flip(range(phase, 8 * len(DATA), SHARE))


@pytest.mark.campaign
def test_every_flipped_bit_is_noticed() -> None:
    _flip(range(8 * len(DATA)))


def test_a_record_under_a_wrong_fingerprint_is_noticed() -> None:
    """Checksums match: only decoding and fingerprinting can tell."""
    buffer = ContainerBuffer(UNIT)
    buffer.begin(NUMBER, TENANT, KEY_ID, Kind.DATA)
    good, wrong, bomb = b"good", b"wrong", b"bomb" * 10
    _, packed = compress_lz4(bytes(1000))
    append(
        buffer,
        [
            Segment(KEY.segment(good), good, len(good), 0),
            Segment(KEY.segment(good + b"!"), wrong, len(wrong), 0),
            Segment(KEY.node(good), good, len(good), 0),
            Segment(KEY.segment(bytes(1000)), bytes(packed), 999, 1),
            Segment(KEY.segment(bomb), bomb, 1 << 31, 1),
            Segment(KEY.segment(b"codec"), b"codec", 5, 77),
        ],
    )
    found = _check(bytes(buffer.finish()))
    assert len(found.bad) == 5
    assert KEY.segment(good) not in found.bad
    assert found.problem == ""


# -- power cuts ---------------------------------------------------------------------------------


def _damaged_stage() -> ScrubStage:
    stage = ScrubStage(FakeFiles())
    stage.send()
    first, second, *_ = stage.containers(Kind.DATA)
    stage.damage_record(first, 0)
    stage.damage_everything(second)
    return stage


def _check_after(files: FakeFiles, disk: IndexDisk, damaged: set[ContainerId], where: str) -> None:
    """The place is not beyond damage that nobody knows; and the next scrub finds the rest."""
    again = ScrubStage(files, disk)
    try:
        for container in damaged - _quarantined(again):
            assert again.scrub.seen_at(container) is None, f"{where}: container {container} was passed"
        again.run()
        assert _quarantined(again) >= damaged, where
        for backup in BACKUPS:
            with contextlib.suppress(Corruption):
                assert again.target.read(backup) == backup.disk, where
    finally:
        again.close()


def _quarantined(stage: ScrubStage) -> set[ContainerId]:
    return {container for container, _, _ in stage.store.unit.quarantine.records()}


@pytest.mark.parametrize("phase", [secrets.randbelow(3)])
def test_a_power_cut_in_mid_scrub_hides_no_damage(phase: int) -> None:
    stage = _damaged_stage()
    start = stage.files.op_count
    stage.run()
    count, damaged = stage.files.op_count - start, _quarantined(stage)
    stage.close()
    assert count > 10
    assert len(damaged) == 2
    for cut in range(phase, count, 3):
        stage = _damaged_stage()
        stage.files.crash_after(cut)
        with pytest.raises(PowerCut):
            stage.run()
        stage.close()
        for state in stage.files.post_crash_states(maximum=3, seed=cut):
            disk = IndexDisk(stage.disk.batches[-1].copy())
            _check_after(state, disk, damaged, f"cut {cut}: {state.story}")
