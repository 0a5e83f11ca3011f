"""A whole target over a disk in memory: ``GcWorld``, an archive, backups, locks, scrub, moves, flipped bits.

The model says which images and backups exist, until when each is locked at least by a clock that is always
right, and which records a flipped bit may have hurt, in which unit. What may be lost follows from
that alone: an image reads bit for bit unless it needs a record that was hurt where the image lies; then
it may be refused, and is never wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from arraylift.errors import Corruption
from arraylift.ids import ContainerId, ImageId, TransferId, UnitId
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION
from arraylift.segments.tree import build, encode_leaf, no_leaves
from dedup_target.backup_manifest_format import BackupId
from dedup_target.backups import Backups
from dedup_target.collect import Collector
from dedup_target.lock_clock import AGREEMENT_NS_MAX, STEP_NS_MAX, LockClock
from dedup_target.manifest_format import ImageManifest
from dedup_target.mark import LiveTransfers, NoTransfers
from dedup_target.move_images import Mover
from dedup_target.rebuild_unit import UnitRebuilder
from dedup_target.scrub import Scrub
from dedup_target.scrubs import Scrubs
from dedup_target.storage_unit import StorageUnit
from dedup_target.superblock import FIRST_UNIT, Role
from dedup_target.survey import Surveyor
from dedup_target.verify_image import ImageVerifier, lost_images
from tests.property.gc_content import CONTAINER_BYTES, POOL, Content, bytes_of, image_bytes_of
from tests.property.gc_world import GcWorld, HandClock, IndexDisk
from tests.unit.dedup_target.hand_clock import SECOND_NS, START_NS

ACTIVE, ARCHIVE = FIRST_UNIT, "archive"
PLACES = {ACTIVE: "/state/units/active", ARCHIVE: "/archive"}
SLACK_NS = STEP_NS_MAX + AGREEMENT_NS_MAX
"""How far the clock of locks may be off one that is right (test_lock_clock)."""

Record = tuple[str, bytes]
"""Name of the tenant, fingerprint."""


class TargetClock(HandClock):
    """Stands still until it is turned; the wall clock adds ``lie_ns`` to what is true."""

    def __init__(self) -> None:
        super().__init__()
        self._boot_ns = START_NS
        self.lie_ns = 0

    @property
    def real_ns(self) -> int:
        return self._boot_ns + int(self.now * SECOND_NS)

    def wall_ns(self) -> int:
        return self.real_ns + self.lie_ns + super().wall_ns()

    def boot(self) -> None:
        """Monotonic time begins anew."""
        self._boot_ns, self.now = self.real_ns, 0.0


class TargetModel(GcWorld):
    """See the module; its steps are in target_world.py."""

    clock: TargetClock

    def __init__(self, draw: random.Random) -> None:
        self.indexes: dict[UnitId, IndexDisk] = {}
        self.backups_made: dict[BackupId, list[ImageId]] = {}
        self.publishing: dict[BackupId, list[ImageId]] = {}
        self.withdrawing: set[BackupId] = set()
        """Under way when the machine died: done or not."""
        self.locked: dict[str, int] = {}
        """Ends of locks that were acknowledged, of images and backups by their ids."""
        self.lock_asked: set[str] = set()
        """Ids that may be locked: also where the answer was cut."""
        self.hurt: dict[str, set[Record]] = {ACTIVE: set(), ARCHIVE: set()}
        """Records of each unit that a flipped bit may have cost."""
        self.was_hurt: set[str] = set()
        """Units in which a bit was ever flipped."""
        self.worn: dict[str, set[ContainerId]] = {ACTIVE: set(), ARCHIVE: set()}
        """Containers with a flipped bit outside of their records."""
        self.promised: dict[TransferId, set[bytes]] = {}
        """What an open attempt was told to be present."""
        self.moves = self.flips = self.scrubs_done = self.refused = self.heals = 0
        self._between: Callable[[], None] = lambda: None
        self._reach: dict[tuple[str, Content], frozenset[bytes]] = {}
        super().__init__(draw, clock=TargetClock())

    # -- life ----------------------------------------------------------------------------------

    def index_of(self, unit_id: UnitId) -> IndexDisk:
        return self.indexes.setdefault(unit_id, IndexDisk() if self.indexes else self.disk)

    def open_store(self) -> None:
        self.clock.boot()
        self.promised.clear()
        super().open_store()
        self.transfers._stop.set()  # reaping is a step of the schedule
        self.transfers._reaper.join()
        if not self.files.exists(PLACES[ARCHIVE]):
            self.files.make_dirs(PLACES[ARCHIVE])
        if len(self.store.units.members) == 1:
            self.store.units.add(ARCHIVE, Role.ARCHIVE, PLACES[ARCHIVE], "")
        archive = self.unit(ARCHIVE)
        archive.containers.container_bytes = CONTAINER_BYTES
        for unit in self.units():
            lost = unit.report.anything_lost
            assert not (lost and unit.gc_state.condemned), f"condemned in doubt; {self.story}"
        newest = max((image.committed_at_ns for image in self.store.manifests.all()), default=None)
        self.lock_clock = LockClock(self.files, "/state", self.clock, newest_image_ns=newest)
        self.backups = Backups(self.store, self.reader, self.lock_clock)
        self.mover = Mover(self.store, self.reader, bases=lambda: self.transfers.bases, clock=self.clock)
        self._stop_between_the_copies()
        self.scrubs = Scrubs(self._scrub_of)
        self.verifier = ImageVerifier(self.store, self.scrubs.of, self.clock)
        self.collector = Collector(self._live, self.clock)
        self.surveyor = Surveyor(self.store.units.reachable, self._live)
        self.rebuilder = UnitRebuilder(self.store, self.reader)

    def _live(self, unit: StorageUnit) -> LiveTransfers:
        return self.transfers if unit is self.store.unit else NoTransfers()

    def _scrub_of(self, unit: StorageUnit) -> Scrub:
        return Scrub(unit, self.files, "/state", self.clock, affected=partial(lost_images, unit))

    def _stop_between_the_copies(self) -> None:
        """Let other steps happen while an image lies in two units."""
        verify = self.mover._verify

        def verify_then_stop(goal: StorageUnit, manifest: ImageManifest) -> None:
            verify(goal, manifest)
            if manifest.image_id in self.images:
                self._check_looked_up(goal, manifest.image_id)
            self._between()

        self.mover._verify = verify_then_stop  # type: ignore[method-assign]

    def unit(self, name: str) -> StorageUnit:
        return self.store.unit_named(name)

    def units(self) -> Iterator[StorageUnit]:
        yield from map(self.unit, PLACES)

    def crash(self, *, power: bool, index_lost: bool = False) -> None:
        archive = self.unit(ARCHIVE).unit_id
        self.indexes[archive].lost = index_lost and self.draw.random() < 0.5
        self._between = lambda: None
        super().crash(power=power, index_lost=index_lost)
        found = {key.backup_id for key in self.store.backups.keys()}  # noqa: SIM118 - not a dict
        for backup_id, image_ids in self.publishing.items():
            if backup_id in found:
                self.backups_made[backup_id] = image_ids
        for backup_id in self.withdrawing - found:
            del self.backups_made[backup_id]
        self.publishing.clear()
        self.withdrawing.clear()
        for what in self.locked.keys() - self.images.keys() - found:  # deleted, and the answer cut
            self._gone(what)
        self.check_backups()

    # -- what must hold ------------------------------------------------------------------------

    def reach(self, tenant: str, content: Content) -> frozenset[bytes]:
        """Fingerprints of all segments and nodes of an image, without the code under test."""
        known = self._reach.get((tenant, content))
        if known is None:
            known = self._reach[tenant, content] = frozenset(self._names(tenant, content))
        return known

    def _names(self, tenant: str, content: Content) -> Iterator[bytes]:
        key, prints = self._keys[tenant], self._prints[tenant]
        leaves = no_leaves(len(content))
        for place, span in enumerate(content):
            if span:
                names = [prints[one] for one in span]
                lengths = np.array([len(POOL[one]) for one in span], dtype="<u4").tobytes()
                leaf = key.node(encode_leaf(lengths, b"".join(names)))
                leaves[place] = np.frombuffer(leaf, dtype=np.uint8)
                yield leaf
                yield from names
        size = image_bytes_of(content)
        made = build(leaves, image_bytes=size, segmentation=DEFAULT_SEGMENTATION, key=key)
        yield from (name for name, _ in made)

    def _holder(self, image_id: ImageId) -> str:
        return self.store.manifests.holders(image_id)[0].entry.name

    def _hurt_in(self, name: str, image_id: ImageId) -> bool:
        tenant, content = self.images[image_id]
        return any((tenant, one) in self.hurt[name] for one in self.reach(tenant, content))

    def _may_be_hurt(self, image_id: ImageId) -> bool:
        return self._hurt_in(self._holder(image_id), image_id)

    def _check_hurt(self, image_id: ImageId) -> None:
        assert self._may_be_hurt(image_id), f"{image_id} is refused; {self.story}"
        self.refused += 1

    def _check_looked_up(self, unit: StorageUnit, image_id: ImageId) -> None:
        """The index knows all of an image that was published just now (REF)."""
        name, content = self.images[image_id]
        packed = b"".join(self.reach(name, content))
        assert unit.contains(self.tenants[name].tenant, packed).all(), f"{image_id} lacks; {self.story}"

    def read(self, image_id: ImageId, *, strictly: bool = False) -> None:
        """Every copy of an image, bit for bit; where it was hurt it may be refused, but ``strictly`` not
        where it is read from."""
        content = bytes_of(self.images[image_id][1])
        for member in self.store.manifests.holders(image_id):
            unit, at = member.opened(), 0
            try:
                image = self.reader.view(unit, unit.manifests.get(image_id))
                for piece in self.reader.read(image, 0, 0):
                    at = self._check_piece(piece, content)
                assert at == len(content), self.story
            except Corruption as error:
                where = f"{image_id} in {unit.name}: {error}; {self.story}"
                assert not strictly or unit.name != self._holder(image_id), where
                assert self._hurt_in(unit.name, image_id), where
                self.refused += 1

    def check(self) -> None:
        """Everything that was acknowledged, read whole."""
        found = {image.image_id for image in self.store.manifests.all()}
        assert found == set(self.images), f"images; {self.story}"
        for image_id in self.images:
            self.read(image_id)
        self.check_backups()
        self.check_promises()
        for unit in self.units():
            known, there = unit.index.indexed_containers(), set(unit.containers.containers())
            assert known == there or self.worn[unit.name], f"index of {unit.name}; {self.story}"
            assert unit.quarantine.is_empty or unit.name in self.was_hurt, f"quarantine; {self.story}"
        assert self.conflicts == 0, f"a promise was broken; {self.story}"

    def check_backups(self) -> None:
        """Backups, what they name, and all locks are there."""
        found = {key.backup_id: list(key.image_ids) for key in self.store.backups.keys()}  # noqa: SIM118
        assert found == self.backups_made, f"backups; {self.story}"
        for image_ids in found.values():
            assert set(image_ids) <= set(self.images), f"a backup lost an image; {self.story}"
        for what, until in self.locked.items():
            if what in found:
                held = self.store.backups.key(BackupId(what)).lock_until_ns
            else:
                held = self.store.manifests.get(ImageId(what)).lock_until_ns
            assert (held or 0) >= until, f"the lock of {what} was lost; {self.story}"

    def check_promises(self) -> None:
        """What open attempts were told is there, is there, and so is what their logs hold (law 7)."""
        for transfer_id, transfer in self.sending.items():
            state, prints = self.transfers._transfers[transfer_id].log.state, self._prints[transfer.tenant]
            durable = np.flatnonzero(state.covered).tolist() if state.attempt is not None else []
            names = {prints[one] for span in durable for one in transfer.content[span]}
            names |= self.promised.get(transfer_id, set())
            kept = [one for one in names if (transfer.tenant, one) not in self.hurt[ACTIVE]]
            present = self.store.contains(self.tenants[transfer.tenant].tenant, b"".join(kept))
            assert present.all(), f"what was promised {transfer_id} is gone; {self.story}"

    def _gone(self, what: str) -> None:
        until = self.locked.pop(what, 0)
        assert self.clock.real_ns >= until - SLACK_NS, f"{what} was locked; {self.story}"
