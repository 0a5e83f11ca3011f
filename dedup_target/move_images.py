"""Move images between units: which, in which order, and what stays behind.

Invariants:
  V1 at every moment, after any crash too, the image is whole in one unit at least: it is published
     in the other unit after all of it is durable and was read back there, and looked up there once
     more before it is removed here. What a crash left in both is one image (all_manifests.py).
  V2 what is said of the image (its lock) and whether it still exists is decided by the manifest
     here, to the last moment.
  V3 the newest image of a disk, and images on which a transfer builds, stay in the unit that takes
     backups: it is there that their segments count as present.
  V4 a damaged image stays, with the reason; the others go on.
Callers: any thread; one move, drain or collection a unit (maintenance.py). Decision:
docs/decisions/0042-moving-images.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError, Conflict, Corruption, InvalidRequest, NotFound, WrongState
from arraylift.ids import ImageId
from arraylift.logs import get_logger
from dedup_target.image_copy import CopyFigures, ImageCopy
from dedup_target.image_reader import ImageReader
from dedup_target.manifest_format import ImageManifest
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store
from dedup_target.superblock import Role

_log = get_logger("move_images")

NEWEST, BASE = "it is the newest image of its disk", "a transfer builds on it"


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """Progress, and at the end what was done."""

    images_done: int = 0
    images_total: int = 0
    image_id: str = ""
    """Under way, or what would be moved."""
    bytes_read: int = 0
    bytes_stored: int = 0
    kept: tuple[tuple[ImageId, str], ...] = ()
    """Images that stay, and why."""
    done: bool = False


Report = Callable[[MoveProgress], None]


@dataclass(slots=True)
class _Tally:
    total: int
    report: Report
    done: int = 0
    figures: CopyFigures = field(default_factory=CopyFigures)
    kept: list[tuple[ImageId, str]] = field(default_factory=list)

    def show(self, image_id: str = "", more: CopyFigures | None = None) -> None:
        more = more or CopyFigures()
        self.report(
            MoveProgress(
                self.done,
                self.total,
                image_id,
                self.figures.bytes_read + more.bytes_read,
                self.figures.bytes_stored + more.bytes_stored,
            )
        )

    def end(self) -> MoveProgress:
        read, stored = self.figures.bytes_read, self.figures.bytes_stored
        return MoveProgress(self.done, self.total, "", read, stored, tuple(self.kept), done=True)


class Mover:
    """Moves images of one target."""

    def __init__(
        self, store: Store, images: ImageReader, *, bases: Callable[[], frozenset[ImageId]], clock: Clock
    ) -> None:
        """``bases``: images that open transfers build on (V3)."""
        self._store = store
        self._images = images
        self._bases = bases
        self._clock = clock

    # -- to an archive --------------------------------------------------------------------------

    def archive(
        self,
        to_unit: str,
        *,
        image_ids: Sequence[ImageId] = (),
        older_than_seconds: int | None = None,
        dry_run: bool = False,
        report: Report = lambda _: None,
        stopping: threading.Event | None = None,
    ) -> MoveProgress:
        """Move images out of the unit that takes backups: those named, or those that old.

        Raises NotFound (unit, image), WrongState (role), InvalidRequest, Conflict (maintenance),
        OutOfSpace, PeerUnavailable, Corruption (what was written), Cancelled.
        """
        goal = self._archive_unit(to_unit)
        source = self._store.unit
        if bool(image_ids) == (older_than_seconds is not None):
            raise InvalidRequest("name images, or an age, one of the two")
        if image_ids:
            for image_id in image_ids:
                self._store.manifests.get(image_id)
            wanted = [source.manifests.get(one) for one in image_ids if source.manifests.has(one)]
        else:
            assert older_than_seconds is not None
            before = self._clock.wall_ns() - older_than_seconds * 10**9
            wanted = [image for image in source.manifests.all() if image.committed_at_ns <= before]
        kept = self._staying(source)
        going = [image for image in reversed(wanted) if image.image_id not in kept]
        tally = _Tally(len(going), report)
        tally.kept = [(one.image_id, kept[one.image_id]) for one in wanted if one.image_id in kept]
        tally.kept += [(one, "it lies in another unit") for one in image_ids if not source.manifests.has(one)]
        if dry_run:
            for image in going:
                tally.show(image.image_id)
            return tally.end()
        return self._move_all(source, goal, going, tally, stopping, stays=self._staying)

    def _archive_unit(self, name: str) -> StorageUnit:
        if name:
            member = self._store.units.member(name)
            if member.entry.role is not Role.ARCHIVE or member.entry.draining:
                raise WrongState(
                    f"unit {name} takes no images: it is {'draining' if member.entry.draining else 'active'}",
                    subject=f"unit {name}",
                    next_step="name an archive unit",
                )
            return member.opened()
        found = [one for one in self._store.units.members if one.entry.role is Role.ARCHIVE]
        found = [one for one in found if not one.entry.draining]
        if len(found) != 1:
            raise WrongState(
                f"this target has {len(found) or 'no'} archive units to choose from",
                next_step="name one" if found else "add one: arraylift target units add",
            )
        return found[0].opened()

    def _staying(self, unit: StorageUnit) -> dict[ImageId, str]:
        """Images that must not leave the unit that takes backups, and why (V3)."""
        kept: dict[ImageId, str] = {}
        seen: set[tuple[int, str]] = set()
        for image in unit.manifests.all():
            if (image.tenant, image.name) not in seen:
                seen.add((image.tenant, image.name))
                kept[image.image_id] = NEWEST
        return {**dict.fromkeys(self._bases(), BASE), **kept}

    def finish(self, stopping: threading.Event) -> None:
        """End moves that broke off: an image that lies in two units is looked at once more, and
        removed from the one that takes backups. Raises as ``archive``."""
        for member in self._store.units.members:
            if member.entry.role is not Role.ARCHIVE or member.problem or member.entry.draining:
                continue
            source = self._store.unit.manifests
            both = [one.image_id for one in member.manifests.all() if source.has(one.image_id)]
            if both:
                self.archive(member.entry.name, image_ids=both, stopping=stopping)

    # -- out of a unit --------------------------------------------------------------------------

    def empty(
        self,
        source: StorageUnit,
        goal: StorageUnit,
        *,
        report: Report = lambda _: None,
        stopping: threading.Event | None = None,
    ) -> MoveProgress:
        """Move every image of a unit that takes no backups any more. Raises as ``archive``."""
        assert source is not self._store.unit, "V3"
        going = list(reversed(source.manifests.all()))
        return self._move_all(source, goal, going, _Tally(len(going), report), stopping, stays=lambda _: {})

    # -- both -----------------------------------------------------------------------------------

    def _move_all(
        self,
        source: StorageUnit,
        goal: StorageUnit,
        going: Sequence[ImageManifest],
        tally: _Tally,
        stopping: threading.Event | None,
        *,
        stays: Callable[[StorageUnit], dict[ImageId, str]],
    ) -> MoveProgress:
        stopping = stopping or threading.Event()
        with source.maintenance.begin("move"), goal.maintenance.begin("move"):
            for image in going:
                why = stays(source).get(image.image_id)  # a transfer may have begun meanwhile
                if why is not None:
                    tally.kept.append((image.image_id, why))
                    continue
                with self._keeping_damaged(image, tally):
                    self._move(source, goal, image, tally, stopping)
                    tally.done += 1
        return tally.end()

    @contextlib.contextmanager
    def _keeping_damaged(self, image: ImageManifest, tally: _Tally) -> Iterator[None]:
        try:
            yield
        except NotFound:  # deleted meanwhile: nothing is left to move
            return
        except _DamagedHereError as error:
            _log.error("image_not_moved", image=image.image_id, why=str(error))
            tally.kept.append((image.image_id, f"it cannot be read whole: {error}"))

    def _move(
        self,
        source: StorageUnit,
        goal: StorageUnit,
        manifest: ImageManifest,
        tally: _Tally,
        stopping: threading.Event,
    ) -> None:
        """Move one image (V1). Raises NotFound if it is deleted before anything was published."""
        tally.show(manifest.image_id)
        goal.keys.adopt(source.keys.by_id(manifest.tenant))
        generation = goal.quarantine.generation
        with source.pins.hold_root(manifest.tenant, manifest.root):
            source.manifests.get(manifest.image_id)
            figures = self._copy(source, goal, manifest, tally, stopping)
        with goal.quarantine.lock:
            if goal.quarantine.generation != generation:
                self._check_whole(goal, manifest)
            with self._store.manifests.placing:
                manifest = source.manifests.get(manifest.image_id)
                if goal.manifests.has(manifest.image_id):  # an earlier move got so far
                    goal.manifests.replace(manifest)
                else:
                    goal.manifests.publish(manifest)
        self._verify(goal, manifest)
        self._hand_over(source, goal, manifest)
        self._images.forget(manifest.image_id)
        tally.figures.bytes_read += figures.bytes_read
        tally.figures.bytes_stored += figures.bytes_stored
        _log.info(
            "image_moved",
            image=manifest.image_id,
            name=manifest.name,
            source=source.name,
            goal=goal.name,
            bytes_read=figures.bytes_read,
            bytes_stored=figures.bytes_stored,
        )

    def _copy(
        self,
        source: StorageUnit,
        goal: StorageUnit,
        manifest: ImageManifest,
        tally: _Tally,
        stopping: threading.Event,
    ) -> CopyFigures:
        image = self._images.view(source, manifest)
        copy = ImageCopy(self._images, image, goal, stopping)
        try:
            return copy.run(lambda figures: tally.show(manifest.image_id, figures))
        except Corruption as error:
            if error.subject == f"unit {goal.name}":
                raise
            raise _DamagedHereError(error.message) from error

    def _verify(self, goal: StorageUnit, manifest: ImageManifest) -> None:
        """Look the published image up; take it back if anything is missing."""
        try:
            self._check_whole(goal, manifest)
        except ArrayliftError:
            with contextlib.suppress(ArrayliftError):
                goal.manifests.remove(manifest.image_id)
            raise

    def _check_whole(self, goal: StorageUnit, manifest: ImageManifest) -> None:
        lost = self._images.lost_spans(self._images.view(goal, manifest))
        if lost:
            raise Conflict(
                f"{len(lost)} spans of image {manifest.image_id} were lost in unit {goal.name} meanwhile",
                subject=f"image {manifest.image_id}",
                next_step="repeat the move; the image is where it was",
            )

    def _hand_over(self, source: StorageUnit, goal: StorageUnit, published: ImageManifest) -> None:
        """Remove the image here, if it is still as it was published there (V2)."""
        while True:
            with self._store.commit_lock:
                latest = _find(source, published.image_id)
                if latest == published:
                    source.manifests.remove(published.image_id)
                    return
            if latest is None:
                with contextlib.suppress(NotFound):
                    goal.manifests.remove(published.image_id)
                raise NotFound(f"image {published.image_id} was deleted meanwhile")
            goal.manifests.replace(latest)
            published = latest


class _DamagedHereError(Exception):
    """The image cannot be read whole where it lies."""


def _find(unit: StorageUnit, image_id: ImageId) -> ImageManifest | None:
    try:
        return unit.manifests.get(image_id)
    except NotFound:
        return None
