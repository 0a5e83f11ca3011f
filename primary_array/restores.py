"""Restores of an array: who was granted what, which are under way, what a stop left behind.

Invariants:
  S1 a restore is opened by the target that its grant names, with its grant, only.
  S2 a restore that nobody continued for its lease is aborted and its draft removed; leases
     run on the monotonic clock and restart in full after a restart.
  S3 the volume that a restore makes bears the transfer's id; the lineage that begins when one is
     swapped in does. So both are found again, however often they are asked for.
  S4 a restore in place changes its volume only with its whole group: every member was
     verified, all are swapped in one commit, and what the volumes held stays as snapshots.
Limits: RESTORES_MAX restores. Callers: any thread; the reaper is a thread of its own.
Source: US 2016/0170666 [0045].
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from arraylift.clock import Clock
from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    Corruption,
    InvalidRequest,
    LeaseLost,
    NotFound,
    NotPermitted,
    OutOfSpace,
    Overloaded,
    WrongState,
)
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import Committed, Figures, Limits, Open, Opened
from arraylift.failpoints import FAILPOINTS
from arraylift.grants import grant_for
from arraylift.ids import ImageId, LineageId, TransferId, VolumeId
from arraylift.logs import get_logger
from arraylift.sizes import spans_of
from primary_array.pool import Pool
from primary_array.pool_types import SnapshotInfo, Source, VolumeInfo, VolumeSource
from primary_array.restore_draft import Note, RestoreDraft, RestoreGrant, decode_tag
from primary_array.restore_lane import RestoreLane
from primary_array.volume_ops import Swap

RESTORES_MAX = 64
LEASE_SECONDS = 3600
REAP_SECONDS = 5.0
SENDER_ROLE = "target"
"""Of the certificate that a sender shows: a name alone could be another daemon's."""

_log = get_logger("restores")


@dataclass(slots=True)
class _Entry:
    grant: RestoreGrant
    lease_until: float
    reference: Source | None
    restore: RestoreDraft | None = None
    lanes: int = 0


