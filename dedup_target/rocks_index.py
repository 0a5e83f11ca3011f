"""The segment index in RocksDB; the only module that knows RocksDB.

Owns: every byte below ``<state>/index/<unit id>``. Implements SegmentIndex (I1-I4), and:
  R1 every write is a synced WriteBatch over both column families, which flush together
     (atomic flush): a lost write-ahead log loses marks and entries alike.
  R2 after a failed write the handle takes no more writes, since the batch may or may not
     be there. A full disk heals: the database is opened again once there is room.
  R3 damage met while reading is told to ``on_damage`` before it is raised, so that the
     next start rebuilds.
  R4 a look-up of what is absent reads no table but by a filter's mistake: filters stay in
     memory, and are sized so that they fit.
  R5 closing writes entries out before marks: each is a step of its own in RocksDB's manifest, which
     may lose its tail without a word; then marks are missing, which the start mends.
Why these options: docs/decisions/0005-index-knows-its-containers.md, 0063-index-memory.md.
Callers: any thread. Format: docs/formats/index-v2.md
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import rocksdict

from arraylift.durable import Buffer
from arraylift.errors import ArrayliftError, Corruption, OutOfSpace, StoreFailed, WrongState
from arraylift.ids import ContainerId, Fingerprint, TenantId
from arraylift.logs import get_logger
from arraylift.sizes import MIB
from dedup_target import rocks_log_check
from dedup_target.container_format import SealedContainer
from dedup_target.read_gate import ReadGate
from dedup_target.segment_index import (
    KEY_BYTES,
    VALUE_BYTES,
    ContainerMark,
    Entries,
    IndexTotals,
    Locator,
    SegmentIndex,
    decode_mark,
    encode_mark,
    entries_of,
    keys_of,
    locator_of,
    mark_of,
    prefix_of,
    sum_marks,
    values_of,
)

_LOG = get_logger("rocks_index")

CONTAINERS_FAMILY = "containers"
BATCH_RECORDS_MAX = 64 * 1024
"""Records in one WriteBatch: 4 MiB of log, 0.1 s; beyond it a batch gains nothing."""

WRITE_BUFFER_BYTES = 32 * MIB
"""One memory table: 300,000 entries, about 5 GiB of new data; two may exist."""
BLOCK_CACHE_BYTES = 16 * MIB
"""For blocks of entries alone, both families together. Keys are random: more would not hit more often."""
TABLE_BYTES = 128 * MIB
"""One file handle for each of these: about 30 a TiB of unique data."""
FILTER_BITS, FILTER_BITS_MIN = 10, 4
FILTER_BYTES_MAX = 1024 * MIB
"""Filters and block indexes lie on the heap, whole, so that nothing can push them out: 1.45 bytes an
entry. Beyond 13 TiB of unique data new tables get fewer bits a key, to stay inside this."""
REOPEN_FREE_BYTES = 2 * WRITE_BUFFER_BYTES
"""A reopened database writes its log out as a table; with less room it would not open at all. This
much is always enough; twice the log, and some, is too."""
REOPEN_SLACK_BYTES = 2 * MIB

T = TypeVar("T")


def filter_bits(record_count: int) -> int:
    """Bits a key that keep the filters of so many entries inside FILTER_BYTES_MAX (R4)."""
    if record_count == 0:
        return FILTER_BITS
    return max(FILTER_BITS_MIN, min(FILTER_BITS, 8 * FILTER_BYTES_MAX // record_count))


def _options(bits: int, cache: rocksdict.Cache) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_atomic_flush(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_total_wal_size(2 * WRITE_BUFFER_BYTES)
    options.set_max_open_files(-1)  # a table that is not open has no filter in memory (R4)
    options.set_target_file_size_base(TABLE_BYTES)
    options.set_compression_type(rocksdict.DBCompressionType.none())  # keys are random, values short
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(MIB)
    tables = rocksdict.BlockBasedOptions()
    tables.set_bloom_filter(bits, False)
    tables.set_format_version(5)
    tables.set_block_cache(cache)
    tables.set_cache_index_and_filter_blocks(False)
    options.set_block_based_table_factory(tables)
    return options


class RocksSegmentIndex:
    """SegmentIndex over one database directory."""

    def __init__(self, path: str, *, on_damage: Callable[[str], None] | None = None) -> None:
        """Open or create. Raises Corruption (destroy and rebuild), WrongState (in use), OutOfSpace."""
        self._path = path
        self._on_damage = on_damage
        self._lock = threading.RLock()
        self._gate = ReadGate()
        self._failed = ""
        self._full = False
        self._closed = False
        self._family: rocksdict.ColumnFamily | None = None
        self._sync = rocksdict.WriteOptions()
        self._sync.sync = True
        self._cache = rocksdict.Cache(BLOCK_CACHE_BYTES)
        self._open()
        try:
            self._marks = self._read_marks()
            self._totals = sum_marks(self._marks.values())
            if filter_bits(self._totals.record_count) != FILTER_BITS:  # known only now
                self._drop_handle()
                self._open(filter_bits(self._totals.record_count))
        except BaseException:
            self.close()
            raise

    def _open(self, bits: int = FILTER_BITS) -> None:
        # Families are named even where there is one: without them rocksdict takes the options that
        # the database was made with, whose cache and filters it cannot read back.
        hangs = rocks_log_check.recycled_record(self._path)
        if hangs:
            raise _corrupt(self._path, hangs)
        options = _options(bits, self._cache), {CONTAINERS_FAMILY: _options(bits, self._cache)}
        try:
            self._database = rocksdict.Rdict(self._path, *options)
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing narrower
            raise _translate(error, self._path, reading=True) from None
        self._containers = self._database.get_column_family(CONTAINERS_FAMILY)
        self._family = self._database.get_column_family_handle(CONTAINERS_FAMILY)

    # -- lookups ----------------------------------------------------------------------------

    def get_many(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator | None]:
        prefix = prefix_of(tenant)
        values = self._get([prefix + fingerprint for fingerprint in fingerprints])
        return [None if value is None else locator_of(value) for value in values]

    def contains_many(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        values = self._get(keys_of(tenant, np.frombuffer(packed, dtype="V32")))
        return np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))

    def find_many(self, tenant: TenantId, packed: Buffer) -> Entries:
        return entries_of(self._get(keys_of(tenant, np.frombuffer(packed, dtype="V32"))))

    def indexed_containers(self) -> set[ContainerId]:
        with self._lock:
            return set(self._marks)

    def marks(self) -> dict[ContainerId, ContainerMark]:
        with self._lock:
            return self._marks.copy()

    def totals(self) -> IndexTotals:
        return self._totals

    def entries(self) -> Iterator[tuple[TenantId, Fingerprint, Locator]]:
        for key, value in self._iterate(lambda: self._database):
            if len(key) != KEY_BYTES or len(value) != VALUE_BYTES:
                raise self._damaged(f"an entry has {len(key)} and {len(value)} bytes")
            yield TenantId(int.from_bytes(key[:8], "big")), Fingerprint(key[8:]), locator_of(value)

    def count(self) -> int:
        return sum(1 for _ in self.entries())

    # -- changes ----------------------------------------------------------------------------

    def add_containers(self, sealed: Sequence[SealedContainer]) -> None:
        with self._lock:
            self._check_writable()
            batch, records = rocksdict.WriteBatch(raw_mode=True), 0
            marks: dict[ContainerId, ContainerMark] = {}
            for one in sealed:
                if records and records + len(one.directory) > BATCH_RECORDS_MAX:
                    self._write(batch, added=marks)
                    batch, records, marks = rocksdict.WriteBatch(raw_mode=True), 0, {}
                put = batch.put
                keys = keys_of(one.tenant, one.directory["fingerprint"])
                for key, value in zip(keys, values_of(one), strict=True):
                    put(key, value)
                mark = marks[one.container_id] = mark_of(one)
                put(_mark_key(one.container_id), encode_mark(mark), self._family)
                records += len(one.directory)
            if marks:
                self._write(batch, added=marks)

    def remove_container(self, container: ContainerId, fingerprints: Sequence[bytes]) -> None:
        with self._lock:  # nobody may add between the look and the batch (I3)
            self._check_writable()
            mark = self._marks.get(container)
            if mark is None:
                return
            batch = rocksdict.WriteBatch(raw_mode=True)
            self._delete_if_there(batch, mark.tenant, container, fingerprints)
            batch.delete(_mark_key(container), self._family)
            self._write(batch, removed=container)

    def forget_records(self, tenant: TenantId, container: ContainerId, fingerprints: Sequence[bytes]) -> int:
        with self._lock:
            self._check_writable()
            batch = rocksdict.WriteBatch(raw_mode=True)
            count = self._delete_if_there(batch, tenant, container, fingerprints)
            if count:
                self._write(batch)
            return count

    def take_over(self, fresh: SegmentIndex, ready: Callable[[], None]) -> None:
        assert isinstance(fresh, RocksSegmentIndex)
        with self._lock:
            self._check_writable()  # a disk that failed once is not to be trusted with the next (R2)
            ready()
            with fresh._lock, self._gate.alone():
                _close_quietly(self._containers)
                _close_quietly(self._database)
                fresh._closed = True
                self._path, self._cache = fresh._path, fresh._cache
                self._database, self._containers = fresh._database, fresh._containers
                self._family, fresh._family = fresh._family, None
                self._marks, self._totals = fresh._marks, fresh._totals
                self._failed, self._full = fresh._failed, fresh._full

    def close(self) -> None:
        """Flush and close; further calls raise WrongState. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._drop_handle()

    # -- inside -----------------------------------------------------------------------------

    def _delete_if_there(
        self,
        batch: rocksdict.WriteBatch,
        tenant: TenantId,
        container: ContainerId,
        fingerprints: Sequence[bytes],
    ) -> int:
        prefix, count = prefix_of(tenant), 0
        for fingerprint, locator in zip(fingerprints, self.get_many(tenant, fingerprints), strict=True):
            if locator is not None and locator.container == container:
                batch.delete(prefix + fingerprint)
                count += 1
        return count

    def _write(
        self,
        batch: rocksdict.WriteBatch,
        *,
        added: dict[ContainerId, ContainerMark] | None = None,
        removed: ContainerId | None = None,
    ) -> None:
        """Write one batch. REQUIRES the lock, and ``_check_writable``."""
        assert self._family is not None
        try:
            self._database.write(batch, self._sync)
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing narrower
            self._failed = str(error)  # R2
            fault = _translate(error, self._path, reading=False)
            self._full = isinstance(fault, OutOfSpace)
            raise fault from None
        for container in (*(added or ()), *([removed] if removed is not None else ())):
            old = self._marks.pop(container, None)
            self._totals = self._totals.plus(old, -1) if old else self._totals
        for container, mark in (added or {}).items():
            self._marks[container] = mark
            self._totals = self._totals.plus(mark)

    def _check_writable(self) -> None:
        """Raise unless the handle takes writes; after a full disk, try to get a new one (R2)."""
        if self._closed:
            raise WrongState("the index is closed", subject=self._path)
        if self._full:
            free, needed = shutil.disk_usage(self._path).free, self._reopen_bytes()
            if free < needed:
                raise OutOfSpace(
                    f"after a full disk the index needs {needed} free bytes to go on, not {free}",
                    subject=self._path,
                    next_step="free space on that file system, then repeat",
                )
            self._reopen()
        if self._failed:
            raise StoreFailed(
                f"the index stopped taking writes: {self._failed}",
                subject=self._path,
                next_step="check the disk, then restart the daemon; the index is brought up to date at start",
            )

    def _reopen_bytes(self) -> int:
        logs = sum(path.stat().st_size for path in Path(self._path).glob("*.log"))
        return min(REOPEN_FREE_BYTES, 2 * logs + REOPEN_SLACK_BYTES)

    def _reopen(self) -> None:
        """Get a fresh handle. Raises OutOfSpace, Corruption; then the next call tries again."""
        self._drop_handle()
        self._open(filter_bits(self._totals.record_count))
        self._marks = self._read_marks()
        self._totals = sum_marks(self._marks.values())
        self._failed, self._full = "", False

    def _drop_handle(self) -> None:
        """Close, once nobody reads. REQUIRES the lock."""
        with self._gate.alone():
            if self._family is None:
                return
            self._family = None  # a handle that lives on keeps the database's lock file
            try:
                self._database.flush()  # R5
                self._containers.close()
                self._database.close()
            except Exception:  # a database that met a full disk says so again, and is closed all the same
                if not self._failed:
                    raise

    def _get(self, keys: list[bytes]) -> list[bytes | None]:
        def read() -> list[bytes | None]:
            return cast("list[bytes | None]", self._database.get(cast("list[Any]", keys)))

        return self._reading(read)

    def _reading(self, read: Callable[[], T]) -> T:
        """Read from an open handle, which nobody closes meanwhile. Raises Corruption (R3)."""
        while True:
            with self._gate.using():
                if self._family is not None:
                    try:
                        return read()
                    except Exception as error:  # noqa: BLE001 - rocksdict raises nothing narrower
                        why = str(error)
                    del read  # an iterator's, maybe: a traceback that lives on would keep the lock file
                    raise self._damaged(why)
            with self._lock:  # closed, or left without a handle by a full disk (R2)
                if self._closed:
                    raise WrongState("the index is closed", subject=self._path)
                if self._family is None:
                    self._reopen()

    def _damaged(self, why: str) -> Corruption:
        if self._on_damage:
            try:
                self._on_damage(why)  # R3
            except ArrayliftError as error:  # the damage is what the caller must hear of
                _LOG.error("index_damage_not_marked", why=why, error=str(error))
        return _corrupt(self._path, why)

    def _read_marks(self) -> dict[ContainerId, ContainerMark]:
        marks = {}
        for key, value in self._iterate(lambda: self._containers):
            mark = decode_mark(value)
            if mark is None:
                raise _corrupt(self._path, "it is of another release, whose format this one does not read")
            if len(key) != 8:
                raise self._damaged(f"the key of a container mark has {len(key)} bytes")
            marks[ContainerId(int.from_bytes(key, "big"))] = mark
        return marks

    def _iterate(self, family: Callable[[], rocksdict.Rdict]) -> Iterator[tuple[bytes, bytes]]:
        """The only iteration in this module: RocksDB's own stops in silence at damage (I4)."""
        rows = self._reading(lambda: family().iter())
        try:
            self._reading(rows.seek_to_first)
            while rows.valid():
                yield rows.key(), rows.value()
                rows.next()
            self._reading(rows.status)
        finally:
            del rows  # an iterator that lives on keeps the database's lock file


