"""Say whether an image is whole: by what scrub saw, and by reading what it has not seen lately.

Invariants:
  G1 "whole" means: every node and segment resolves to a record of a container that was read whole,
     from the disk, within the age that was asked for.
  G2 damage found on the way is quarantined, as scrub does, before the verdict.
The walk costs a look-up a segment, unless the store is healthy and all its containers were seen.
Limits: DAMAGED_SPANS_MAX spans by number; one container in memory; container ids of one image.
Callers: the edge, a thread a verification.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import Cancelled, Corruption, Overloaded
from arraylift.ids import ContainerId, Fingerprint, ImageId
from arraylift.logs import get_logger
from arraylift.segments.fingerprint import unpack
from arraylift.segments.tree import decode_leaf
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import span_length, spans_of
from dedup_target.manifest_format import ImageManifest
from dedup_target.scrub import Scrub
from dedup_target.segment_reader import SegmentReader
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store

SPANS_AT_ONCE = 16
DAMAGED_SPANS_MAX = 1000
WALKS_MAX = 8
"""Walked again when something was condemned, collected or copied meanwhile."""
SECOND_NS = 10**9

_log = get_logger("verify_image")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a verification is; with ``done`` also what it says."""

    containers_done: int
    containers_total: int
    bytes_read: int
    done: bool = False
    whole: bool = False
    damaged_span_count: int = 0
    damaged_spans: tuple[int, ...] = ()
    oldest_check_at_ns: int = 0


Report = Callable[[Verdict], None]


class ImageVerifier:
    """Verifications of one target's images."""

    def __init__(self, store: Store, scrub_of: Callable[[StorageUnit], Scrub], clock: Clock) -> None:
        self._store = store
        self._scrub_of = scrub_of
        self._clock = clock

    def verify(
        self, image_id: ImageId, *, max_age_seconds: int, cancelled: threading.Event, report: Report
    ) -> Verdict:
        """Return the verdict. ``max_age_seconds`` 0: read all of the image now.

        Raises NotFound, Cancelled, PeerUnavailable, Overloaded (something changed at every look).
        """
        began_at = self._clock.wall_ns()
        since = began_at - max_age_seconds * SECOND_NS if max_age_seconds else began_at
        unit = self._store.manifests.unit_of(image_id)
        manifest = unit.manifests.get(image_id)
        with unit.pins.hold_root(manifest.tenant, manifest.root):
            unit.manifests.get(image_id)  # it may have been deleted just before
            at_once = self._at_once(unit, since) if max_age_seconds else None
            if at_once is not None:
                return at_once
            return self._walked(unit, manifest, since, cancelled, report)

    def _at_once(self, unit: StorageUnit, since: int) -> Verdict | None:
        """The verdict of a unit in which nothing is damaged and nothing is unseen."""
        if unit is not self._store.unit or not self._store.all_healthy:
            return None
        scrub = self._scrub_of(unit)
        seen = [self._fresh(scrub, container, since) for container in unit.containers.containers()]
        if not all(seen) or not self._store.all_healthy:  # seen meanwhile, and found damaged
            return None
        oldest = min((at for at in seen if at is not None), default=self._clock.wall_ns())
        return Verdict(0, 0, 0, done=True, whole=True, oldest_check_at_ns=oldest)

    def _fresh(self, scrub: Scrub, container: ContainerId, since: int) -> int | None:
        """When it was seen, if that is recent; a time that has not come yet is none."""
        at = scrub.seen_at(container)
        return at if at is not None and since <= at <= self._clock.wall_ns() else None

    def _walked(
        self,
        unit: StorageUnit,
        manifest: ImageManifest,
        since: int,
        cancelled: threading.Event,
        report: Report,
    ) -> Verdict:
        def check() -> None:
            if cancelled.is_set():
                raise Cancelled("the verification was stopped")

        done = total = bytes_read = 0
        walk, scrub = Walk(unit, manifest, check), self._scrub_of(unit)
        for _ in range(WALKS_MAX):
            generation = unit.quarantine.generation
            walk = Walk(unit, manifest, check).run()
            unseen = sorted(one for one in walk.containers if self._fresh(scrub, one, since) is None)
            total += len(unseen)
            for container in unseen:
                check()
                report(Verdict(done, total, bytes_read))
                bytes_read += scrub.check(container)  # G2
                done += 1
            if unit.quarantine.generation == generation:
                break  # else something that the walk found may be gone
        else:
            raise Overloaded(
                f"the unit changed during each of {WALKS_MAX} looks at image {manifest.image_id}",
                subject=f"image {manifest.image_id}",
                next_step="repeat it when the garbage collection or scrub is over: what was read counts",
            )
        seen = [scrub.seen_at(container) for container in walk.containers]
        lost = sorted(walk.lost_spans)
        if lost:
            _log.error("image_damaged", image=manifest.image_id, name=manifest.name, lost_spans=len(lost))
        return Verdict(
            done,
            total,
            bytes_read,
            done=True,
            whole=not lost,
            damaged_span_count=len(lost),
            damaged_spans=tuple(lost[:DAMAGED_SPANS_MAX]),
            oldest_check_at_ns=min((at for at in seen if at is not None), default=0),
        )