class Restores:
    """The registry."""

    def __init__(
        self,
        pool: Pool,
        grant_secret: bytes,
        *,
        clock: Clock,
        limits: Limits,
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        self._pool = pool
        self._grant_secret = grant_secret
        self._clock = clock
        self.limits = limits
        self.lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._entries: dict[TransferId, _Entry] = {}
        self._recover()
        self._stop = threading.Event()
        self._reaper = threading.Thread(target=self._reap_for_ever, name="restore-reaper", daemon=True)
        self._reaper.start()

    def _recover(self) -> None:
        """Take up what a stop left: drafts whose note can be read; others are removed."""
        for info in self._pool.drafts():
            try:
                if info.tag is None:
                    raise Corruption("it has no progress note")
                note = decode_tag(info.tag)
            except Corruption as error:
                _log.error("draft_removed", draft=info.draft_id, error=str(error))
                with suppress(OutOfSpace):  # the next start tries again
                    self._pool.resume_draft(info.draft_id).abort()
                continue
            draft = self._pool.resume_draft(info.draft_id)
            restore = RestoreDraft(note, draft, self._clock)
            self._entries[note.grant.transfer_id] = _Entry(note.grant, self._lease_end(), None, restore)

    def _lease_end(self) -> float:
        return self._clock.monotonic() + self.lease_seconds

    # -- grants ---------------------------------------------------------------------------------

    def prepare(
        self,
        transfer_id: TransferId,
        *,
        target: str,
        volume_name: str,
        reference: Source | None = None,
        group_id: str = "",
    ) -> bytes:
        """Return the grant; idempotent by transfer id, and restarts the lease (S2).

        ``reference``: the volume or snapshot whose segments need not travel. ``group_id``: restore
        ``volume_name``, which exists, in place, when ``commit_group`` is called; it is its own reference.
        Raises AlreadyExists, NotFound, InvalidRequest, Overloaded.
        """
        if group_id and reference is not None:
            raise InvalidRequest("a volume that is restored in place is its own reference")
        grant = RestoreGrant(
            transfer_id, target, volume_name, grant_for(self._grant_secret, transfer_id, target), group_id
        )
        with self._lock:
            entry, made = self._entries.get(transfer_id), self._made(transfer_id)
            known = [entry.grant] if entry else [replace(grant, volume_name=made.name)] if made else []
            if known:
                # One that has begun has what it wanted of its reference, which no note keeps.
                waiting = entry if entry and entry.restore is None else None
                if known != [grant] or (waiting and waiting.reference != reference):
                    raise AlreadyExists(
                        f"transfer {transfer_id} was granted for something else",
                        next_step="make a new transfer id",
                    )
                if entry is not None:
                    entry.lease_until = self._lease_end()
                return grant.grant
            if len(self._entries) >= RESTORES_MAX:
                raise Overloaded(f"{RESTORES_MAX} restores are open", next_step="let some end or lapse")
            if group_id:
                self._check_in_place(volume_name)
            else:
                self._check_free(volume_name)
            if reference is not None:
                self._reference_size(reference)
            self._entries[transfer_id] = _Entry(grant, self._lease_end(), reference)
            return grant.grant

    def _check_in_place(self, volume_name: str) -> None:
        self._pool.volume(volume_name)
        if any(e.grant.group_id and e.grant.volume_name == volume_name for e in self._entries.values()):
            raise AlreadyExists(
                f"volume {volume_name} is being restored in place already",
                subject=volume_name,
                next_step="wait for that restore, or give it up",
            )

    def _reference_size(self, reference: Source) -> int:
        """Raises NotFound."""
        if isinstance(reference, VolumeSource):
            return self._pool.volume(reference.name).size_bytes
        return self._pool.get_snapshot(reference.snapshot_id).size_bytes

    def _check_free(self, volume_name: str) -> None:
        taken = {volume.name for volume in self._pool.volumes()}
        taken |= {draft.name for draft in self._pool.drafts()}
        taken |= {entry.grant.volume_name for entry in self._entries.values() if not entry.grant.group_id}
        if volume_name in taken:
            raise AlreadyExists(
                f"volume {volume_name} exists already", subject=volume_name, next_step="choose another name"
            )

    def _made(self, transfer_id: TransferId) -> VolumeInfo | None:
        """The volume that this restore made, or was swapped into (S3)."""
        for volume in self._pool.volumes():
            swapped = volume.origin is not None and volume.origin.state.lineage_id == LineageId(transfer_id)
            if swapped or volume.volume_id == VolumeId(transfer_id):
                return volume
        return None

    # -- opening --------------------------------------------------------------------------------

    def find(self, message: Open, *, role: str, name: str) -> Restore:
        """Return the restore that ``peer`` opens (S1). Raises NotFound, NotPermitted."""
        expected = grant_for(self._grant_secret, message.transfer_id, name)
        if role != SENDER_ROLE or not hmac.compare_digest(expected, message.grant):
            raise NotPermitted(
                f"{role} {name} holds no grant for restore {message.transfer_id}",
                next_step="prepare the restore for this target",
            )
        with self._lock:
            entry = self._entries.get(message.transfer_id)
            if entry is not None:
                ready = entry.restore.receipt if entry.restore else None
                return Restore(self, message, ready)
            made = self._made(message.transfer_id)
        if made is None or made.origin is None:
            raise _lapsed(message.transfer_id)
        figures = Figures(spans_total=spans_of(made.size_bytes))
        return Restore(self, message, Committed(made.origin.root, ImageId(made.volume_id), figures))

    def begin(self, message: Open) -> tuple[RestoreDraft, int]:
        """Begin or join an attempt; returns it and its number. Raises LeaseLost, Conflict."""
        if len(message.key) != 32 or len(message.root) != 32:
            raise InvalidRequest("a restore needs the key and the root of its image")
        with self._lock:
            entry = self._entries.get(message.transfer_id)
            if entry is None:  # the reaper was faster
                raise _lapsed(message.transfer_id)
            entry.lease_until = self._lease_end()
            if entry.restore is None:
                entry.restore = self._new(entry, message)
            restore = entry.restore
            if message.attempt == 0:
                restore.begin_attempt(message)
            restore.check(message.attempt or restore.attempt)
            entry.lanes += 1
            return restore, restore.attempt

    def _new(self, entry: _Entry, message: Open) -> RestoreDraft:
        grant, volume_id = entry.grant, VolumeId(entry.grant.transfer_id)  # S3
        size_bytes, reference = message.image_bytes, entry.reference
        if grant.group_id:
            name = f"restore-{grant.transfer_id}"
            draft = self._pool.begin_clone_of(grant.volume_name, name, size_bytes, volume_id=volume_id)
        elif isinstance(reference, VolumeSource):
            draft = self._pool.begin_clone_of(
                reference.name, grant.volume_name, size_bytes, volume_id=volume_id
            )
        elif reference is not None:
            draft = self._pool.begin_clone(
                grant.volume_name, reference.snapshot_id, size_bytes, volume_id=volume_id
            )
        else:
            draft = self._pool.begin_volume(grant.volume_name, size_bytes, volume_id=volume_id)
        has_content = bool(grant.group_id) or reference is not None
        note = Note(grant, message, Coverage(spans_of(size_bytes)), has_content)
        return RestoreDraft(note, draft, self._clock)  # its first attempt saves the note

    def lane_ended(self, restore: RestoreDraft) -> None:
        """A lane is over; its restore stays for the lease."""
        with self._lock:
            entry = self._entries.get(restore.grant.transfer_id)
            if entry is not None:
                entry.lanes -= 1
                entry.lease_until = self._lease_end()

    def ended(self, restore: RestoreDraft, receipt: Committed) -> None:
        """The volume exists, and a sender that lost the answer finds it by its id (S3); or the draft
        waits for its group (S4)."""
        if not restore.grant.group_id:
            with self._lock:
                self._entries.pop(restore.grant.transfer_id, None)
        _log.info("restore_committed", volume=restore.grant.volume_name, root=receipt.root.hex())

    # -- groups ---------------------------------------------------------------------------------

    def commit_group(
        self, group_id: str, transfer_ids: Sequence[TransferId], *, safety_name: str
    ) -> tuple[list[VolumeInfo], list[SnapshotInfo]]:
        """Swap the drafts of a group for their volumes, all in one commit (S4); idempotent. Returns the
        volumes and the snapshots of what they held.

        Raises NotFound (unknown, lapsed), WrongState (one has not arrived whole; a volume is used),
        InvalidRequest (another group's, or not all of it), OutOfSpace, Overloaded.
        """
        with self._lock:
            entries = [self._entries.get(transfer_id) for transfer_id in transfer_ids]
            found = [entry for entry in entries if entry is not None]
            if transfer_ids and not found:
                return self._swapped(transfer_ids, safety_name)
            members = [self._member(group_id, found, transfer_id) for transfer_id in transfer_ids]
            group = [e for e in self._entries.values() if e.grant.group_id == group_id]
            if len(group) != len(set(transfer_ids)):
                raise InvalidRequest(f"name all {len(group)} restores of group {group_id}")
            FAILPOINTS.hit("restore-group.swap.before")
            safeties = self._pool.swap_drafts(members, safety_name=safety_name)
            FAILPOINTS.hit("restore-group.swap.after")
            for transfer_id in transfer_ids:
                del self._entries[transfer_id]
            _log.info("restores_swapped_in", group=group_id, volumes=[one.volume_name for one in members])
            return [self._pool.volume(one.volume_name) for one in members], safeties

    def _member(self, group_id: str, entries: Sequence[_Entry], transfer_id: TransferId) -> Swap:
        entry = next((one for one in entries if one.grant.transfer_id == transfer_id), None)
        if entry is None:
            raise _lapsed(transfer_id)
        if not group_id or entry.grant.group_id != group_id:
            raise InvalidRequest(f"restore {transfer_id} is not of group {group_id}")
        if entry.restore is None or entry.restore.receipt is None:
            raise WrongState(
                f"restore {transfer_id} of volume {entry.grant.volume_name} has not arrived whole",
                subject=entry.grant.volume_name,
                next_step="send its image first",
            )
        draft_id, root = entry.restore.draft.draft_id, entry.restore.receipt.root
        return Swap(draft_id, entry.grant.volume_name, root, LineageId(transfer_id))

    def _swapped(
        self, transfer_ids: Sequence[TransferId], safety_name: str
    ) -> tuple[list[VolumeInfo], list[SnapshotInfo]]:
        """What an earlier call did (S3)."""
        volumes, safeties = [], []
        for transfer_id in transfer_ids:
            volume = self._made(transfer_id)
            if volume is None:
                raise _lapsed(transfer_id)
            volumes.append(volume)
            kept = [one for one in self._pool.snapshots(volume.name) if one.label == safety_name]
            safeties += kept[-1:]
        return volumes, safeties

    # -- leases ---------------------------------------------------------------------------------

    def _reap_for_ever(self) -> None:
        while not self._stop.wait(REAP_SECONDS):
            self.reap()

    def reap(self) -> None:
        """Abort what nobody continued (S2)."""
        now = self._clock.monotonic()
        with self._lock:
            lapsed = [e for e in self._entries.values() if e.lanes <= 0 and now > e.lease_until]
            for entry in lapsed:
                del self._entries[entry.grant.transfer_id]
        for entry in lapsed:
            _log.info("restore_lapsed", transfer=entry.grant.transfer_id)
            try:
                self._abort(entry, LeaseLost("the restore's lease lapsed"))
            except ArrayliftError as error:  # the next round tries again
                _log.error("restore_not_removed", transfer=entry.grant.transfer_id, error=str(error))

    def revoke(self, transfer_id: TransferId) -> None:
        """Give a restore up that has not committed; does nothing for any other."""
        with self._lock:
            entry = self._entries.pop(transfer_id, None)
        if entry is not None:
            _log.info("restore_revoked", transfer=transfer_id)
            self._abort(entry, LeaseLost("the restore was given up"))

    def _abort(self, entry: _Entry, cause: ArrayliftError) -> None:
        """End the lanes of a restore that is no longer registered, then remove what they wrote; where
        that fails it is registered again, so that its draft is not forgotten (S2)."""
        if entry.restore is None:
            return
        entry.restore.fail(cause)
        try:
            entry.restore.draft.abort()
        except ArrayliftError:
            with self._lock:
                self._entries.setdefault(entry.grant.transfer_id, entry)
            raise

    def close(self) -> None:
        """Stop the reaper; drafts stay as their notes say."""
        self._stop.set()
        self._reaper.join()


class Restore:
    """A restore as its sender sees it (exchange.serve_lane.Receiving)."""

    def __init__(self, restores: Restores, message: Open, receipt: Committed | None) -> None:
        self._restores = restores
        self._receipt = receipt
        self._transfer_id = message.transfer_id
        self._entered: tuple[RestoreDraft, int] | None = None
        self.limits = restores.limits

    def open(self, message: Open) -> Opened:
        """Begin or join an attempt, or answer with the receipt."""
        if self._receipt is not None:
            return self._answer(0, b"", self._receipt)
        restore, attempt = self._restores.begin(message)
        self._entered = (restore, attempt)
        return self._answer(attempt, restore.written.to_bitmap(), None)

    def _answer(self, attempt: int, durable: bytes, receipt: Committed | None) -> Opened:
        return Opened(
            attempt=attempt,
            limits=self.limits,
            tenant="",
            key=b"",
            key_id=b"",
            lease_seconds=self._restores.lease_seconds,
            durable_spans=durable,
            committed=receipt,
        )

    def lane(self, number: int) -> RestoreLane:  # noqa: ARG002 - the lanes of a restore are alike
        """Enter the lane that ``open`` admitted."""
        assert self._entered is not None, "open comes first"
        restore, attempt = self._entered
        try:
            return RestoreLane(
                restore, attempt, committed=self._restores.ended, left=self._restores.lane_ended
            )
        except BaseException:  # no thread for it: then nobody leaves it
            self._restores.lane_ended(restore)
            raise


def _lapsed(transfer_id: TransferId) -> NotFound:
    return NotFound(
        f"there is no restore {transfer_id}", next_step="its lease may have lapsed; prepare it again"
    )
