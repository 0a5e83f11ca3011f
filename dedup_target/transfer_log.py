"""What a transfer has made durable so far: its log, and the log's content in memory.

Owns: the bytes of one ``<state>/transfers/<transfer id>.alt``; ``TransferLogs`` the folder.
Invariants:
  T1 a span is covered only by a LEAVES record whose segments were sealed and indexed
     before it was appended (the caller's order); a VOIDED record takes that back.
  T2 replay gives the state that the writer had after some record at or behind its last sync.
  T3 what was synced is never cut off: damage in front of a sync mark is Corruption. Only
     what no mark follows is a tear.
  T4 memory: 41 bytes a span, one for a hole; leaves stay in the file and are read back one at a time.
Callers: one thread at a time for each log (the transfer's lock).
Format: docs/formats/transfer-log-v1.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arraylift.durable import AppendFile, Files
from arraylift.errors import AlreadyExists, NotFound, OutOfSpace, Overloaded
from arraylift.ids import TenantId, TransferId, check_id
from arraylift.logs import get_logger
from arraylift.segments.tree import Leaves, no_leaves
from arraylift.sizes import IMAGE_BYTES_MAX, spans_of
from dedup_target.transfer_format import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RECORD_MAGIC,
    Attempt,
    CommittedTransfer,
    GrantParameters,
    LoggedLeaves,
    Record,
    RecordType,
    check_file_header,
    decode_json,
    decode_leaves,
    decode_record,
    encode_attempt,
    encode_committed,
    encode_file_header,
    encode_grant,
    encode_leaves,
    encode_record,
    log_damaged,
    record_end,
)

__all__ = [
    "Attempt",
    "CommittedTransfer",
    "GrantParameters",
    "LoggedLeaves",
    "TransferLog",
    "TransferLogs",
    "TransferState",
    "replay",
]

_LOG = get_logger("transfer_log")

SUFFIX = ".alt"
VOIDED_SPANS_MAX = 1 << 20
"""Of one record: an image of 16 TiB has 16 times as many."""
_WINDOW_BYTES = 4 << 20


@dataclass(slots=True)
class TransferState:
    """A transfer as its log tells it. Arrays have one row a span, from the first attempt on."""

    grant: GrantParameters
    attempt: Attempt | None = None
    covered: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """(spans,) True where a leaf or a hole is durable."""
    leaves: Leaves = field(default_factory=lambda: no_leaves(0))
    """(spans, 32) leaf fingerprints; zero for holes and for what is not covered."""
    positions: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """(spans,) offset of the record that holds the leaf; 0 for holes."""
    committed: CommittedTransfer | None = None

    def places(self) -> npt.NDArray[np.uint64]:
        """Offsets of the records that hold leaves, ascending."""
        return np.unique(self.positions[(self.positions > 0) & self.covered])


class TransferLog:
    """One open log. ``state`` is always what replaying it would give."""

    def __init__(self, files: Files, path: str, log: AppendFile, state: TransferState) -> None:
        self._files = files
        self._path = path
        self._log = log
        self._synced_size = log.size
        self.state = state

    @property
    def transfer_id(self) -> TransferId:
        return self.state.grant.transfer_id

    # -- appending --------------------------------------------------------------------------

    def append_attempt(self, attempt: Attempt) -> None:
        """Start the next attempt; the caller checked that size, segmentation and state agree."""
        self._append(RecordType.ATTEMPT, encode_attempt(attempt))

    def append_leaves(self, leaves: LoggedLeaves) -> None:
        """Cover spans (T1). Durable with the next ``sync``."""
        self._append(RecordType.LEAVES, encode_leaves(leaves))

    def append_voided(self, spans: npt.NDArray[np.uint32]) -> None:
        """Uncover spans: one of their segments was lost before the commit; shape (n,)."""
        for start in range(0, len(spans), VOIDED_SPANS_MAX):
            self._append(RecordType.VOIDED, spans[start : start + VOIDED_SPANS_MAX].astype("<u4").tobytes())

    def append_committed(self, committed: CommittedTransfer) -> None:
        """Keep the receipt; the image's manifest is published.

        A full disk does not undo that: the receipt is then in memory, and made from the manifest
        after a restart (transfers.py R3).
        """
        try:
            self._append(RecordType.COMMITTED, encode_committed(committed))
        except (OutOfSpace, Overloaded):
            self.state.committed = committed

    def sync(self) -> None:
        """Make everything appended durable. Raises OutOfSpace, StoreFailed."""
        if self._log.size == self._synced_size:
            return
        self._log.sync()
        self._mark()

    def close(self) -> None:
        self._log.close()

    def _mark(self) -> None:
        """Say that all before is durable. The mark itself needs no sync, nor, on a full disk, room:
        it only tells damage from tears (T3)."""
        with contextlib.suppress(OutOfSpace, Overloaded):
            self._log.append(encode_record(RecordType.SYNCED, b"", self._log.size))
        self._synced_size = self._log.size

    def _append(self, kind: RecordType, body: bytes) -> None:
        offset = self._log.size
        data = encode_record(kind, body, offset)
        self._log.append(data)
        _apply(self.state, Record(offset, kind, body, offset + len(data)), self._path)

    # -- reading back -----------------------------------------------------------------------

    def iter_leaves(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield (span, packed u32 lengths, packed fingerprints) of every covered span that is no
        hole, in the order of the log. Raises Corruption.

        REQUIRES no append meanwhile.
        """
        state = self.state
        for place in state.places().tolist():
            yield from _leaves_of(leaves_at(self._files, self._path, place), state.positions, place)

    def freeze(self) -> FrozenLog:
        """What is covered now, to be read while the log goes on (T1)."""
        grant = self.state.grant
        return FrozenLog(self._files, self._path, grant.tenant, grant.transfer_id, self.state.places())


