"""Which spans of an image a transfer has heard of: each at most once an attempt.

Callers: a receiver, under its transfer's lock; a sender, from one thread.
"""

from __future__ import annotations

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import U32, Flags, Offer


class Coverage:
    """A flag for each span."""

    def __init__(self, spans: int) -> None:
        self.flags: Flags = np.zeros(spans, dtype=np.bool_)

    @classmethod
    def from_bitmap(cls, bitmap: bytes, spans: int) -> Coverage:
        """From the packed form of Opened.durable_spans. Raises InvalidRequest on its length."""
        coverage = cls(spans)
        if bitmap:
            if len(bitmap) != -(-spans // 8):
                raise InvalidRequest(f"a bitmap of {len(bitmap)} bytes cannot cover {spans} spans")
            bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little", count=spans)
            coverage.flags = bits.astype(np.bool_)
        return coverage

    def to_bitmap(self) -> bytes:
        """The packed form; empty when no span is covered."""
        return np.packbits(self.flags, bitorder="little").tobytes() if self.flags.any() else b""

    def claim(self, offer: Offer) -> None:
        """Mark the offer's spans and holes. Raises InvalidRequest if one was claimed before;
        nothing is marked then. The offer is well formed (receiver.check_offer)."""
        spans = offer.spans.astype(np.intp)
        taken = bool(self.flags[spans].any())
        runs = [(int(first), int(first) + int(count)) for first, count in offer.hole_runs]
        if taken or any(self.flags[start:end].any() for start, end in runs):
            raise InvalidRequest(f"batch {offer.batch} offers a span that this transfer already has")
        holes = np.zeros_like(self.flags) if runs else None
        if holes is not None:
            for start, end in runs:
                holes[start:end] = True
            if holes[spans].any():
                raise InvalidRequest(f"batch {offer.batch} calls a span a hole and offers it")
            self.flags |= holes
        self.flags[spans] = True

    @property
    def count(self) -> int:
        """Spans covered."""
        return int(self.flags.sum())


def runs_of(flags: Flags) -> U32:
    """Return (k, 2) runs of true flags: first index and count."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.view(np.int8), [0]))))
    starts, ends = edges[0::2], edges[1::2]
    return np.stack((starts, ends - starts), axis=1).astype("<u4")
