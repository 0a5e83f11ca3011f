"""Decide what a backup reads: everything, or what changed since the base plus a sample. Pure.

Invariants:
  N1 every span of the image is read, declared a hole, durable already, or inherited
     from a base that the array's own history vouches for.
  N2 the sample is drawn from inherited spans only, so a lying tracker is caught, and
     the same transfer draws the same sample when it resumes.
Source: US 2016/0170666 [0047]-[0052]. Callers: send.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.exchange.messages import Flags
from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of

GRANULES_PER_SPAN = SPAN_BYTES // GRANULE_BYTES
SAMPLE_SPANS_MIN = 4
SAMPLE_SPANS_MAX = 64
SAMPLE_SHARE = 1 / 1024
"""Unchanged spans that are read all the same: a share of the image within the two bounds."""

Slots = npt.NDArray[np.uint64]
SlotLookup = Callable[[int, int], Slots]
"""(first granule, count) -> their slots, 0 where unmapped."""

_LOOKUP_GRANULES = 1 << 18
"""Granules looked at together when a whole map is scanned: 2 MiB of slots."""


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Flags, one a span: read and offer; declare a hole; read and compare with the base."""

    read: Flags
    holes: Flags
    sample: Flags
    inherit_base: bool

    @property
    def spans_to_cover(self) -> int:
        """Spans that the receiver will hear of."""
        return int(self.read.sum()) + int(self.holes.sum()) + int(self.sample.sum())


def mapped_spans(lookup: SlotLookup, size_bytes: int) -> Flags:
    """True for each span with a mapped granule."""
    granules = -(-size_bytes // GRANULE_BYTES)
    flags = np.zeros(spans_of(size_bytes) * GRANULES_PER_SPAN, dtype=np.bool_)
    for first in range(0, granules, _LOOKUP_GRANULES):
        count = min(_LOOKUP_GRANULES, granules - first)
        flags[first : first + count] = lookup(first, count) != 0
    mapped: Flags = np.logical_or.reduce(flags.reshape(-1, GRANULES_PER_SPAN), axis=1)
    return mapped


def full_plan(mapped: Flags, durable: Flags) -> SendPlan:
    """Read every mapped span; the others are holes."""
    nothing = np.zeros_like(mapped)
    return SendPlan(mapped & ~durable, ~mapped & ~durable, nothing, inherit_base=False)


def changed_plan(
    mapped: Flags, durable: Flags, changed: npt.NDArray[np.integer], *, base_spans: int, seed: str
) -> SendPlan:
    """Read changed spans (indexes) and those past the base's end; inherit the rest but a sample."""
    dirty = np.zeros_like(mapped)
    dirty[changed.astype(np.intp)] = True
    dirty[base_spans:] = True
    sample = _sample(mapped & ~dirty, seed)
    return SendPlan(
        read=dirty & mapped & ~durable,
        holes=dirty & ~mapped & ~durable,
        sample=sample & ~durable,
        inherit_base=True,
    )


def _sample(candidates: Flags, seed: str) -> Flags:
    chosen = np.zeros_like(candidates)
    indexes = np.flatnonzero(candidates)
    wanted = min(SAMPLE_SPANS_MAX, max(SAMPLE_SPANS_MIN, int(len(candidates) * SAMPLE_SHARE)))
    if len(indexes):
        picks = random.Random(seed).sample(range(len(indexes)), min(wanted, len(indexes)))  # noqa: S311 - no secret
        chosen[indexes[picks]] = True
    return chosen


@dataclass(frozen=True, slots=True)
class ReadItem:
    """Spans for one offer, with the slots of their granules in order."""

    spans: npt.NDArray[np.uint32]
    slots: Slots
    """(n * GRANULES_PER_SPAN,) where each granule is at the source; 0: nowhere, or past the end."""
    sample: bool

    @property
    def bytes_to_read(self) -> int:
        """What reading it costs."""
        return int(np.count_nonzero(self.slots)) * GRANULE_BYTES


def read_items(
    plan: SendPlan, lookup: SlotLookup, size_bytes: int, spans_per_item: int
) -> Iterator[ReadItem]:
    """Yield the plan's reads, the sample first, then forward along the disk."""
    granules = -(-size_bytes // GRANULE_BYTES)
    for flags, sample in ((plan.sample, True), (plan.read, False)):
        spans = np.flatnonzero(flags)
        for start in range(0, len(spans), spans_per_item):
            chosen = spans[start : start + spans_per_item].tolist()
            slots = np.zeros((len(chosen), GRANULES_PER_SPAN), dtype=np.uint64)
            for place, span in enumerate(chosen):
                first = span * GRANULES_PER_SPAN
                count = min(GRANULES_PER_SPAN, granules - first)
                slots[place, :count] = lookup(first, count)
            yield ReadItem(np.array(chosen, dtype="<u4"), slots.ravel(), sample)


def place_runs(places: Slots) -> Iterator[tuple[int, int, int]]:
    """Yield (index, first place, count) of each run of consecutive places; 0 is none."""
    mapped = np.flatnonzero(places)
    if not len(mapped):
        return
    values = places[mapped].astype(np.int64)
    breaks = np.flatnonzero((np.diff(values) != 1) | (np.diff(mapped) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(mapped)])))
    yield from zip(mapped[starts].tolist(), values[starts].tolist(), counts.tolist(), strict=True)