def _close_quietly(database: rocksdict.Rdict) -> None:
    try:
        database.close()
    except Exception as error:  # noqa: BLE001 - nothing of it is needed any more
        _LOG.warning("old_index_not_closed", error=str(error))


def destroy(path: str) -> None:
    """Remove a closed index with everything in it; a missing one is no error."""
    shutil.rmtree(path, ignore_errors=False, onerror=_unless_missing)


def _unless_missing(_function: object, _path: str, info: tuple[type, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _mark_key(container: int) -> bytes:
    return container.to_bytes(8, "big")


def _corrupt(path: str, why: str) -> Corruption:
    return Corruption(
        f"the index is damaged: {why}",
        subject=path,
        next_step="restart the daemon: it rebuilds the index from the containers; no backup is lost",
    )


def _translate(error: Exception, path: str, *, reading: bool) -> ArrayliftError:
    """RocksDB tells its errors apart by text alone."""
    text = str(error)
    if "No space left" in text or "quota exceeded" in text:
        return OutOfSpace("the disk is full at the index", subject=path, next_step="free space, then repeat")
    if "lock hold by current process" in text or "While lock file" in text:
        return WrongState(
            f"the index {path} is open in another process",
            subject=path,
            next_step="stop the daemon that has it open",
        )
    if "Too many open files" in text or "Permission denied" in text or "Read-only file system" in text:
        return StoreFailed(
            f"the index cannot be opened: {text}", subject=path, next_step="see the system's limits"
        )
    if reading:
        return _corrupt(path, text)
    return StoreFailed(
        f"a write to the index failed: {text}",
        subject=path,
        next_step="check the disk, then restart the daemon; the index is brought up to date at start",
    )