class Walk:
    """One pass over an image's tree by look-ups: which containers it needs, and what is nowhere."""

    def __init__(self, unit: StorageUnit, manifest: ImageManifest, check: Callable[[], None]) -> None:
        """``check`` is called every few spans, and may raise."""
        self._unit = unit
        self._reader = SegmentReader(unit)
        self._manifest = manifest
        self._check = check
        self._key = unit.fingerprint_key(manifest.tenant)
        self.containers: set[ContainerId] = set()
        self.lost_spans: set[int] = set()

    def run(self) -> Walk:
        """Walk; an image whose inner nodes cannot be read has lost every span."""
        try:
            leaves = TreeView(Fingerprint(self._manifest.root), self._nodes).leaves
        except Corruption:
            self.lost_spans = set(range(spans_of(self._manifest.image_bytes)))
            return self
        solid = np.flatnonzero(leaves.any(axis=1)).tolist()
        for start in range(0, len(solid), SPANS_AT_ONCE):
            self._check()
            spans = solid[start : start + SPANS_AT_ONCE]
            self._spans(spans, [leaves[span].tobytes() for span in spans])
        return self

    def _nodes(self, wanted: Sequence[Fingerprint]) -> list[bytes]:
        for locator in self._reader.locate(self._manifest.tenant, wanted):
            self.containers.add(locator.container)
        return self._reader.nodes(self._manifest.tenant, self._key, wanted)

    def _spans(self, spans: list[int], leaves: list[bytes]) -> None:
        try:
            nodes = self._nodes([Fingerprint(leaf) for leaf in leaves])
        except Corruption:
            if len(spans) == 1:
                self.lost_spans.add(spans[0])
            else:
                for span, leaf in zip(spans, leaves, strict=True):
                    self._spans([span], [leaf])
            return
        size, tenant = self._manifest.image_bytes, self._manifest.tenant
        for span, node in zip(spans, nodes, strict=True):
            wanted = unpack(decode_leaf(node, span_length(span, size)).fingerprints)
            for locator in self._unit.index.get_many(tenant, wanted):
                if locator is None:
                    self.lost_spans.add(span)
                else:
                    self.containers.add(locator.container)


def lost_images(unit: StorageUnit) -> list[ImageId]:
    """Look every image of a unit up; returns those that lack something."""
    lost = []
    for manifest in unit.manifests.all():
        if Walk(unit, manifest, lambda: None).run().lost_spans:
            _log.error("image_damaged", image=manifest.image_id, name=manifest.name)
            lost.append(manifest.image_id)
    return lost
