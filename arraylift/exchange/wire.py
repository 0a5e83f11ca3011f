"""Messages to and from the bytes of exchange.proto, as gRPC (de)serializers.

Offer and Segments carry the bulk: they are written with one join and read as views
of the received message. Everything else, and any bulk message in a shape that our
own writer would not have produced, goes through the generated classes, so that the
format on the wire is the proto's, always (tests/property/test_exchange_wire.py).
Raises InvalidRequest for what is malformed. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
from google.protobuf.message import DecodeError

from arraylift.durable import Buffer
from arraylift.errors import InvalidRequest
from arraylift.exchange import convert
from arraylift.exchange.messages import (
    NO_RUNS,
    U8,
    U16,
    U32,
    Commit,
    Offer,
    Open,
    Reply,
    Request,
    Segments,
)
from arraylift.v1 import exchange_pb2 as pb

_OFFER_TAG, _SEGMENTS_TAG = 0x12, 0x1A
_VARINT, _BYTES = 0, 2
_KINDS = {
    _OFFER_TAG: {1: _VARINT, 2: _VARINT, 3: _BYTES, 4: _BYTES, 5: _BYTES, 6: _BYTES, 7: _BYTES},
    _SEGMENTS_TAG: {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES},
}
"""Wire type of each field that is read by hand; a message with any other is not."""
_FIELD_COUNT_MAX = 64
"""Fields of a bulk message that are read by hand; the generated code takes longer ones."""


# -- writing ------------------------------------------------------------------------------------


def encode_request(message: Request) -> bytes:
    """Serialize one request."""
    if isinstance(message, Offer):
        return _frame(_OFFER_TAG, _offer_parts(message))
    if isinstance(message, Segments):
        return _frame(_SEGMENTS_TAG, _segments_parts(message))
    if isinstance(message, Open):
        return pb.ExchangeRequest(open=convert.open_to_pb(message)).SerializeToString()
    assert isinstance(message, Commit)
    return pb.ExchangeRequest(commit=convert.commit_to_pb(message)).SerializeToString()


def encode_reply(message: Reply) -> bytes:
    """Serialize one reply."""
    return convert.reply_to_pb(message).SerializeToString()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(parts: list[Buffer], number: int, pieces: Iterable[Buffer]) -> None:
    body = list(pieces)
    length = sum(map(len, body))
    if length:
        parts.append(_varint(number << 3 | _BYTES) + _varint(length))
        parts.extend(body)


def _varint_field(parts: list[Buffer], number: int, value: int) -> None:
    if value:
        parts.append(_varint(number << 3 | _VARINT) + _varint(value))


def _frame(tag: int, parts: list[Buffer]) -> bytes:
    return b"".join([bytes((tag,)), _varint(sum(map(len, parts))), *parts])


def _offer_parts(offer: Offer) -> list[Buffer]:
    parts: list[Buffer] = []
    _varint_field(parts, 1, offer.batch)
    _varint_field(parts, 2, offer.sample)
    _bytes_field(parts, 3, (offer.spans.tobytes(),))
    _bytes_field(parts, 4, (offer.counts.tobytes(),))
    _bytes_field(parts, 5, (offer.fingerprints,))
    _bytes_field(parts, 6, (offer.lengths.tobytes(),))
    _bytes_field(parts, 7, (offer.hole_runs.tobytes(),))
    return parts


def _segments_parts(message: Segments) -> list[Buffer]:
    parts: list[Buffer] = []
    _varint_field(parts, 1, message.batch)
    _bytes_field(parts, 2, (message.codecs.tobytes(),))
    _bytes_field(parts, 3, (message.stored_lengths.tobytes(),))
    _bytes_field(parts, 4, message.payload)
    return parts


# -- reading ------------------------------------------------------------------------------------


def decode_request(data: bytes) -> Request:
    """Parse one request. Raises InvalidRequest."""
    fields = _bulk_fields(data)
    if fields is not None:
        return _offer(fields) if data[0] == _OFFER_TAG else _segments(fields)
    message = pb.ExchangeRequest()
    _parse(message, data)
    which = message.WhichOneof("message")
    if which == "open":
        return convert.open_from_pb(message.open)
    if which == "commit":
        return convert.commit_from_pb(message.commit)
    if which == "offer":
        return _offer(_generated_fields(message.offer))
    if which == "segments":
        return _segments(_generated_fields(message.segments))
    raise InvalidRequest("an exchange request is empty or from a newer protocol version")


def decode_reply(data: bytes) -> Reply:
    """Parse one reply. Raises InvalidRequest."""
    message = pb.ExchangeReply()
    _parse(message, data)
    return convert.reply_from_pb(message)


def _parse(message: pb.ExchangeRequest | pb.ExchangeReply, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"an exchange message of {len(data)} bytes does not parse") from error


_Fields = dict[int, int | memoryview]


def _generated_fields(message: pb.Offer | pb.Segments) -> _Fields:
    return {
        descriptor.number: memoryview(value) if isinstance(value, bytes) else int(value)
        for descriptor, value in message.ListFields()
    }


def _bulk_fields(data: bytes) -> _Fields | None:
    """Return the fields of a bulk message as views, or None to leave it to the generated code."""
    if len(data) < 2 or data[0] not in (_OFFER_TAG, _SEGMENTS_TAG):
        return None
    view, kinds = memoryview(data), _KINDS[data[0]]
    fields: _Fields = {}
    try:
        length, at = _read_varint(data, 1)
        if at + length != len(data):
            return None
        for _ in range(_FIELD_COUNT_MAX):
            if at == len(data):
                return fields
            tag, at = _read_varint(data, at)
            number, kind = tag >> 3, tag & 7
            value, at = _read_varint(data, at)
            if kinds.get(number) != kind:
                return None
            if kind == _VARINT:
                fields[number] = value
            elif at + value <= len(data):
                fields[number], at = view[at : at + value], at + value
            else:
                return None
    except IndexError:
        return None
    return None


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 1 << 64:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _number(fields: _Fields, number: int) -> int:
    value = fields.get(number, 0)
    assert isinstance(value, int), "_KINDS"
    return value


def _view(fields: _Fields, number: int) -> memoryview:
    value = fields.get(number, memoryview(b""))
    assert isinstance(value, memoryview), "_KINDS"
    return value


def _array(fields: _Fields, number: int, kind: str, item_bytes: int) -> np.ndarray:
    view = _view(fields, number)
    if len(view) % item_bytes:
        raise InvalidRequest(f"field {number} of an exchange message is not a whole number of items")
    return np.frombuffer(view, dtype=kind)


def _offer(fields: _Fields) -> Offer:
    runs = _array(fields, 7, "<u4", 8)
    return Offer(
        batch=_number(fields, 1),
        spans=cast("U32", _array(fields, 3, "<u4", 4)),
        counts=cast("U16", _array(fields, 4, "<u2", 2)),
        lengths=cast("U32", _array(fields, 6, "<u4", 4)),
        fingerprints=_view(fields, 5),
        hole_runs=cast("U32", runs.reshape(-1, 2)) if len(runs) else NO_RUNS,
        sample=bool(_number(fields, 2)),
    )


def _segments(fields: _Fields) -> Segments:
    return Segments(
        batch=_number(fields, 1),
        codecs=cast("U8", _array(fields, 2, "u1", 1)),
        stored_lengths=cast("U32", _array(fields, 3, "<u4", 4)),
        payload=(_view(fields, 4),),
    )
