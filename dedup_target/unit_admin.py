"""Add, drain and retire units: what may come and go, and in which order.

Invariants:
  D1 a unit is retired only when it holds nothing that is not elsewhere; or when it is absent, nothing of
     it is locked, and somebody says that its images are lost.
  D2 when another unit begins to take backups, no attempt that began before changes anything any
     more, and what transfers have promised so far is looked up in the new one.
Callers: any thread; one change at a time. Decision: docs/decisions/0043-units-come-and-go.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, WrongState
from arraylift.ids import ImageId
from arraylift.logs import get_logger
from dedup_target.backups import Backups
from dedup_target.doubt import settle_doubt
from dedup_target.image_reader import ImageReader
from dedup_target.lock_clock import LockClock
from dedup_target.move_images import MoveProgress, Mover
from dedup_target.s3_backend import SCHEME
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store
from dedup_target.superblock import Role
from dedup_target.transfers import Transfers
from dedup_target.units import Member

_log = get_logger("unit_admin")


class UnitAdmin:
    """Changes the units of one target."""

    def __init__(
        self,
        store: Store,
        images: ImageReader,
        *,
        backups: Backups,
        transfers: Transfers,
        mover: Mover,
        lock_clock: LockClock,
    ) -> None:
        self._store = store
        self._images = images
        self._backups = backups
        self._transfers = transfers
        self._mover = mover
        self._lock_clock = lock_clock
        self._changing = threading.Lock()

    def add(self, name: str, role: Role, location: str, endpoint: str) -> Member:
        """Take a place as a unit; what it holds appears. Idempotent.

        Raises AlreadyExists (name), InvalidRequest, WrongState (another target's, foreign files),
        PeerUnavailable.
        """
        far = location.startswith(SCHEME)
        if not far and not location.startswith("/"):
            raise InvalidRequest(
                f"{location!r} is no absolute path", next_step="give one, or s3://bucket/prefix"
            )
        if far and role is Role.ACTIVE:
            raise InvalidRequest(
                "a unit that takes backups lies in a directory",
                next_step="add the object store as an archive",
            )
        if endpoint and not far:
            raise InvalidRequest("a directory has no endpoint", next_step="leave it out")
        with self._changing:
            try:
                known = self._store.units.member(name)
            except NotFound:
                return self._store.units.add(name, role, location, endpoint)
        if (known.entry.role, known.entry.location, known.entry.endpoint) != (role, location, endpoint):
            raise AlreadyExists(
                f"unit {name} exists, at {known.entry.location}",
                subject=f"unit {name}",
                next_step="choose another name",
            )
        return known

    # -- drain ----------------------------------------------------------------------------------

    def drain(
        self,
        name: str,
        *,
        report: Callable[[MoveProgress], None] = lambda _: None,
        stopping: threading.Event | None = None,
    ) -> MoveProgress:
        """Move all that a unit holds into others. Repeat after a failure: what was moved stays moved.

        Raises NotFound, WrongState (nowhere to go), Conflict (maintenance), PeerUnavailable, OutOfSpace,
        Corruption, Cancelled.
        """
        stopping = stopping or threading.Event()
        with self._changing:
            member = self._store.units.member(name)
            source = member.opened()
            goal = self._goal_for(member)
            if source is self._store.unit:
                self._receive_elsewhere(name, stopping)
            elif not member.entry.draining:
                self._store.units.mark_draining(name)
        _log.info("unit_draining", unit=name, goal=goal.name)
        done = self._mover.empty(source, goal, report=report, stopping=stopping)
        self._backups.move_manifests(source, self._store.unit)
        return done

    def _goal_for(self, member: Member) -> StorageUnit:
        others = [one for one in self._store.units.members if one is not member and not one.entry.draining]
        able = [one.unit for one in others if one.unit is not None and not one.problem]
        following = self._store.units.next_receiving(member.entry.name)
        if member.entry.role is Role.ARCHIVE:
            return next((unit for unit in able if unit.superblock.role is Role.ARCHIVE), following)
        return following

    def _receive_elsewhere(self, name: str, stopping: threading.Event) -> None:
        """Have the next active unit take backups (D2)."""
        self._transfers.while_nobody_sends(lambda: self._store.receive_elsewhere(name))
        settle_doubt(self._store, self._images, stopping)
        _log.info("receiving_unit_changed", unit=self._store.unit.name)

    # -- retire ---------------------------------------------------------------------------------

    def retire(self, name: str, *, lose_images: bool) -> None:
        """Forget a unit (D1). Raises NotFound, WrongState, Conflict (an image may be on its way there)."""
        with self._changing, contextlib.ExitStack() as alone:
            member = self._store.units.member(name)
            if member.unit is not None:
                alone.enter_context(member.unit.maintenance.begin("retiring it"))
            subject = f"unit {name}"
            if member.unit is self._store.unit:
                raise WrongState(
                    f"unit {name} takes the backups of this target",
                    subject=subject,
                    next_step="add another active unit, and drain this one",
                )
            count = len(self._only_there(member)) + len(member.backups.keys())
            count += len(member.manifests.damaged) + len(member.backups.damaged_names)
            if count and not member.problem:
                raise WrongState(
                    f"unit {name} holds {count} images or backups",
                    subject=subject,
                    next_step=f"drain it first: arraylift target units drain {name}",
                )
            if count and not lose_images:
                raise WrongState(
                    f"unit {name} is absent, and {count} images or backups would be lost",
                    subject=subject,
                    next_step="bring it back, or say that they are lost: --lose-images",
                )
            for image in member.manifests.all():
                self._lock_clock.check_unlocked(f"image {image.image_id}", image.lock_until_ns)
            if member.unit is not None:
                self._store.replicas.leave(member.unit)
            self._store.units.drop(name)
            self._store.replicas.forget(member.entry.unit_id)

    def _only_there(self, member: Member) -> list[ImageId]:
        holders = self._store.manifests.holders
        listed = [image.image_id for image in member.manifests.all()]
        return [one for one in listed if len(holders(one)) == 1]
