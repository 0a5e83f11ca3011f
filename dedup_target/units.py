"""The storage units of a target: open, absent, taken back; and which of them takes backups.

Invariants:
  N1 the receiving unit is the first active one that is not draining; without it the target does
     not start. Any other unit may be absent: the rest is served. It changes by a drain alone, never
     because a unit goes or comes back.
  N2 a unit is opened only if the superblock at its place is the one that the registry names.
  N3 a tenant's key is the same in all units: the receiving one has every key that any unit has.
Members never change; the tuple of them is replaced, so readers need no lock.
Callers: ``open`` and ``close`` from ``store``; changes from one thread at a time, under ``lock``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from blake3 import blake3

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, NotFound, PeerUnavailable, WrongState
from arraylift.ids import UnitId
from arraylift.logs import get_logger
from arraylift.sizes import MIB
from dedup_target.backup_manifest_store import BackupManifestStore
from dedup_target.cached_backend import WHOLE, CachedBackend
from dedup_target.container_store import FOLDER as CONTAINERS
from dedup_target.container_store import ContainerLimits
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.manifest_store import ManifestStore
from dedup_target.rebuild import IndexOpener, Progress
from dedup_target.replica_journal import ReplicaJournal, WatchedBackend
from dedup_target.replica_view import ReplicaBackend, ReplicaView
from dedup_target.reserve import Reserve
from dedup_target.s3_backend import SCHEME
from dedup_target.storage_unit import StorageUnit
from dedup_target.superblock import FIRST_UNIT, Role, Superblock
from dedup_target.unit_backend import UnitBackend, walk
from dedup_target.unit_place import Places, find_or_make, lost_superblock, read_superblock
from dedup_target.unit_registry import UnitEntry, UnitRegistry

FIRST_LOCATION = "units/active"
OWNER_NAME = "owner.alu"
ARCHIVE_LIMITS = ContainerLimits(buffers_max=2, cache_bytes_max=80 * MIB, prefetch_max=1)
"""Two containers of 32 MiB in the making, two in memory: one of data, one of nodes."""

_log = get_logger("units")


def owner_of(wrapping_key: bytes) -> bytes:
    """What a unit says of the target whose it is: follows from the wrapping key, which it does not tell."""
    return blake3(b"owner of a storage unit", key=wrapping_key).hexdigest().encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Member:
    """One unit: open, or what its replica knows of it."""

    entry: UnitEntry
    unit: StorageUnit | None
    view: StorageUnit | ReplicaView
    problem: str = ""
    """Why it is absent; empty if it is not."""

    @property
    def manifests(self) -> ManifestStore:
        return self.view.manifests

    @property
    def backups(self) -> BackupManifestStore:
        return self.view.backups

    def opened(self) -> StorageUnit:
        """Raises PeerUnavailable if it is absent."""
        if self.unit is None or self.problem:
            raise PeerUnavailable(
                f"unit {self.entry.name} is absent: {self.problem}",
                subject=f"unit {self.entry.name}",
                next_step=f"make {self.entry.location} reachable; the target takes it back by itself",
            )
        return self.unit


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """What all units of a target are opened with."""

    index_root: str
    wrapping_key: bytes
    reserve: Reserve
    journal: ReplicaJournal
    limits: ContainerLimits | None = None
    opener_of: Callable[[UnitId], IndexOpener] | None = None
    progress: Progress | None = None
    before_rebuilt: Callable[[UnitId], None] = lambda _: None
    """Called when a unit's index is about to be replaced by one made anew."""


