"""The steps that a target may take: see ``target_model`` for what must hold over any order of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

from arraylift.errors import Conflict, Corruption, InvalidRequest, NotFound, WrongState
from arraylift.ids import ContainerId, ImageId, TenantId
from dedup_target.backup_manifest_format import BackupId, BackupManifest
from dedup_target.collect import CollectFigures, CollectOptions
from dedup_target.container_store import name_of
from dedup_target.doubt import settle_doubt
from dedup_target.image_reader import Piece
from dedup_target.lock_clock import DAY_NS
from dedup_target.move_images import MoveProgress
from dedup_target.storage_unit import StorageUnit
from dedup_target.survey import Survey
from tests.property.gc_content import bytes_of
from tests.property.gc_world import Sending
from tests.property.target_model import ACTIVE, ARCHIVE, PLACES, TargetModel
from tests.unit.dedup_target.hand_clock import SECOND_NS
from tests.unit.dedup_target.material import backup as backup_manifest

STEPS_TO_COMMIT_MAX = 60
LOCK_DAYS_MAX = 9


class TargetWorld(TargetModel):
    """See the module."""

    # -- time ----------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Stop and start in order."""
        self.note("reopen")
        for transfer in self.sending.values():
            self.abort(transfer)
        self.transfers.close()
        self.store.close()
        self.crash(power=False)

    def pass_days(self, days: int) -> None:
        """Time passes; transfers lapse."""
        self.clock.now += days * DAY_NS // SECOND_NS
        self.lapse()

    def set_wall_clock(self, days: int) -> None:
        self.note(f"wall clock {days} days off")
        self.clock.lie_ns = days * DAY_NS
        self.lock_clock.tick()

    def confirm_time(self) -> None:
        """Another daemon tells the right time."""
        with contextlib.suppress(WrongState):
            self.lock_clock.confirm(self.clock.real_ns)

    # -- ingest --------------------------------------------------------------------------------

    def open(self, transfer: Sending) -> None:
        super().open(transfer)
        if transfer.lane is None:
            return
        self.promised[transfer.transfer_id] = set()
        log = self.transfers._transfers[transfer.transfer_id].log
        durable = [transfer.content[span] for span in np.flatnonzero(log.state.covered).tolist()]
        assert self.holds(transfer.tenant, tuple(durable)), f"durable spans lost; {self.story}"

    def offer(self, transfer: Sending) -> None:
        segments = transfer.content[transfer.left[-1]]
        prints = self._prints[transfer.tenant]
        asked = len(transfer.asked)
        super().offer(transfer)
        wanted = set(transfer.asked[-1][1]) if len(transfer.asked) > asked else set()
        present = {prints[one] for place, one in enumerate(segments) if place not in wanted}
        tenant = self.tenants[transfer.tenant].tenant
        self.promised[transfer.transfer_id] |= {
            one for one in present if self.store.contains(tenant, one).all()
        }  # the others are on their way

    def next_step(self, transfer: Sending) -> None:
        conflicts = self.conflicts
        try:
            super().next_step(transfer)
        except Corruption:
            self.conflicts += 1
            self.abort(transfer)
        if ACTIVE in self.was_hurt:  # a promise may have rested on what was hurt
            self.conflicts = conflicts

    def abort(self, transfer: Sending) -> None:
        super().abort(transfer)
        self.promised.pop(transfer.transfer_id, None)

    def _committed(self, transfer: Sending) -> None:
        super()._committed(transfer)
        self.promised.pop(transfer.transfer_id, None)

    def commit(self, transfer: Sending) -> None:
        super().commit(transfer)
        self._check_looked_up(self.store.unit, transfer.image_id)

    def send_all(self, transfer: Sending) -> None:
        """To its commit, however often it must begin anew."""
        for _ in range(STEPS_TO_COMMIT_MAX):
            if transfer.transfer_id in self.sending:
                self.next_step(transfer)
        assert transfer.image_id in self.images, f"it does not commit; {self.story}"

    # -- images and backups --------------------------------------------------------------------

    def delete(self, image_id: ImageId) -> None:
        """Ask for it; what is named or locked stays."""
        self.note(f"delete {image_id[-3:]}")
        self.deleting[image_id] = self.images.pop(image_id)
        try:
            self.backups.delete_image(image_id)
        except WrongState:
            self.images[image_id] = self.deleting.pop(image_id)
            assert self._named(image_id) or image_id in self.lock_asked, f"not deleted; {self.story}"
            return
        del self.deleting[image_id]
        assert not self._named(image_id), f"a backup lost an image; {self.story}"
        self._gone(image_id)

    def _named(self, image_id: ImageId) -> bool:
        return any(image_id in image_ids for image_ids in self.backups_made.values())

    def publish(self, image_ids: list[ImageId]) -> None:
        """Make a backup over images of one tenant."""
        number = next(self._numbers)
        tenant = self.images[image_ids[0]][0]
        made: BackupManifest = backup_manifest(number, images=[int(one, 16) for one in image_ids])
        object.__setattr__(made, "tenant_name", self.tenants[tenant].name)
        self.note(f"publish {number} over {[one[-3:] for one in image_ids]}")
        self.publishing[made.backup_id] = image_ids
        self.backups.publish(made)
        self.backups_made[made.backup_id] = self.publishing.pop(made.backup_id)

    def withdraw(self, backup_id: BackupId) -> None:
        """Delete a backup, and the images that no other names."""
        self.note(f"withdraw {backup_id[-3:]}")
        image_ids = self.backups_made[backup_id]
        others = {one for key, named in self.backups_made.items() if key != backup_id for one in named}
        going = [one for one in dict.fromkeys(image_ids) if one not in others]
        self.deleting |= {one: self.images.pop(one) for one in going}
        self.withdrawing.add(backup_id)
        try:
            self.backups.remove(backup_id)
        except WrongState:
            self.images |= {one: self.deleting.pop(one) for one in going}
            self.withdrawing.remove(backup_id)
            assert self.lock_asked & {backup_id, *image_ids}, f"not withdrawn; {self.story}"
            return
        self.withdrawing.remove(backup_id)
        del self.backups_made[backup_id]
        for one in (backup_id, *going):
            self._gone(one)
        for image_id in going:
            del self.deleting[image_id]

    def lock(self, what: str, days: int) -> None:
        """Lock an image or a backup so many days from now."""
        assert days <= LOCK_DAYS_MAX
        until = self.clock.real_ns + days * DAY_NS
        self.note(f"lock {what[-3:]} for {days} days")
        image_ids = self.backups_made.get(BackupId(what), [])
        self.lock_asked |= {what, *image_ids}
        try:
            if image_ids:
                self.backups.lock_backup(BackupId(what), until)
            else:
                self.backups.lock_image(ImageId(what), until)
        except (InvalidRequest, WrongState):  # in the past for that clock; shorter
            return
        for one in (what, *image_ids):
            assert until >= self.locked.get(one, 0), f"a lock was shortened; {self.story}"
            self.locked[one] = until

    def go_on_reading(self) -> None:
        reading = self.reading[0]
        try:
            super().go_on_reading()
        except Corruption:
            assert any(self.hurt.values()), f"a reader was refused; {self.story}"
            self.refused += 1
            reading[0].close()  # type: ignore[attr-defined]

    def start_reading(self, image_id: ImageId) -> None:
        """Hold an image, and read none of it yet."""
        self.note(f"read {image_id[-3:]}")

        def pieces() -> Iterator[Piece]:
            with self.reader.held(image_id) as image:
                yield Piece(0, b"", 0)
                yield from self.reader.read(image, 0, 0)

        started = pieces()
        try:
            next(started)
        except Corruption:
            self._check_hurt(image_id)
            return
        self.reading.append((started, bytes_of(self.images[image_id][1]), 0))

    # -- maintenance ---------------------------------------------------------------------------

    def move(
        self, image_ids: list[ImageId], *, back: bool = False, between: Callable[[], None] = lambda: None
    ) -> None:
        """Move images to the archive, or all from there back; ``between`` may do anything on the way."""
        self.note(f"move {'back' if back else [one[-3:] for one in image_ids]}")
        self._between = between
        staying = [*self._newest(), *self.transfers.bases] if not back else []

        def report(progress: MoveProgress) -> None:
            self.note(f"  move {progress.images_done}/{progress.images_total} {progress.image_id[-3:]}")
            between()

        try:
            if back:
                done = self.mover.empty(self.unit(ARCHIVE), self.unit(ACTIVE), report=report)
            else:
                done = self.mover.archive(ARCHIVE, image_ids=image_ids, report=report)
        except (Corruption, Conflict):
            assert any(self.hurt.values()), f"a move was refused; {self.story}"
            return
        except NotFound:
            return  # deleted meanwhile
        finally:
            self._between = lambda: None
        self.moves += done.images_done
        for image_id in staying:  # their segments count as present where backups go
            holders = self.store.manifests.holders(image_id) if image_id in self.images else []
            assert not holders or holders[0].entry.name == ACTIVE, f"{image_id} was moved; {self.story}"
        self.note(f"  {done}")
        for image_id, why in done.kept:
            refused = "whole" in why and image_id in self.images
            source = ARCHIVE if back else ACTIVE
            assert not refused or self._hurt_in(source, image_id), f"{why}; {self.story}"

    def _newest(self) -> Iterator[ImageId]:
        """The newest image of each disk, where backups go."""
        seen = set()
        for image in self.unit(ACTIVE).manifests.all():
            if (image.tenant, image.name) not in seen:
                seen.add((image.tenant, image.name))
                yield image.image_id

    def finish_moves(self) -> None:
        """What the keeper of the archive does first."""
        with self._may_refuse(ACTIVE, ARCHIVE):
            self.mover.finish(threading.Event())

    def collect(  # type: ignore[override]
        self,
        name: str = ACTIVE,
        *,
        live_percent_min: int = 100,
        between: Callable[[], None] = lambda: None,
    ) -> CollectFigures | None:
        """One cycle of a unit; None: damage kept it from judging. Deletes what was condemned two cycles
        before and was not taken back since (law 8)."""
        unit = self.unit(name)
        before, condemned = set(unit.containers.containers()), dict(unit.gc_state.condemned)
        self.note(f"collect {name} {live_percent_min}")
        self.cycles += 1

        def report(figures: CollectFigures) -> None:
            self.note(f"  gc {figures.phase} {figures.done}/{figures.total}")
            between()

        options = CollectOptions(live_percent_min=live_percent_min)
        figures = None
        with self._may_refuse(name):
            figures = self.collector.collect(unit, options, report=report)
        gone = before - set(unit.containers.containers())
        early = {one for one in gone if condemned.get(one, unit.gc_state.cycle) + 2 > unit.gc_state.cycle}
        assert not early, f"deleted too early: {early}; {self.story}"
        self.deleted_containers += len(gone)
        return figures

    @contextlib.contextmanager
    def _may_refuse(self, *names: str) -> Iterator[None]:
        """Where something is hurt, a step may say that it cannot tell."""
        try:
            yield
        except (Corruption, Conflict) as error:
            self.note(f"  refused: {error}")
            assert any(self.hurt[name] for name in names), f"refused; {self.story}"

    def rebuild(self, name: str) -> None:
        """Make the index of a unit anew."""
        self.note(f"rebuild {name}")
        with self._may_refuse(name):
            self.rebuilder.rebuild(self.unit(name), report=lambda _: None, cancelled=threading.Event())
        assert not self.unit(name).gc_state.condemned, f"condemned after a rebuild; {self.story}"

    def settle(self) -> None:
        settle_doubt(self.store, self.reader, threading.Event())

    def catch_up(self) -> None:
        self.store.replicas.catch_up(threading.Event())

    def scrub(self, name: str) -> None:
        """One period, whole."""
        self.note(f"scrub {name}")
        unit = self.unit(name)
        scrub = self.scrubs.of(unit)
        news = scrub.run(
            bytes_per_second_max=0, restart=True, stopping=threading.Event(), report=lambda _news: None
        )
        self.scrubs_done += 1
        self.forget_caches()
        for image_id in news.period.affected_images:
            if image_id in self.images:
                assert self._hurt_in(name, image_id), f"called damaged: {image_id}; {self.story}"

    def verify(self, image_id: ImageId, max_age_seconds: int = 0) -> None:
        """What the verdict says is what a restore finds, where all was read now."""
        self.note(f"verify {image_id[-3:]}")
        verdict = self.verifier.verify(
            image_id,
            max_age_seconds=max_age_seconds,
            cancelled=threading.Event(),
            report=lambda _verdict: None,
        )
        if not verdict.whole:
            self._check_hurt(image_id)
        elif not max_age_seconds:
            self.read(image_id, strictly=True)

    def survey(self) -> None:
        """Statistics add up."""
        survey = Survey()
        with self._may_refuse(ACTIVE, ARCHIVE):
            survey = self.surveyor.survey(by_vm=True)
            total = survey.total
            for parts in (survey.units, survey.tenants):
                for name in ("container_bytes", "garbage_bytes", "image_count", "logical_bytes"):
                    assert sum(getattr(one, name) for one in parts) == getattr(total, name), name
            files = [
                self.files.size(f"{PLACES[unit.name]}/{name_of(container)}")
                for unit in self.units()
                for container in unit.containers.containers()
            ]
            assert total.container_bytes == sum(files) or any(self.worn.values()), self.story
            held = [one for image in self.images for one in self.store.manifests.holders(image)]
            assert total.image_count == len(held), self.story

    # -- damage --------------------------------------------------------------------------------

    def flip(self) -> None:
        """Flip one bit of one container."""
        name = self.draw.choice(list(PLACES))
        ids = self.unit(name).containers.containers()
        if ids:
            self._flip_in(name, self.draw.choice(ids), None)

    def flip_promised(self) -> None:
        """Flip one bit of a segment that an open attempt rests on."""
        promised = [
            (self.sending[one].tenant, name) for one, names in self.promised.items() for name in names
        ]
        if promised:
            tenant, name = self.draw.choice(sorted(promised))
            (locator,) = self.store.index.get_many(self.tenants[tenant].tenant, [name])
            if locator is not None:
                self._flip_in(ACTIVE, locator.container, locator.offset)

    def _flip_in(self, name: str, container: ContainerId, offset: int | None) -> None:
        """Flip a bit there, or anywhere."""
        unit = self.unit(name)
        sealed = unit.containers.read_directory(container)
        place = f"{PLACES[name]}/{name_of(container)}"
        tenant = next(one for one, key in self.tenants.items() if key.tenant == sealed.tenant)
        rows = sealed.directory
        if offset is None and self.draw.random() < 0.6:
            offset = int(self.draw.choice(rows["offset"].tolist()))
        elif offset is None:
            offset = self.draw.randrange(self.files.size(place))
        hit = (rows["offset"] <= offset) & (offset < rows["offset"].astype(np.int64) + rows["stored_bytes"])
        if not hit.any() or sealed.damage or container in self.worn[name]:
            hit[:] = True
        if not hit.any() or hit.all():
            self.worn[name].add(container)
        lost = {(tenant, one) for one in rows["fingerprint"][hit].tolist()}
        self.note(f"flip {name} {container} byte {offset}: {len(lost)} records")
        self.flips += 1
        self.files.corrupt(place, offset, self.draw.randrange(8))
        self.hurt[name] |= lost
        self.was_hurt.add(name)
        self.forget_caches()

    def forget_caches(self) -> None:
        """What readers hold in memory is gone."""
        for unit in self.units():
            unit.containers._cache.clear()
            unit.containers._directories.clear()
        self.reader._open.clear()

    def heal(self, image_id: ImageId) -> None:
        """Scrub, then back the same bytes up in full: the old image reads again where backups go."""
        if self._holder(image_id) != ACTIVE:
            return
        self.scrub(ACTIVE)
        tenant, content = self.images[image_id]
        self.send_all(self.begin(tenant, content, "healer", full=True))
        self.hurt[ACTIVE] -= {(tenant, one) for one in self.reach(tenant, content)}
        self.heals += 1
        self.read(image_id, strictly=True)

    # -- the end -------------------------------------------------------------------------------

    def check_no_garbage(self) -> None:
        """After three quiet cycles the containers of each unit have what is alive, once."""
        self._quiet()
        for unit in self.units():
            if self.hurt[unit.name] or self.worn[unit.name]:
                continue
            alive = set()
            for manifest in unit.manifests.all():
                name, content = self.images[manifest.image_id]
                alive |= {(manifest.tenant, one) for one in self.reach(name, content)}
            stored = list(self._stored(unit))
            assert len(stored) == len(set(stored)), f"stored twice in {unit.name}; {self.story}"
            assert set(stored) == alive, f"garbage or loss in {unit.name}; {self.story}"

    def _stored(self, unit: StorageUnit) -> Iterator[tuple[TenantId, bytes]]:
        """Every record of a unit, but those that are known to be bad."""
        for container in unit.containers.containers():
            sealed, bad = unit.containers.read_directory(container), unit.quarantine.bad_of(container)
            names = sealed.directory["fingerprint"].tolist()
            yield from ((sealed.tenant, name) for name in names if name not in bad)

    def check_all_goes(self) -> None:
        """Locks run out, all is deleted: after three cycles nothing is left but what is too worn to judge."""
        self.set_wall_clock(0)
        self.pass_days(LOCK_DAYS_MAX + 3)
        self.confirm_time()
        self.lock_asked.clear()
        for backup_id in list(self.backups_made):
            self.withdraw(backup_id)
        for image_id in list(self.images):
            self.delete(image_id)
        self._quiet()
        for unit in self.units():
            left = set(unit.containers.containers()) - self.worn[unit.name]
            assert not left, f"left in {unit.name}: {left}; {self.story}"

    def _quiet(self) -> None:
        for transfer in list(self.sending.values()):
            self.revoke(transfer)
        for pieces, _, _ in self.reading:
            pieces.close()  # type: ignore[attr-defined]
        self.reading.clear()
        for _ in range(3):
            for name in PLACES:
                self.collect(name)
