"""One offer of spans whose plain bytes the sender has: cut, fingerprinted, compressed when wanted.

Invariants:
  B1 segments are views of the spans' buffer, which is given back by ``release``, not before.
  B2 a span that is all zero is offered as a hole, whoever says otherwise (tree T1).
Callers: a lane's BatchSource, on the lane's thread. Source: US 2016/0170666 [0040], [0054].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from arraylift.exchange.messages import NO_RUNS, Offer, Segments
from arraylift.exchange.sender import Wanted
from arraylift.segments.codecs import compress_lz4
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.segmentation import Segmenter
from arraylift.sizes import MIB

SEGMENTS_MESSAGE_BYTES = MIB
"""A Segments message is closed when its payload passes this."""


class CutBatch:
    """A Prepared of arraylift.exchange.lane."""

    def __init__(
        self,
        spans: Iterable[tuple[int, memoryview]],
        *,
        segmenter: Segmenter,
        key: FingerprintKey,
        sample: bool = False,
        give_back: Callable[[], None],
    ) -> None:
        """Cut spans, given with their bytes in ascending order; zero spans become holes (B2)."""
        self._sample = sample
        self._give_back: Callable[[], None] | None = give_back
        self._pieces: list[memoryview] = []
        self._spans: list[int] = []
        self._counts: list[int] = []
        self._holes: list[int] = []
        for span, view in spans:
            if is_zero(view):
                self._holes.append(span)
                continue
            pieces = segmenter.cut(view)
            self._spans.append(span)
            self._counts.append(len(pieces))
            self._pieces.extend(pieces)
        self._fingerprints = key.segments(self._pieces)

    @property
    def hole_count(self) -> int:
        """Spans that turned out to be zero."""
        return len(self._holes)

    @property
    def span_count(self) -> int:
        """Spans that this offer accounts for."""
        return len(self._spans) + len(self._holes)

    def offer(self, batch: int) -> Offer:
        holes = np.array([(span, 1) for span in self._holes], dtype="<u4").reshape(-1, 2)
        return Offer(
            batch=batch,
            spans=np.array(self._spans, dtype="<u4"),
            counts=np.array(self._counts, dtype="<u2"),
            lengths=np.array([len(piece) for piece in self._pieces], dtype="<u4"),
            fingerprints=self._fingerprints,
            hole_runs=holes if self._holes else NO_RUNS,
            sample=self._sample,
        )

    def segments(self, wanted: Wanted) -> Iterator[tuple[Segments, int]]:
        """Compress what is wanted, about 1 MiB a message."""
        codecs, lengths, payload, plain_bytes = bytearray(), [], [], 0
        stored_bytes = 0
        for index in wanted.indexes.tolist():
            piece = self._pieces[index]
            codec, stored = compress_lz4(piece)
            codecs.append(codec)
            lengths.append(len(stored))
            payload.append(stored)
            stored_bytes += len(stored)
            plain_bytes += len(piece)
            if stored_bytes >= SEGMENTS_MESSAGE_BYTES:
                yield _message(wanted.batch, codecs, lengths, payload), plain_bytes
                codecs, lengths, payload, plain_bytes = bytearray(), [], [], 0
                stored_bytes = 0
        if payload:
            yield _message(wanted.batch, codecs, lengths, payload), plain_bytes

    def release(self) -> None:
        if self._give_back is not None:
            give_back, self._give_back, self._pieces = self._give_back, None, []
            give_back()


def _message(
    batch: int, codecs: bytearray, lengths: list[int], payload: list[bytes | memoryview]
) -> Segments:
    return Segments(batch, np.frombuffer(bytes(codecs), np.uint8), np.array(lengths, dtype="<u4"), payload)


def is_zero(view: memoryview) -> bool:
    """True if every byte of ``view`` is zero."""
    whole = len(view) // 8 * 8
    return not np.frombuffer(view[:whole], np.uint64).any() and not any(view[whole:])
