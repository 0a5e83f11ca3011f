"""Say where the space goes, and what would come free: by walking every tree once.

Every byte of every container counts once, as one of three:
  stored    live segments, as they are stored
  metadata  live nodes; and of containers with anything alive: header, frames, directory, padding
  garbage   dead containers whole, and dead records of the others
Invariants:
  V1 stored + metadata + garbage = bytes of the containers: of a unit, of a tenant, of all.
  V2 what a VM needs alone is what a collection would find dead if its images were gone; what
     transfers and readers hold counts as somebody else's.
Sums are of containers that were indexed when the walk began. Memory: slots.py; by VM three bits a
slot; 32 bytes a span of the largest image. Callers: one thread, under each unit's maintenance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arraylift.errors import NotFound
from arraylift.ids import ImageId, TenantId
from arraylift.segments.tree import holes_of
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import SPAN_BYTES, span_length
from dedup_target.container_format import Kind
from dedup_target.manifest_format import ImageManifest
from dedup_target.mark import LiveTransfers, Mark
from dedup_target.segment_index import Entries
from dedup_target.segment_reader import SegmentReader
from dedup_target.slots import Bits, Places, Rows, Slots
from dedup_target.storage_unit import StorageUnit
from dedup_target.tree_walk import TreeWalk


@dataclass(slots=True)
class SpaceUse:
    """What belongs to a tenant, a unit, a VM, or to all."""

    name: str = ""
    image_count: int = 0
    logical_bytes: int = 0
    mapped_bytes: int = 0
    plain_bytes: int = 0
    stored_bytes: int = 0
    metadata_bytes: int = 0
    garbage_bytes: int = 0
    container_bytes: int = 0
    unique_stored_bytes: int = 0

    def add(self, other: SpaceUse) -> None:
        for name in SpaceUse.__slots__[1:]:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class Survey:
    """Where the space goes."""

    total: SpaceUse = field(default_factory=SpaceUse)
    tenants: list[SpaceUse] = field(default_factory=list)
    units: list[SpaceUse] = field(default_factory=list)
    vms: list[SpaceUse] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Preview:
    """What would come free."""

    image_count: int
    plain_bytes: int
    stored_bytes: int


Progress = Callable[[int, int], None]
"""Called with (roots walked, roots in all); what it raises ends the work."""


class Surveyor:
    """Surveys the units of one target."""

    def __init__(
        self, units: Callable[[], Sequence[StorageUnit]], live: Callable[[StorageUnit], LiveTransfers]
    ) -> None:
        """``units``: those that are open. ``live`` says which transfers have a unit for their own."""
        self._units = units
        self._live = live

    def survey(self, *, by_vm: bool, progress: Progress = lambda _done, _all: None) -> Survey:
        """Walk everything (V1). Raises Conflict (maintenance runs), Corruption."""
        found = Survey()
        tenants: dict[TenantId, SpaceUse] = {}
        vms: dict[str, SpaceUse] = {}
        images_by_vm = self._images_by_vm() if by_vm else {}
        for unit in self._units():
            with unit.maintenance.begin("a survey of its space"):
                here = _UnitSurvey(unit, self._live(unit), progress)
                whole = SpaceUse(unit.name)
                for tenant, use in here.by_tenant().items():
                    whole.add(use)
                    tenants.setdefault(tenant, SpaceUse(use.name)).add(use)
                found.units.append(whole)
                found.total.add(whole)
                if by_vm:
                    for name, use in here.by_vm(images_by_vm).items():
                        vms.setdefault(name, SpaceUse(name)).add(use)
        found.tenants = sorted(tenants.values(), key=lambda use: use.name)
        found.vms = sorted(vms.values(), key=lambda use: use.name)
        return found

    def preview(self, image_ids: Sequence[ImageId]) -> Preview:
        """What a collection would free if these images were gone (V2). Raises NotFound, Conflict,
        Corruption."""
        wanted = set(image_ids)
        found: set[ImageId] = set()  # one that is being moved is in two units
        plain = stored = 0
        for unit in self._units():
            chosen = [image for image in unit.manifests.all() if image.image_id in wanted]
            if chosen:
                with unit.maintenance.begin("a preview of a deletion"):
                    freed = _Sum()
                    mark = Mark(unit, self._live(unit), without=wanted)
                    mark.run()
                    walk = TreeWalk(unit, mark.slots, mark.bits, freed.met)
                    for image in chosen:
                        walk.trees(image.tenant, image.root, f"image {image.image_id}")
                found.update(image.image_id for image in chosen)
                plain, stored = plain + freed.plain_bytes, stored + freed.stored_bytes
        if found != wanted:
            lacking = len(wanted - found)
            raise NotFound(f"{lacking} of these images do not exist", next_step="list the images")
        return Preview(len(found), plain, stored)

    def images_of(self, tenant_name: str, vm_id: str) -> list[ImageId]:
        """All images in the backups of a VM. Raises NotFound, Corruption."""
        found = self._images_by_vm().get(f"{tenant_name}/{vm_id}")
        if not found:
            raise NotFound(
                f"VM {vm_id} of tenant {tenant_name} has no backup here",
                subject=f"VM {vm_id}",
                next_step="list the backups",
            )
        return sorted(found)

    def _images_by_vm(self) -> dict[str, set[ImageId]]:
        """Images of each ``tenant/vm_id``, by the backups of all units. Raises Corruption."""
        found: dict[str, set[ImageId]] = {}
        for store in [unit.backups for unit in self._units()]:
            keys = store.keys()
            for key in keys:
                with contextlib.suppress(NotFound):  # removed since
                    manifest = store.read(key.backup_id)
                    ids = found.setdefault(f"{manifest.tenant_name}/{manifest.vm_id}", set())
                    ids.update(image_id for _, image_id in manifest.images)
        return found


class _Sum:
    """Adds up what is met."""

    def __init__(self) -> None:
        self.plain_bytes = self.stored_bytes = 0

    def met(self, _rows: Rows, entries: Entries, _places: Places) -> None:
        self.plain_bytes += int(entries["plain_bytes"].sum(dtype=np.int64))
        self.stored_bytes += int(entries["stored_bytes"].sum(dtype=np.int64))


class _UnitSurvey:
    """One unit."""

    def __init__(self, unit: StorageUnit, live: LiveTransfers, progress: Progress) -> None:
        self._unit = unit
        self._live = live
        self._images = unit.manifests.all()
        self._names = {image.tenant: image.tenant_name for image in self._images}
        self._mark = Mark(unit, live)
        self._mark.run(lambda at: progress(at.done, at.total))

    def by_tenant(self) -> dict[TenantId, SpaceUse]:
        """Split the containers' bytes (V1)."""
        slots, mark = self._mark.slots, self._mark
        alive, data = mark.live_records > 0, slots.kinds == Kind.DATA
        framing = slots.file_bytes - slots.stored_bytes
        columns = {
            "plain_bytes": np.where(data, mark.live_plain_bytes, 0),
            "stored_bytes": np.where(data, mark.live_bytes, 0),
            "metadata_bytes": np.where(data, 0, mark.live_bytes) + np.where(alive, framing, 0),
            "garbage_bytes": slots.stored_bytes - mark.live_bytes + np.where(alive, 0, framing),
            "container_bytes": slots.file_bytes,
        }
        uses: dict[TenantId, SpaceUse] = {}
        for number in np.unique(slots.tenants).tolist():
            tenant = TenantId(number)
            own = slots.tenants == number
            sums = {name: int(column[own].sum()) for name, column in columns.items()}
            uses[tenant] = SpaceUse(self._name(tenant), **sums)
        for image in self._images:
            use = uses.setdefault(image.tenant, SpaceUse(image.tenant_name))
            use.add(self._sizes(image))
        for use in uses.values():
            parts = use.stored_bytes + use.metadata_bytes + use.garbage_bytes
            assert parts == use.container_bytes, "V1"
        return uses

    def by_vm(self, images_by_vm: dict[str, set[ImageId]]) -> dict[str, SpaceUse]:
        """What each VM has, and what only it needs (V2): walk each one's trees twice."""
        groups = {
            name: group
            for name, ids in images_by_vm.items()
            if (group := [image for image in self._images if image.image_id in ids])
        }
        named = {image.image_id for group in groups.values() for image in group}
        shared = _Shared(self._unit, self._mark.slots)
        shared.others(Mark(self._unit, self._live, slots=self._mark.slots, without=named))
        for group in groups.values():
            shared.first(group)
        uses = {}
        for name, group in groups.items():
            use = shared.second(group)
            use.name = name
            for image in group:
                use.add(self._sizes(image))
            uses[name] = use
        return uses

    def _name(self, tenant: TenantId) -> str:
        if tenant not in self._names:
            self._names[tenant] = self._unit.keys.by_id(tenant).name
        return self._names[tenant]

    def _sizes(self, image: ImageManifest) -> SpaceUse:
        reader, key = SegmentReader(self._unit), self._unit.fingerprint_key(image.tenant)
        view = TreeView(image.root, lambda wanted: reader.nodes(image.tenant, key, wanted))
        solid = np.flatnonzero(~holes_of(view.leaves))
        mapped = len(solid) * SPAN_BYTES
        if len(solid) and solid[-1] == view.spans - 1:
            mapped -= SPAN_BYTES - span_length(view.spans - 1, image.image_bytes)
        return SpaceUse(image_count=1, logical_bytes=image.image_bytes, mapped_bytes=mapped)


