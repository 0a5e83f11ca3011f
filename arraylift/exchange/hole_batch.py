"""Offers of zero spans: runs alone, no segments. For any sender.

Callers: a lane's BatchSource.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from arraylift.exchange.coverage import runs_of
from arraylift.exchange.messages import NO_RUNS, U32, Flags, Offer, Segments
from arraylift.exchange.sender import Wanted

HOLE_RUNS_PER_OFFER = 65_536
"""Runs in one message: 512 KiB."""


class HoleBatch:
    """One offer of hole runs; nothing of it can be wanted."""

    def __init__(self, runs: U32) -> None:
        self._runs = runs

    @property
    def span_count(self) -> int:
        """Spans that this offer accounts for."""
        return int(self._runs[:, 1].sum(dtype=np.uint64))

    def offer(self, batch: int) -> Offer:
        nothing = NO_RUNS[:, 0]
        return Offer(
            batch=batch,
            spans=nothing,
            counts=nothing.astype("<u2"),
            lengths=nothing,
            fingerprints=b"",
            hole_runs=self._runs,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """The lane admits no wish for segments that were not offered."""
        assert not len(wanted.indexes), "a hole has no segments"
        return iter(())

    def release(self) -> None:
        """Nothing is held."""


def hole_batches(holes: Flags) -> Iterator[HoleBatch]:
    """Yield offers of all flagged spans."""
    runs = runs_of(holes)
    for start in range(0, len(runs), HOLE_RUNS_PER_OFFER):
        yield HoleBatch(runs[start : start + HOLE_RUNS_PER_OFFER])
