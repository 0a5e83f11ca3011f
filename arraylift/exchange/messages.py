"""What is said on a lane, as plain values; the words are those of exchange.proto.

Bulk fields stay packed: numpy arrays and views of the message that brought them,
which live as long as the value does. Shapes: n spans, m segments.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.ids import ImageId, SourceState, TransferId
from arraylift.segments.segmentation import Segmentation

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

PROTOCOL_VERSION = 1
NO_RUNS: U32 = np.empty((0, 2), dtype="<u4")

WINDOW_BATCHES_MAX = 16
SPANS_PER_OFFER_MAX = 16
"""With the window: a lane never holds more than 256 MiB of image, whatever its receiver allows."""
LANES_MAX = 16


@dataclass(slots=True)
class Figures:
    """What a transfer cost; the fields of TransferFigures, which documents them."""

    spans_total: int = 0
    spans_read: int = 0
    spans_sampled: int = 0
    spans_hole: int = 0
    bytes_read: int = 0
    segments_offered: int = 0
    bytes_offered: int = 0
    segments_sent: int = 0
    bytes_sent: int = 0
    bytes_sent_wire: int = 0
    bytes_stored: int = 0
    spans_resumed: int = 0
    attempts: int = 0
    duration_ns: int = 0

    def add(self, other: Figures) -> None:
        """Add ``other``'s counts to these."""
        for name in Figures.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver asks its senders to keep to. A sender that is allowed more than the
    maxima above uses those."""

    window_batches: int = 8
    spans_per_offer_max: int = 4
    undurable_bytes_max: int = 64 << 20
    lanes_max: int = 16


@dataclass(frozen=True, slots=True)
class Base:
    """An image that the receiver holds and that this one may inherit spans from."""

    root: bytes
    image_bytes: int
    segmentation: Segmentation
    state: SourceState | None


@dataclass(frozen=True, slots=True)
class Open:
    transfer_id: TransferId
    grant: bytes = field(repr=False)
    attempt: int
    lane: int
    image_bytes: int
    segmentation: Segmentation
    source_state: SourceState | None
    key: bytes = field(default=b"", repr=False)
    root: bytes = b""
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class Opened:
    attempt: int
    limits: Limits
    tenant: str
    key: bytes = field(repr=False)
    key_id: bytes
    lease_seconds: int
    base: Base | None = None
    durable_spans: bytes = b""
    committed: Committed | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """Spans with the fingerprints of their segments. A poll is an offer of nothing: it asks
    for the Durable answers that are due."""

    batch: int
    spans: U32
    """(n,) span indexes, ascending."""
    counts: U16
    """(n,) segments of each."""
    lengths: U32
    """(m,) plain bytes of each segment."""
    fingerprints: Buffer
    """32 m bytes."""
    hole_runs: U32
    """(k, 2) first span and count of each run of zero spans."""
    sample: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    batch: int
    wanted: Flags | None
    """(m,), or up to 7 longer where a bitmap was padded; None: nothing is wanted."""
    mismatched_spans: U32 | None = None


@dataclass(frozen=True, slots=True)
class Segments:
    batch: int
    codecs: U8
    stored_lengths: U32
    payload: Sequence[Buffer]
    """The stored forms; one joined view when received."""


@dataclass(frozen=True, slots=True)
class Durable:
    batch: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class Commit:
    inherit_base: bool
    figures: Figures


@dataclass(frozen=True, slots=True)
class Committed:
    root: bytes
    image_id: ImageId
    figures: Figures


Request = Open | Offer | Segments | Commit
Reply = Opened | Missing | Durable | Committed