class _Shared:
    """Which places more than one VM needs."""

    def __init__(self, unit: StorageUnit, slots: Slots) -> None:
        self._unit = unit
        self._slots = slots
        self._own = Bits(slots.count)
        self._once = Bits(slots.count)
        self._twice = Bits(slots.count)

    def others(self, mark: Mark) -> None:
        """Count everything that belongs to no VM as one more."""
        mark.run()
        self._once = mark.bits

    def first(self, group: list[ImageManifest]) -> None:
        """Count one VM's places."""

        def met(_rows: Rows, _entries: Entries, places: Places) -> None:
            again = ~self._once.fresh(places)
            self._twice.fresh(places[again])

        self._walk(group, met)

    def second(self, group: list[ImageManifest]) -> SpaceUse:
        """Add up one VM's places, and those that only it has."""
        use = SpaceUse()

        def met(rows: Rows, entries: Entries, places: Places) -> None:
            data = self._slots.kinds[rows] == Kind.DATA
            stored: npt.NDArray[np.int64] = entries["stored_bytes"].astype(np.int64)
            use.plain_bytes += int(entries["plain_bytes"][data].sum(dtype=np.int64))
            use.stored_bytes += int(stored[data].sum())
            use.metadata_bytes += int(stored[~data].sum())
            use.unique_stored_bytes += int(stored[~self._twice.has(places)].sum())

        self._walk(group, met)
        return use

    def _walk(self, group: list[ImageManifest], met: Callable[[Rows, Entries, Places], None]) -> None:
        self._own.clear()
        walk = TreeWalk(self._unit, self._slots, self._own, met)
        for image in group:
            walk.trees(image.tenant, image.root, f"image {image.image_id}")