class FrozenLog:
    """The leaves of a log at one moment: records never change, and the log only grows. Any thread."""

    def __init__(
        self,
        files: Files,
        path: str,
        tenant: TenantId,
        transfer_id: TransferId,
        places: npt.NDArray[np.uint64],
    ) -> None:
        self._files = files
        self._path = path
        self._places = places
        self.tenant = tenant
        self.transfer_id = transfer_id

    def segments(self) -> Iterator[bytes]:
        """Yield packed fingerprints, a record at a time; some that a later record replaced are among
        them. Raises NotFound if the log was removed, Corruption."""
        for place in self._places.tolist():
            yield bytes(leaves_at(self._files, self._path, place).fingerprints)


class TransferLogs:
    """The folder of all logs."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files = files
        self._folder = folder
        files.make_dirs(folder)

    def list(self) -> list[TransferId]:
        """Ids of all transfers that have a log."""
        names = self._files.list_dir(self._folder)
        return [TransferId(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX)]

    def create(self, grant: GrantParameters) -> TransferLog:
        """Start a log; durable on return. Raises AlreadyExists, OutOfSpace."""
        path = self._path(grant.transfer_id)
        if self._files.exists(path):
            raise AlreadyExists(
                f"transfer {grant.transfer_id} exists", subject=f"transfer {grant.transfer_id}"
            )
        first = encode_record(RecordType.GRANT, encode_grant(grant), FILE_HEADER_BYTES)
        mark = encode_record(RecordType.SYNCED, b"", FILE_HEADER_BYTES + len(first))
        self._files.publish(path, [encode_file_header(), first, mark], label="transfer-create")
        return self.open(grant.transfer_id)

    def open(self, transfer_id: TransferId) -> TransferLog:
        """Replay a log and cut its torn tail. Raises NotFound, Corruption (T3), WrongState."""
        path = self._path(transfer_id)
        if not self._files.exists(path):
            raise NotFound(f"there is no transfer {transfer_id}", subject=f"transfer {transfer_id}")
        log = self._files.append_file(path, label="transfer-log")
        try:
            state, end, marked = replay(self._files, path, log.size)
            if end < log.size:
                _LOG.warning("torn_tail_cut", transfer=transfer_id, cut_bytes=log.size - end)
                log.truncate(end)
            if state.grant.transfer_id != transfer_id:
                raise log_damaged(path, f"it is about transfer {state.grant.transfer_id}")
        except BaseException:
            log.close()
            raise
        opened = TransferLog(self._files, path, log, state)
        if not marked:
            opened._mark()  # opening made durable what was there
        return opened

    def remove(self, transfer_id: TransferId) -> None:
        """Forget a transfer that is over. REQUIRES its log closed. Raises NotFound."""
        self._files.remove(self._path(transfer_id), label="transfer-remove")

    def _path(self, transfer_id: TransferId) -> str:
        return f"{self._folder}/{check_id(transfer_id, 'transfer id')}{SUFFIX}"


def leaves_at(files: Files, path: str, offset: int) -> LoggedLeaves:
    """Read one record of leaves back. Raises NotFound, Corruption."""
    head = files.read(path, offset, RECORD_HEADER_BYTES)
    end = record_end(head, offset)
    record = decode_record(files.read(path, offset, end - offset), offset) if end else None
    if record is None or record.type is not RecordType.LEAVES:
        raise log_damaged(path, f"the leaves at {offset} can no longer be read")
    return decode_leaves(record.body, path)


# -- replay -------------------------------------------------------------------------------------


def replay(files: Files, path: str, size: int) -> tuple[TransferState, int, bool]:
    """Read a log of ``size`` bytes. Returns its state, where its last whole record ends, and
    whether that is a sync mark. Raises Corruption, WrongState."""
    check_file_header(files.read(path, 0, min(FILE_HEADER_BYTES, size)), path)
    state: TransferState | None = None
    end, marked = FILE_HEADER_BYTES, False
    for record in _records(files, path, size):
        if state is None:
            if record.type is not RecordType.GRANT:
                break
            grant = decode_json(record, path)
            assert isinstance(grant, GrantParameters)
            state = TransferState(grant)
        else:
            _apply(state, record, path)
        end, marked = record.end, record.type is RecordType.SYNCED
    if state is None:
        raise log_damaged(path, "its first record is not a grant")
    return state, end, marked


def _records(files: Files, path: str, size: int) -> Iterator[Record]:
    """Yield whole records until the end or a tear; raise Corruption for other damage (T3)."""
    window, start, at = b"", 0, FILE_HEADER_BYTES
    while at < size:
        need = RECORD_HEADER_BYTES
        while True:
            if at + need > start + len(window) and start + len(window) < size:
                start, window = at, files.read(path, at, min(max(_WINDOW_BYTES, need), size - at))
            have = window[at - start : at - start + need]
            end = record_end(have, at)
            if end is None or need == end - at:
                break
            need = end - at
        record = decode_record(have, at)
        if record is None:
            _check_torn(files, path, at, size)
            return
        yield record
        at = record.end


def _check_torn(files: Files, path: str, at: int, size: int) -> None:
    """Raise Corruption if a sync mark lies behind ``at``: then the record there was durable once, and
    this is damage, not a tear (T3). Other records may outlive an earlier one in a power cut."""
    tail = files.read(path, at, size - at)
    place = tail.find(RECORD_MAGIC, 1)
    while place >= 0:
        end = record_end(tail[place : place + RECORD_HEADER_BYTES], at + place)
        found = decode_record(tail[place : end - at], at + place) if end is not None else None
        if found is not None and found.type is RecordType.SYNCED:
            raise log_damaged(path, f"the record at {at} does not match its checksum")
        place = tail.find(RECORD_MAGIC, place + 1)


def _apply(state: TransferState, record: Record, path: str) -> None:
    """Bring ``state`` up to date with one more record. Raises Corruption."""
    if record.type is RecordType.LEAVES:
        _cover(state, decode_leaves(record.body, path), record.offset, path)
    elif record.type is RecordType.VOIDED:
        spans = np.frombuffer(record.body, dtype="<u4") if len(record.body) % 4 == 0 else None
        if spans is None or (len(spans) and int(spans.max()) >= len(state.covered)):
            raise log_damaged(path, "it voids spans that the image does not have")
        state.covered[spans], state.leaves[spans], state.positions[spans] = False, 0, 0
    elif record.type is RecordType.ATTEMPT:
        attempt = decode_json(record, path)
        assert isinstance(attempt, Attempt)
        _start(state, attempt, path)
    elif record.type is RecordType.COMMITTED:
        committed = decode_json(record, path)
        assert isinstance(committed, CommittedTransfer)
        state.committed = committed
    elif record.type is RecordType.GRANT:
        raise log_damaged(path, "it has two grants")


def _start(state: TransferState, attempt: Attempt, path: str) -> None:
    if not 1 <= attempt.image_bytes <= IMAGE_BYTES_MAX:
        raise log_damaged(path, f"an image of {attempt.image_bytes} bytes cannot be transferred")
    spans = spans_of(attempt.image_bytes)
    if state.attempt is None:
        state.covered, state.leaves = np.zeros(spans, dtype=np.bool_), no_leaves(spans)
        state.positions = np.zeros(spans, dtype=np.uint64)
    elif spans != len(state.covered):
        raise log_damaged(path, "two attempts disagree on the size of the image")
    state.attempt = attempt


def _cover(state: TransferState, logged: LoggedLeaves, offset: int, path: str) -> None:
    spans, runs = logged.spans, logged.hole_runs.astype(np.uint64)
    last = max(int(spans.max(initial=0)), int((runs[:, 0] + runs[:, 1]).max(initial=1)) - 1)
    if last >= len(state.covered):
        raise log_damaged(path, "it covers spans that the image does not have")
    state.leaves[spans] = np.frombuffer(logged.leaf_fingerprints, dtype=np.uint8).reshape(-1, 32)
    state.covered[spans], state.positions[spans] = True, offset
    for first, count in runs.tolist():
        run = slice(first, first + count)
        state.covered[run] = True
        solid = first + np.flatnonzero(state.positions[run])
        state.leaves[solid], state.positions[solid] = 0, 0  # what was never set costs no memory


def _leaves_of(
    logged: LoggedLeaves, positions: npt.NDArray[np.uint64], place: int
) -> Iterator[tuple[int, bytes, bytes]]:
    """The spans of a record that no later record has replaced."""
    stops = np.cumsum(logged.counts, dtype=np.uint64).tolist()
    for span, count, stop in zip(logged.spans.tolist(), logged.counts.tolist(), stops, strict=True):
        if int(positions[span]) == place:
            start = stop - count
            yield (
                span,
                logged.lengths[start:stop].tobytes(),
                bytes(logged.fingerprints[32 * start : 32 * stop]),
            )