class Units:
    """See the module's invariants."""

    def __init__(
        self, files: Files, state_path: str, registry: UnitRegistry, places: Places, settings: UnitSettings
    ) -> None:
        """Open every unit. Raises what opening the receiving one raises (N1)."""
        self._files = files
        self._state = state_path
        self._registry = registry
        self._places = places
        self._settings = settings
        self.lock = threading.RLock()
        self._members: tuple[Member, ...] = ()
        if not registry.exists:
            self._make_first()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._open_all()
            self._gather_keys()
            undo.pop_all()
        settings.journal.is_kept = len(self._members) > 1

    def _make_first(self) -> None:
        self._files.make_dirs(self._places.path_of(FIRST_LOCATION))
        found = find_or_make(self._places.open(FIRST_LOCATION), FIRST_UNIT, Role.ACTIVE)
        self._registry.publish((UnitEntry(found.name, found.unit_id, found.role, FIRST_LOCATION),))

    def _open_all(self) -> None:
        entries = self._registry.entries
        first = self._registry.receiving
        if first is None:
            raise WrongState("no active unit of this target takes backups", next_step="restore units.alr")
        receiving = self._open(first)
        self._members = (Member(first, receiving, receiving),)
        self._members = tuple(
            self._members[0] if entry is first else self._opened_or_absent(entry) for entry in entries
        )

    def _opened_or_absent(self, entry: UnitEntry) -> Member:
        try:
            unit = self._open(entry)
        except ArrayliftError as error:
            _log.error("unit_absent", unit=entry.name, why=str(error))
            view = ReplicaView(self._kept_of(entry), self.receiving.seal_manifest)
            return Member(entry, None, view, error.message)
        # A store that does not answer must not hold the start up: ``look_after`` asks it right after.
        is_far = entry.location.startswith(SCHEME)
        return Member(entry, unit, unit, "" if is_far else self._probe(entry, unit))

    def _kept_of(self, entry: UnitEntry) -> UnitBackend:
        """What is known of a unit that cannot be opened: its cache, which lacks nothing that was answered, or
        its replica, which may be a moment behind."""
        cache = DirectoryBackend(self._files, self._cache_path(entry.unit_id), make=False)
        return cache if cache.exists(WHOLE) else ReplicaBackend(self.receiving.backend, entry.unit_id)

    def _open(self, entry: UnitEntry) -> StorageUnit:
        """Raises as StorageUnit, and PeerUnavailable if another unit, or none, lies there (N2)."""
        settings = self._settings
        backend = self._backend(entry)
        try:
            superblock = _superblock_of(backend)
            if superblock.unit_id != entry.unit_id:
                raise PeerUnavailable(_not_there(entry, superblock.name))
        except BaseException:
            backend.close()
            raise
        return StorageUnit(
            WatchedBackend(backend, settings.journal, entry.unit_id),
            replace(superblock, name=entry.name),
            files=self._files,
            index_root=settings.index_root,
            wrapping_key=settings.wrapping_key,
            limits=ARCHIVE_LIMITS if entry.role is Role.ARCHIVE else settings.limits,
            opener=settings.opener_of(entry.unit_id) if settings.opener_of else None,
            progress=settings.progress,
            reserve=settings.reserve,
            before_rebuilt=settings.before_rebuilt,
        )

    def _backend(self, entry: UnitEntry) -> UnitBackend:
        """An archive is reached through the cache of its metadata: it opens also while it is away."""
        place = self._places.open(entry.location, entry.endpoint, is_known=True)
        if entry.role is Role.ACTIVE:
            return place
        local = DirectoryBackend(self._files, self._cache_path(entry.unit_id))
        return CachedBackend(place, local, entry.unit_id)

    def _cache_path(self, unit_id: UnitId) -> str:
        return f"{self._state}/cache/{unit_id}"

    def _gather_keys(self) -> None:
        """Make N3 true."""
        for member in self._members:
            if member.unit is not None and member.unit is not self.receiving:
                for key in member.unit.keys.all():
                    self.receiving.keys.adopt(key)

    # -- asking -----------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Member, ...]:
        """All units, the receiving one among them."""
        return self._members

    @property
    def receiving(self) -> StorageUnit:
        """The unit that takes backups (N1)."""
        able = (one for one in self._members if one.entry.role is Role.ACTIVE and not one.entry.draining)
        first = next(able)
        assert first.unit is not None, "N1"
        return first.unit

    def open_units(self) -> Iterator[StorageUnit]:
        """Those that were opened, the receiving one first; one of them may be out of reach now."""
        receiving = self.receiving
        yield receiving
        for member in self._members:
            if member.unit is not None and member.unit is not receiving:
                yield member.unit

    def reachable(self) -> list[StorageUnit]:
        """Those that can be read now, as far as is known."""
        return [member.unit for member in self._members if member.unit is not None and not member.problem]

    def member(self, name: str) -> Member:
        """Raises NotFound."""
        for member in self._members:
            if member.entry.name == name:
                return member
        raise NotFound(f"there is no unit {name!r}", subject=f"unit {name}", next_step="list the units")

    def member_of(self, unit: StorageUnit) -> Member:
        """The member that an open unit is."""
        return next(member for member in self._members if member.unit is unit)

    # -- changing ---------------------------------------------------------------------------

    def add(self, name: str, role: Role, location: str, endpoint: str) -> Member:
        """Take a place as a unit: a new one if it is empty, else the one that is there. Idempotent.

        Raises AlreadyExists (by the caller), WrongState (foreign files, keys of another target, in
        use), InvalidRequest, PeerUnavailable, OutOfSpace.
        """
        with self.lock, contextlib.ExitStack() as undo:
            place = self._places.open(location, endpoint)
            found = find_or_make(place, name, role)
            is_ours = self._check_owner(place)
            for member in self._members:
                if member.entry.unit_id == found.unit_id:
                    raise WrongState(
                        f"{location} holds unit {member.entry.name} already", subject=f"unit {name}"
                    )
            if found.role is not role:
                raise WrongState(
                    f"the unit at {location} is {found.role}, not {role}",
                    subject=f"unit {name}",
                    next_step=f"add it as {found.role}",
                )
            entry = UnitEntry(name, found.unit_id, role, location, endpoint)
            self._drop_cache(found.unit_id)  # of an earlier stay; others may have had the unit since
            unit = self._open(entry)
            undo.callback(unit.close)
            for key in unit.keys.all():
                self.receiving.keys.check_adoptable(key)
            if not is_ours:  # not before its keys were unwrapped: it may be another target's first unit
                place.put(OWNER_NAME, [owner_of(self._settings.wrapping_key)], label="owner")
            self._registry.publish((*self._registry.entries, entry))  # G1
            undo.pop_all()
            member = Member(entry, unit, unit)
            self._settings.journal.is_kept = True
            self._members = (*self._members, member)
            self._gather_keys()
        _log.info("unit_added", unit=name, location=location, image_count=len(unit.manifests.all()))
        return member

    def _check_owner(self, place: UnitBackend) -> bool:
        """Whether a unit says that it is ours. Raises WrongState if it is another target's."""
        try:
            known = place.get(OWNER_NAME)
        except NotFound:
            return False
        if known != owner_of(self._settings.wrapping_key):
            raise WrongState(
                f"the unit at {place.location} belongs to another target",
                subject=f"unit at {place.location}",
                next_step="if that one is lost: start a new target with that one's wrapping.key",
            )
        return True

    def next_receiving(self, name: str) -> StorageUnit:
        """The unit that takes backups once ``name`` drains. Raises WrongState if there is none,
        PeerUnavailable if it is absent: it would take over when it comes back (N1)."""
        able = (one for one in self._members if one.entry.role is Role.ACTIVE and not one.entry.draining)
        found = next((one for one in able if one.entry.name != name), None)
        if found is None:
            raise WrongState(
                f"unit {name} is the only active one",
                subject=f"unit {name}",
                next_step="add another active unit first: arraylift target units add NAME --role active",
            )
        return found.opened()

    def mark_draining(self, name: str) -> None:
        """From now on nothing new comes into that unit; durable. Raises as ``next_receiving``."""
        following = self.next_receiving(name)
        with self.lock:
            for unit in self.open_units():
                for key in unit.keys.all():
                    following.keys.adopt(key)  # N3, before anybody makes a tenant's key anew there
            self._replace_entry(replace(self.member(name).entry, draining=True))

    def drop(self, name: str) -> None:
        """Forget a unit; its data stay. What this machine keeps of it goes."""
        with self.lock:
            member = self.member(name)
            assert member.unit is not self.receiving
            self._registry.publish(tuple(one for one in self._registry.entries if one.name != name))
            self._members = tuple(one for one in self._members if one is not member)
            if member.unit is not None:
                member.unit.close()
                member.unit.forget_here()
            self._drop_cache(member.entry.unit_id)
        _log.info("unit_retired", unit=name)

    def _drop_cache(self, unit_id: UnitId) -> None:
        if self._files.exists(self._cache_path(unit_id)):
            cache = DirectoryBackend(self._files, self._cache_path(unit_id))
            for name in list(walk(cache)):
                cache.remove(name, label="cache-remove", missing_ok=True)

    def _replace_entry(self, entry: UnitEntry) -> None:
        with self.lock:
            self._registry.publish(
                tuple(entry if one.unit_id == entry.unit_id else one for one in self._registry.entries)
            )
            self._members = tuple(
                replace(member, entry=entry) if member.entry.unit_id == entry.unit_id else member
                for member in self._members
            )

    # -- absence ----------------------------------------------------------------------------

    def look_after(self) -> None:
        """See which units can be reached, and take back those that are there again."""
        for member in self._members:
            if member.unit is self.receiving:
                continue
            if member.unit is None:
                fresh = self._opened_or_absent(member.entry)
            else:
                fresh = replace(member, problem=self._probe(member.entry, member.unit))
            with self.lock:
                is_listed = member in self._members
                if is_listed and fresh != member:
                    self._members = tuple(fresh if one is member else one for one in self._members)
                    self._tell(member, fresh)
            if fresh.unit is not None and not is_listed and member.unit is None:
                fresh.unit.close()  # retired while it was opened
        with self.lock:
            self._gather_keys()

    def _tell(self, before: Member, after: Member) -> None:
        if before.problem and not after.problem:
            _log.info("unit_taken_back", unit=after.entry.name)
        elif after.problem and not before.problem:
            _log.error("unit_absent", unit=after.entry.name, why=after.problem)

    def _probe(self, entry: UnitEntry, unit: StorageUnit) -> str:
        """Why the unit's place cannot be used now; empty if it can."""
        place = unit.backend
        while isinstance(place, WatchedBackend | CachedBackend):
            place = place.inner
        try:
            found = read_superblock(place)
        except ArrayliftError as error:
            return error.message
        return "" if found.unit_id == entry.unit_id else _not_there(entry, found.name)

    def close(self) -> None:
        """Close what is open."""
        for member in self._members:
            if member.unit is not None:
                member.unit.close()


def _superblock_of(backend: UnitBackend) -> Superblock:
    """Raises Corruption if it is the only thing that is missing."""
    try:
        return read_superblock(backend)
    except PeerUnavailable:
        if not isinstance(backend, CachedBackend) and backend.list(CONTAINERS):
            raise lost_superblock(backend) from None
        raise


def _not_there(entry: UnitEntry, found: str) -> str:
    return f"{entry.location} holds another unit, {found}, instead of unit {entry.unit_id}"
