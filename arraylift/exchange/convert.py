"""Exchange messages to and from the generated classes; checks what a message alone can show.

Raises InvalidRequest. Callers: wire.py, and the daemons' converters for the shared
messages (segmentation, source state, figures). Any thread.
"""

from __future__ import annotations

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.exchange.messages import (
    LANES_MAX,
    SPANS_PER_OFFER_MAX,
    WINDOW_BATCHES_MAX,
    Base,
    Commit,
    Committed,
    Durable,
    Figures,
    Limits,
    Missing,
    Open,
    Opened,
    Reply,
)
from arraylift.ids import ImageId, LineageId, PoolId, SourceState, TransferId, check_id
from arraylift.segments.segmentation import Policy, Segmentation
from arraylift.sizes import IMAGE_BYTES_MAX, SEGMENTS_PER_SPAN_MAX
from arraylift.v1 import common_pb2
from arraylift.v1 import exchange_pb2 as pb

PATIENCE_SECONDS = 60
PATIENCE_SECONDS_MAX = 3600
"""How long a sender retries without progress: unless told otherwise, and at most."""

_BITMAP_BYTES_MAX = SPANS_PER_OFFER_MAX * SEGMENTS_PER_SPAN_MAX // 8
"""One bit for each segment of the largest offer; unpacked, a bit becomes a byte."""


def _check_bytes(value: bytes, what: str, *sizes: int) -> bytes:
    if len(value) not in sizes:
        raise InvalidRequest(f"{what} has {len(value)} bytes instead of {sizes[-1]}")
    return value


def _check_image_bytes(value: int) -> int:
    if not 1 <= value <= IMAGE_BYTES_MAX:
        raise InvalidRequest(f"an image has 1 to {IMAGE_BYTES_MAX} bytes, not {value}")
    return value


# -- shared messages ----------------------------------------------------------------------------


def patience_from_pb(seconds: int) -> int:
    """Return the seconds that a sender shall retry; 0 asks for the default."""
    if seconds > PATIENCE_SECONDS_MAX:
        raise InvalidRequest(f"patience is at most {PATIENCE_SECONDS_MAX} s, not {seconds}")
    return seconds or PATIENCE_SECONDS


def segmentation_to_pb(value: Segmentation) -> common_pb2.Segmentation:
    return common_pb2.Segmentation(
        policy=int(value.policy),  # type: ignore[arg-type]
        segment_bytes_min=value.segment_bytes_min,
        segment_bytes_average=value.segment_bytes_average,
        segment_bytes_max=value.segment_bytes_max,
        span_bytes=value.span_bytes,
    )


def segmentation_from_pb(value: common_pb2.Segmentation) -> Segmentation:
    try:
        policy = Policy(value.policy)
    except ValueError:
        raise InvalidRequest(f"segmentation policy {value.policy} is unknown") from None
    return Segmentation(
        policy,
        value.segment_bytes_min,
        value.segment_bytes_average,
        value.segment_bytes_max,
        value.span_bytes,
    )


def state_to_pb(value: SourceState | None) -> common_pb2.SourceState | None:
    if value is None:
        return None
    return common_pb2.SourceState(pool_id=value.pool_id, lineage_id=value.lineage_id, birth=value.birth)


def state_from_pb(value: common_pb2.SourceState) -> SourceState | None:
    """None for an absent (empty) message."""
    if not value.pool_id and not value.lineage_id:
        return None
    return SourceState(
        PoolId(check_id(value.pool_id, "pool id")),
        LineageId(check_id(value.lineage_id, "lineage id")),
        value.birth,
    )


def figures_to_pb(value: Figures) -> common_pb2.TransferFigures:
    return common_pb2.TransferFigures(**{name: getattr(value, name) for name in Figures.__slots__})


def figures_from_pb(value: common_pb2.TransferFigures) -> Figures:
    return Figures(**{name: getattr(value, name) for name in Figures.__slots__})


# -- requests -----------------------------------------------------------------------------------


def open_to_pb(value: Open) -> pb.Open:
    return pb.Open(
        protocol_version=value.protocol_version,
        transfer_id=value.transfer_id,
        grant=value.grant,
        attempt=value.attempt,
        lane=value.lane,
        image_bytes=value.image_bytes,
        segmentation=segmentation_to_pb(value.segmentation),
        source_state=state_to_pb(value.source_state),
        key=value.key,
        root=value.root,
    )


def open_from_pb(value: pb.Open) -> Open:
    return Open(
        transfer_id=TransferId(check_id(value.transfer_id, "transfer id")),
        grant=_check_bytes(value.grant, "grant", 32),
        attempt=value.attempt,
        lane=value.lane,
        image_bytes=_check_image_bytes(value.image_bytes),
        segmentation=segmentation_from_pb(value.segmentation),
        source_state=state_from_pb(value.source_state),
        key=_check_bytes(value.key, "key", 0, 32),
        root=_check_bytes(value.root, "root", 0, 32),
        protocol_version=value.protocol_version,
    )


