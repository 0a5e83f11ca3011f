"""What every receiver checks before it believes a segment (law 6).

Callers: any thread; pure.
"""

from __future__ import annotations

import numpy as np

from arraylift.errors import Corruption
from arraylift.exchange.receiver import Arrived
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey


def plain_segments(arrived: Arrived, key: FingerprintKey) -> list[bytes | memoryview]:
    """Return the plain bytes of the segments that arrived, in order.

    Each is decompressed within its promised length and its fingerprint recomputed.
    Raises Corruption naming the first that does not match.
    """
    message, offer = arrived.message, arrived.batch.offer
    (payload,) = message.payload
    view = memoryview(payload)
    lengths = offer.lengths[arrived.indexes].tolist()
    plain, start = [], 0
    for codec, stored, length in zip(
        message.codecs.tolist(), message.stored_lengths.tolist(), lengths, strict=True
    ):
        plain.append(decompress(codec, view[start : start + stored], length))
        start += stored
    promised = np.frombuffer(offer.fingerprints, np.uint8).reshape(-1, 32)[arrived.indexes]
    found = np.frombuffer(key.segments(plain), np.uint8).reshape(-1, 32)
    wrong = np.flatnonzero((found != promised).any(axis=1))
    if len(wrong):
        raise Corruption(
            f"segment {arrived.indexes[wrong[0]]} of batch {offer.batch} does not match its fingerprint",
            next_step="the sender read or sent wrong bytes; check its disk and memory, then repeat",
        )
    return plain
