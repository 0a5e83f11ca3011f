"""What a backup reads: each span exactly once, or a base vouches for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.sizes import GRANULE_BYTES, SPAN_BYTES, spans_of
from primary_array.send_plan import (
    GRANULES_PER_SPAN,
    SAMPLE_SPANS_MAX,
    SAMPLE_SPANS_MIN,
    SendPlan,
    changed_plan,
    full_plan,
    mapped_spans,
    read_items,
)


def flags(bits: list[bool]) -> np.ndarray:
    return np.array(bits, dtype=np.bool_)


def check_disjoint(plan: SendPlan) -> None:
    counts = plan.read.astype(int) + plan.holes.astype(int) + plan.sample.astype(int)
    assert counts.max(initial=0) <= 1, "a span is offered once"
    assert plan.spans_to_cover == int(counts.sum())


spans = st.integers(1, 60)


@given(data=st.data(), count=spans)
def test_a_full_plan_leaves_nothing_to_inherit(data: st.DataObject, count: int) -> None:
    bits = st.lists(st.booleans(), min_size=count, max_size=count)
    mapped, durable = flags(data.draw(bits)), flags(data.draw(bits))
    plan = full_plan(mapped, durable)
    check_disjoint(plan)
    assert not plan.inherit_base
    assert not plan.sample.any()
    assert (plan.read | plan.holes | durable).all(), "N1"
    assert not (plan.read & ~mapped).any()


@given(data=st.data(), count=spans, base_spans=spans, seed=st.text(max_size=4))
def test_a_changed_plan_inherits_only_what_the_tracker_vouches_for(
    data: st.DataObject, count: int, base_spans: int, seed: str
) -> None:
    bits = st.lists(st.booleans(), min_size=count, max_size=count)
    mapped, durable, dirty = (flags(data.draw(bits)) for _ in range(3))
    plan = changed_plan(mapped, durable, np.flatnonzero(dirty), base_spans=base_spans, seed=seed)
    check_disjoint(plan)
    assert plan.inherit_base
    inherited = ~(plan.read | plan.holes | durable)
    assert not (inherited & dirty).any(), "N1: what changed is read or a hole"
    assert not inherited[base_spans:].any(), "N1: the base has no span there"
    assert not (plan.read | plan.holes)[:base_spans][~dirty[:base_spans]].any(), "nothing unchanged is read"
    assert not (plan.sample & (dirty | ~mapped | durable)).any(), "N2"
    assert not plan.sample[base_spans:].any(), "N2"
    candidates = mapped & ~dirty
    candidates[base_spans:] = False
    again = changed_plan(
        mapped, np.zeros(count, np.bool_), np.flatnonzero(dirty), base_spans=base_spans, seed=seed
    )
    assert int(again.sample.sum()) == min(SAMPLE_SPANS_MIN, int(candidates.sum()))
    assert (plan.sample == again.sample & ~durable).all(), "N2: a resumed transfer has the same sample"


@pytest.mark.parametrize(("count", "sampled"), [(1 << 10, 4), (1 << 14, 16), (1 << 20, SAMPLE_SPANS_MAX)])
def test_the_sample_is_a_share_of_the_image_within_bounds(count: int, sampled: int) -> None:
    mapped, durable = np.ones(count, np.bool_), np.zeros(count, np.bool_)
    plans = [
        changed_plan(mapped, durable, np.empty(0, np.uint64), base_spans=count, seed=str(number))
        for number in range(2)
    ]
    assert [int(plan.sample.sum()) for plan in plans] == [sampled, sampled]
    assert (plans[0].sample != plans[1].sample).any(), "another transfer looks elsewhere"


@given(data=st.data(), size_sectors=st.integers(1, 5 * SPAN_BYTES // 512), per_item=st.integers(1, 4))
def test_items_bring_each_span_once_with_its_slots(
    data: st.DataObject, size_sectors: int, per_item: int
) -> None:
    size_bytes = 512 * size_sectors
    granules = -(-size_bytes // GRANULE_BYTES)
    slots = np.array(
        data.draw(st.lists(st.integers(0, 9), min_size=granules, max_size=granules)), dtype=np.uint64
    )

    def lookup(first: int, count: int) -> np.ndarray:
        assert first >= 0
        assert first + count <= granules, "nobody looks past the end"
        return slots[first : first + count]

    mapped = mapped_spans(lookup, size_bytes)
    whole = np.zeros(spans_of(size_bytes) * GRANULES_PER_SPAN, np.uint64)
    whole[:granules] = slots
    assert mapped.tolist() == whole.reshape(-1, GRANULES_PER_SPAN).any(axis=1).tolist()
    plan = changed_plan(
        mapped,
        np.zeros_like(mapped),
        np.flatnonzero(mapped)[::2],
        base_spans=len(mapped),
        seed="s",
    )
    seen: list[int] = []
    for item in read_items(plan, lookup, size_bytes, per_item):
        assert 1 <= len(item.spans) <= per_item
        assert (np.diff(item.spans.astype(int)) > 0).all()
        for span, found in zip(item.spans.tolist(), item.slots.reshape(-1, GRANULES_PER_SPAN), strict=True):
            first = span * GRANULES_PER_SPAN
            assert found.tolist() == whole[first : first + GRANULES_PER_SPAN].tolist()
            assert bool(plan.sample[span]) == item.sample
        seen.extend(item.spans.tolist())
    assert sorted(seen) == np.flatnonzero(plan.read | plan.sample).tolist()
