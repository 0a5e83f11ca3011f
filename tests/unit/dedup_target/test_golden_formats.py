"""Every format version ever written still reads, and version 1 is still written byte for byte.

A file in tests/golden never changes. A new version adds files, and a reader beside the old.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from arraylift import envelope, grants
from arraylift.durable import RealFiles
from arraylift.ids import ContainerId, Fingerprint, KeyId, TenantId, UnitId
from arraylift.segments.fingerprint import key_id_of
from dedup_target import (
    backup_manifest_format,
    container_format,
    container_store,
    gc_state,
    key_store,
    lock_clock,
    manifest_format,
    quotas,
    scrub_state,
    superblock,
    unit_registry,
)
from dedup_target.container_store import ContainerStore
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.index_place import IndexPlace
from dedup_target.key_store import TenantKey
from dedup_target.quarantine import Quarantine
from dedup_target.rebuild import DamageMark
from dedup_target.scrub_state import Figures, Period, ScrubState
from dedup_target.segment_index import Locator
from dedup_target.superblock import Role, Superblock
from dedup_target.transfer_log import TransferLogs
from dedup_target.unit_registry import UnitEntry
from tests.unit.dedup_target.hand_clock import SECOND_NS, START_NS, HandClock
from tests.unit.dedup_target.material import (
    KEY_ID,
    TENANT,
    UNIT,
    Segment,
    backup,
    grant,
    manifest,
    toy_sealer,
    whole_container,
)
from tests.unit.dedup_target.test_transfer_log import TRANSFER, summary, write_story

GOLDEN = Path(__file__).parents[2] / "golden"
FRAMES = [
    [Segment(b"a" * 32, b"plain bytes", 11, 0), Segment(b"b" * 32, b"lz4", 4096, 1)],
    [Segment(b"c" * 32, b"another frame", 65536, 2)],
]
WRAPPING_KEY = bytes(range(32))
TENANT_KEY = bytes(range(32, 64))
LOCKED = replace(backup(1), lock_until_ns=1_900_000_000_000_000_000)
SCRUBBED = ScrubState(
    Period(
        START_NS,
        3,
        ((1, START_NS), (3, START_NS + 600 * SECOND_NS)),
        Figures(32 << 20, 4000, 1, 0),
        (),
        (manifest(1).image_id,),
    )
)
KEY = TenantKey(TenantId(0xA1B2C3D4E5F60718), "acme", TENANT_KEY, key_id_of(TENANT_KEY))


def _transfer_log(path: Path) -> bytes:
    logs = TransferLogs(RealFiles(), str(path))
    log = logs.create(grant())
    write_story(log)
    log.close()
    return (path / f"{TRANSFER}.alt").read_bytes()


def _quarantine(path: Path) -> bytes:
    Quarantine(DirectoryBackend(RealFiles(), str(path))).add(ContainerId(5), TENANT, [b"a" * 32], "checksum")
    return (path / "quarantine" / f"{5:016x}.alq").read_bytes()


def _unit(_path: Path) -> bytes:
    return superblock.encode(Superblock(UNIT, "archive1", Role.ARCHIVE, 32 << 20))


UNITS = (
    UnitEntry("active", UNIT, Role.ACTIVE, "units/active"),
    UnitEntry(
        "cold",
        UnitId("fedcba9876543210" * 2),
        Role.ARCHIVE,
        "s3://backups/target1",
        "http://127.0.0.1:9000",
        draining=True,
    ),
)


def _high_water(_path: Path) -> bytes:
    body = envelope.canonical_json({"next_container_id": f"{257:016x}"})
    return envelope.encode(container_store.HIGH_WATER_MAGIC, body)


def _lock_clock(path: Path) -> bytes:
    clock = HandClock(START_NS - 61 * SECOND_NS)
    made = lock_clock.LockClock(RealFiles(), str(path), clock, newest_image_ns=None)
    clock.lie_ns = 61 * SECOND_NS
    made.now()
    return (path / "lock-clock.ald").read_bytes()


def _index_place(path: Path) -> bytes:
    files = RealFiles()
    place = IndexPlace(files, str(path / "unit"), DamageMark(files, str(path / "unit.damaged")))
    place.switch()
    return (path / "unit.place").read_bytes()


WRITERS: dict[str, Callable[[Path], bytes]] = {
    "container-v1.alc": lambda _: whole_container(FRAMES),
    "manifest-v1.alm": lambda _: manifest_format.encode(manifest(1), toy_sealer),
    "backup-manifest-v1.alb": lambda _: backup_manifest_format.encode(backup(1), toy_sealer),
    "backup-manifest-v1-locked.alb": lambda _: backup_manifest_format.encode(LOCKED, toy_sealer),
    "lock-clock-v1.ald": _lock_clock,
    "scrub-v1.als": lambda _: scrub_state.encode(SCRUBBED, UNIT),
    "quotas-v1.ald": lambda _: quotas.encode({TENANT: 1 << 40, TenantId(7): 1}),
    "transfer-log-v1.alt": _transfer_log,
    "key-v1.alk": lambda _: key_store.encode_key(KEY, WRAPPING_KEY),
    "key-v1-secret.key": lambda _: grants.encode_secret(WRAPPING_KEY),
    "quarantine-v1.alq": _quarantine,
    "unit-v2.alu": _unit,
    "units-v1.alr": lambda _: unit_registry.encode(UNITS),
    "index-place-v1.alp": _index_place,
    "gc-state-v1.alg": lambda _: gc_state.encode(7, {ContainerId(9): 7, ContainerId(5): 5}),
    "unit-v1-high-water.alu": _high_water,
}


@pytest.mark.parametrize("name", WRITERS)
def test_version_1_is_written_byte_for_byte(name: str, tmp_path: Path) -> None:
    assert WRITERS[name](tmp_path) == (GOLDEN / name).read_bytes()


def test_the_container_reads(tmp_path: Path) -> None:
    folder = tmp_path / "containers" / "00000000"
    folder.mkdir(parents=True)
    (folder / f"{5:016x}.alc").write_bytes((GOLDEN / "container-v1.alc").read_bytes())
    store = ContainerStore(DirectoryBackend(RealFiles(), str(tmp_path)), UNIT)
    sealed = store.read_directory(ContainerId(5))
    assert (sealed.tenant, sealed.key_id, sealed.kind.name) == (TENANT, KEY_ID, "DATA")
    flat = [segment for frame in FRAMES for segment in frame]
    for row, segment in zip(sealed.directory, flat, strict=True):
        locator = Locator(
            ContainerId(5), int(row["offset"]), int(row["stored_bytes"]), int(row["plain_bytes"]), 0
        )
        assert bytes(store.read_record(locator).data) == segment.stored


def test_the_container_reads_by_its_format_page_alone() -> None:
    """Nothing of the product is used here: docs/formats/container-v1.md is enough."""
    data = (GOLDEN / "container-v1.alc").read_bytes()
    assert data[:8] == b"ALCONTNR"
    version, kind, cipher, flags, container = struct.unpack_from("<HBBIQ", data, 8)
    assert (version, kind, cipher, flags, container) == (1, 1, 0, 0, 5)
    assert data[24:40].hex() == UNIT
    tenant, key_id, count, codecs, at, length, total, check = struct.unpack_from("<Q8sIIQQQQ", data, 40)
    assert (tenant, key_id, count, codecs) == (TENANT, KEY_ID, 3, 0b111)
    assert len(data) == total
    assert xxhash.xxh3_64_intdigest(data[:4088]) == struct.unpack_from("<Q", data, 4088)[0]
    directory = data[at : at + length]
    assert xxhash.xxh3_64_intdigest(directory) == check
    flat = [segment for frame in FRAMES for segment in frame]
    for slot, segment in enumerate(flat):
        row = struct.unpack_from("<32sIIIB3xQ", directory, 56 * slot)
        stored = data[row[1] : row[1] + row[2]]
        assert (row[0], stored, row[3], row[4]) == (
            segment.fingerprint,
            segment.stored,
            segment.plain_bytes,
            segment.codec,
        )
        assert xxhash.xxh3_64_intdigest(stored) == row[5]
    assert data[4096:4100] == b"ALfr"
    assert data[4096 + 64 : 4096 + 64 + 2 * 56] == directory[: 2 * 56]


def test_the_manifest_reads() -> None:
    data = (GOLDEN / "manifest-v1.alm").read_bytes()
    assert manifest_format.decode(data, toy_sealer, what="golden") == manifest(1)
    assert json.loads(data[32:-32])["image_id"] == manifest(1).image_id


def test_the_backup_manifest_reads() -> None:
    data = (GOLDEN / "backup-manifest-v1.alb").read_bytes()
    assert backup_manifest_format.decode(data, toy_sealer, what="golden") == backup(1)
    assert json.loads(data[32:-32])["backup_id"] == backup(1).backup_id


def test_the_locked_backup_manifest_and_the_lock_clock_read() -> None:
    data = (GOLDEN / "backup-manifest-v1-locked.alb").read_bytes()
    assert backup_manifest_format.decode(data, toy_sealer, what="golden") == LOCKED
    data = (GOLDEN / "lock-clock-v1.ald").read_bytes()
    assert lock_clock.decode(data) == (START_NS, 61 * SECOND_NS)


def test_the_position_of_a_scrub_reads() -> None:
    assert scrub_state.decode((GOLDEN / "scrub-v1.als").read_bytes(), UNIT) == SCRUBBED


def test_the_quotas_read() -> None:
    data = (GOLDEN / "quotas-v1.ald").read_bytes()
    assert quotas.decode(data) == {TENANT: 1 << 40, TenantId(7): 1}


def test_the_transfer_log_reads(tmp_path: Path) -> None:
    logs = TransferLogs(RealFiles(), str(tmp_path))
    (tmp_path / f"{TRANSFER}.alt").write_bytes((GOLDEN / "transfer-log-v1.alt").read_bytes())
    written = TransferLogs(RealFiles(), str(tmp_path / "new")).create(grant())
    write_story(written)
    assert summary(logs.open(TRANSFER).state) == summary(written.state)


def test_the_key_reads() -> None:
    secret, _ = envelope.decode(
        grants.SECRET_MAGIC, (GOLDEN / "key-v1-secret.key").read_bytes(), what="secret"
    )
    found = key_store.decode_key((GOLDEN / "key-v1.alk").read_bytes(), secret, what="key")
    assert found == KEY
    assert found.key == TENANT_KEY
    assert isinstance(KeyId(found.key_id), bytes)


def test_the_registry_reads() -> None:
    assert unit_registry.decode((GOLDEN / "units-v1.alr").read_bytes(), what="registry") == UNITS


def test_superblocks_of_both_versions_read() -> None:
    found = superblock.decode((GOLDEN / "unit-v2.alu").read_bytes(), what="unit")
    assert found == Superblock(UNIT, "archive1", Role.ARCHIVE, 32 << 20)
    found = superblock.decode((GOLDEN / "unit-v1.alu").read_bytes(), what="unit")
    assert found == Superblock(UNIT, "active", Role.ACTIVE, 16 << 20)


def test_quarantine_and_unit_read(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / f"{5:016x}.alq").write_bytes((GOLDEN / "quarantine-v1.alq").read_bytes())
    found = Quarantine(DirectoryBackend(RealFiles(), str(tmp_path)))
    assert found.bad_of(ContainerId(5)) == {Fingerprint(b"a" * 32)}
    assert found.reason(TENANT, b"a" * 32) == "checksum"
    (tmp_path / "high-water.alu").write_bytes((GOLDEN / "unit-v1-high-water.alu").read_bytes())
    store = ContainerStore(DirectoryBackend(RealFiles(), str(tmp_path)), UNIT)
    assert store.acquire(tenant=TENANT, key_id=KEY_ID, kind=container_format.Kind.DATA).container_id == 257