def commit_to_pb(value: Commit) -> pb.Commit:
    return pb.Commit(inherit_base=value.inherit_base, figures=figures_to_pb(value.figures))


def commit_from_pb(value: pb.Commit) -> Commit:
    return Commit(value.inherit_base, figures_from_pb(value.figures))


# -- replies ------------------------------------------------------------------------------------


def reply_to_pb(value: Reply) -> pb.ExchangeReply:
    if isinstance(value, Missing):
        return pb.ExchangeReply(missing=_missing_to_pb(value))
    if isinstance(value, Durable):
        return pb.ExchangeReply(durable=pb.Durable(batch=value.batch, bytes_stored=value.bytes_stored))
    if isinstance(value, Opened):
        return pb.ExchangeReply(opened=_opened_to_pb(value))
    return pb.ExchangeReply(committed=_committed_to_pb(value))


def reply_from_pb(value: pb.ExchangeReply) -> Reply:
    which = value.WhichOneof("message")
    if which == "missing":
        return _missing_from_pb(value.missing)
    if which == "durable":
        return Durable(value.durable.batch, value.durable.bytes_stored)
    if which == "opened":
        return _opened_from_pb(value.opened)
    if which == "committed":
        return _committed_from_pb(value.committed)
    raise InvalidRequest("an exchange reply is empty or from a newer protocol version")


def _missing_to_pb(value: Missing) -> pb.Missing:
    wanted, odd = value.wanted, value.mismatched_spans
    return pb.Missing(
        batch=value.batch,
        bitmap=b"" if wanted is None else np.packbits(wanted, bitorder="little").tobytes(),
        mismatched_spans=b"" if odd is None else odd.astype("<u4").tobytes(),
    )


def _missing_from_pb(value: pb.Missing) -> Missing:
    if len(value.mismatched_spans) % 4:
        raise InvalidRequest("mismatched spans are not a whole number of items")
    if len(value.bitmap) > _BITMAP_BYTES_MAX or len(value.mismatched_spans) > 4 * SPANS_PER_OFFER_MAX:
        raise InvalidRequest("a Missing answers more segments than any offer has")
    bits = np.frombuffer(value.bitmap, dtype=np.uint8)
    return Missing(
        batch=value.batch,
        wanted=np.unpackbits(bits, bitorder="little").astype(np.bool_) if len(bits) else None,
        mismatched_spans=np.frombuffer(value.mismatched_spans, "<u4") if value.mismatched_spans else None,
    )


def _opened_to_pb(value: Opened) -> pb.Opened:
    message = pb.Opened(
        attempt=value.attempt,
        limits=pb.Limits(
            window_batches=value.limits.window_batches,
            spans_per_offer_max=value.limits.spans_per_offer_max,
            undurable_bytes_max=value.limits.undurable_bytes_max,
            lanes_max=value.limits.lanes_max,
        ),
        tenant=value.tenant,
        key=value.key,
        key_id=value.key_id,
        lease_seconds=value.lease_seconds,
        durable_spans=value.durable_spans,
    )
    if value.base is not None:
        message.base_root = value.base.root
        message.base_image_bytes = value.base.image_bytes
        message.base_segmentation.CopyFrom(segmentation_to_pb(value.base.segmentation))
        state = state_to_pb(value.base.state)
        if state is not None:
            message.base_state.CopyFrom(state)
    if value.committed is not None:
        message.committed.CopyFrom(_committed_to_pb(value.committed))
    return message


def _opened_from_pb(value: pb.Opened) -> Opened:
    limits = Limits(
        min(value.limits.window_batches, WINDOW_BATCHES_MAX),
        min(value.limits.spans_per_offer_max, SPANS_PER_OFFER_MAX),
        value.limits.undurable_bytes_max,
        min(value.limits.lanes_max, LANES_MAX),
    )
    if min(limits.window_batches, limits.spans_per_offer_max, limits.lanes_max) < 1:
        raise InvalidRequest("the receiver states a limit of zero; its version does not match ours")
    base = None
    if value.base_root:
        base = Base(
            _check_bytes(value.base_root, "base root", 32),
            _check_image_bytes(value.base_image_bytes),
            segmentation_from_pb(value.base_segmentation),
            state_from_pb(value.base_state),
        )
    return Opened(
        attempt=value.attempt,
        limits=limits,
        tenant=value.tenant,
        key=_check_bytes(value.key, "key", 0, 32),
        key_id=_check_bytes(value.key_id, "key id", 0, 8),
        lease_seconds=value.lease_seconds,
        base=base,
        durable_spans=value.durable_spans,
        committed=_committed_from_pb(value.committed) if value.HasField("committed") else None,
    )


def _committed_to_pb(value: Committed) -> pb.Committed:
    return pb.Committed(root=value.root, image_id=value.image_id, figures=figures_to_pb(value.figures))


def _committed_from_pb(value: pb.Committed) -> Committed:
    return Committed(
        root=_check_bytes(value.root, "root", 32),
        image_id=ImageId(check_id(value.image_id, "image id")),
        figures=figures_from_pb(value.figures),
    )
