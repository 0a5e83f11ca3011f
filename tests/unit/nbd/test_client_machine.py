"""An NBD client's machines: every byte asked for comes once, or an error does; nothing else is believed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import Corruption, InvalidRequest, NotFound, NotPermitted, PeerUnavailable, WrongState
from arraylift.nbd import wire
from arraylift.nbd.client_handshake import REPLIES_MAX, REPLY_BYTES_MAX, ClientHandshake, Negotiated
from arraylift.nbd.client_machine import STATUS_BYTES_MAX, ClientMachine
from arraylift.nbd.uri import parse_uri

SIZE = 1 << 16
CONTENT = bytes(number * 7 % 251 for number in range(SIZE))
BASE = "base:allocation"


def machine(*, structured: bool = True, contexts: dict[int, str] | None = None) -> ClientMachine:
    return ClientMachine(Negotiated(SIZE, wire.HAS_FLAGS, 1, 1 << 20, structured, contexts or {3: BASE}))


def feed(client: ClientMachine, data: bytes) -> None:
    view = memoryview(data)
    while view:
        count = min(len(view), len(client.window))
        client.window[:count] = view[:count]
        client.filled(count)
        view = view[count:]


def chunk(kind: int, cookie: int, payload: bytes, *, done: bool = True, length: int | None = None) -> bytes:
    told = len(payload) if length is None else length
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_DONE if done else 0, kind, cookie, told) + payload


def data(cookie: int, offset: int, length: int, *, done: bool = True) -> bytes:
    payload = wire.U64.pack(offset) + CONTENT[offset : offset + length]
    return chunk(wire.CHUNK_DATA, cookie, payload, done=done)


def status(cookie: int, context: int, *extents: tuple[int, int], done: bool = True) -> bytes:
    packed = b"".join(wire.STATUS.pack(*extent) for extent in extents)
    return chunk(wire.CHUNK_STATUS, cookie, wire.U32.pack(context) + packed, done=done)


def error(cookie: int, number: int, text: bytes = b"", *, done: bool = True) -> bytes:
    return chunk(wire.CHUNK_ERROR, cookie, wire.ERROR.pack(number, len(text)) + text, done=done)


# -- reads --------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[list[bytes]]]:
    """Reads, and for each its chunks: cut anywhere, in any order, some as holes."""
    reads = draw(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3000)), min_size=1, max_size=5))
    reads = [(offset, min(length, SIZE - offset)) for offset, length in reads]
    replies = []
    for number, (offset, length) in enumerate(reads, start=1):
        cuts = sorted(draw(st.sets(st.integers(1, length), max_size=4)) | {0, length})
        pieces = draw(st.permutations(list(pairwise(cuts))))
        replies.append(
            [
                data(number, offset + start, end - start, done=place == len(pieces) - 1)
                for place, (start, end) in enumerate(pieces)
            ]
        )
    return reads, replies


def mixed(draw: Callable[[st.SearchStrategy[int]], int], replies: list[list[bytes]]) -> Iterable[bytes]:
    """The chunks of several replies, interleaved; those of one stay in order."""
    queues = [list(reply) for reply in replies]
    while any(queues):
        open_queues = [queue for queue in queues if queue]
        yield open_queues[draw(st.integers(0, len(open_queues) - 1))].pop(0)


@given(answered=answers(), draws=st.data())
def test_reads_come_whole_however_they_are_cut_and_mixed(
    answered: tuple[list[tuple[int, int]], list[list[bytes]]], draws: st.DataObject
) -> None:
    reads, replies = answered
    client = machine()
    into = [bytearray(b"\xee" * length) for _, length in reads]
    for (offset, _), buffer in zip(reads, into, strict=True):
        client.read(offset, memoryview(buffer))
    stream = b"".join(mixed(draws.draw, replies))
    cut = draws.draw(st.integers(0, len(stream)))
    feed(client, stream[:cut])
    feed(client, stream[cut:])
    assert not client.unanswered
    assert all(asked.error is None for asked in client.finished)
    for (offset, length), buffer in zip(reads, into, strict=True):
        assert bytes(buffer) == CONTENT[offset : offset + length]


@given(answered=answers(), draws=st.data())
def test_a_reply_that_lacks_or_repeats_a_chunk_is_never_taken_for_whole(
    answered: tuple[list[tuple[int, int]], list[list[bytes]]], draws: st.DataObject
) -> None:
    (offset, length), chunks = answered[0][0], answered[1][0]
    victim = draws.draw(st.integers(0, len(chunks) - 1))
    last = chunks[-1]
    if draws.draw(st.booleans()):
        broken = [*chunks[: victim + 1], chunks[victim], *chunks[victim + 1 :]]
    else:
        broken = [piece for place, piece in enumerate(chunks) if place != victim]
        if victim == len(chunks) - 1:
            broken.append(chunk(wire.CHUNK_NONE, 1, b""))
    client = machine()
    client.read(offset, memoryview(bytearray(length)))
    with pytest.raises(Corruption, match="breaks the protocol"):
        feed(client, b"".join(broken) + (last if last not in broken else b""))
    assert not client.finished or broken.count(last) > 1


def test_holes_are_zeros_that_the_server_named() -> None:
    client = machine()
    buffer = bytearray(b"\xee" * 1000)
    client.read(100, memoryview(buffer))
    feed(client, chunk(wire.CHUNK_HOLE, 1, wire.HOLE.pack(100, 400), done=False) + data(1, 500, 600))
    assert bytes(buffer) == bytes(400) + CONTENT[500:1100]


def test_simple_replies_where_nothing_else_was_agreed() -> None:
    client = machine(structured=False)
    buffer = bytearray(10)
    client.read(5, memoryview(buffer))
    client.read(7, memoryview(bytearray(3)))
    feed(client, wire.SIMPLE.pack(wire.SIMPLE_MAGIC, 0, 1) + CONTENT[5:15])
    feed(client, wire.SIMPLE.pack(wire.SIMPLE_MAGIC, wire.EIO, 2))
    assert bytes(buffer) == CONTENT[5:15]
    first, second = client.finished
    assert first.error is None
    assert isinstance(second.error, Corruption)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (wire.EIO, Corruption),
        (wire.EINVAL, Corruption),
        (wire.ESHUTDOWN, PeerUnavailable),
        (wire.ENOMEM, PeerUnavailable),
        (wire.EPERM, NotPermitted),
        (0, Corruption),
    ],
)
def test_an_error_is_an_error_whatever_came_with_it(number: int, kind: type[Exception]) -> None:
    client = machine()
    client.read(0, memoryview(bytearray(1000)))
    feed(
        client,
        data(1, 0, 500, done=False) + error(1, number, b"bad\x1bsector", done=False) + data(1, 500, 500),
    )
    (asked,) = client.finished
    assert isinstance(asked.error, kind)
    assert "bad?sector" in str(asked.error)


@pytest.mark.parametrize(
    "reply",
    [
        b"\0" * 16,
        wire.SIMPLE.pack(wire.SIMPLE_MAGIC, 0, 1),  # structured replies were agreed
        data(9, 0, 100),
        data(1, 50, 100),
        chunk(wire.CHUNK_DATA, 1, b"", length=1 << 31),
        chunk(wire.CHUNK_DATA, 1, wire.U64.pack(0)),
        chunk(wire.CHUNK_HOLE, 1, wire.HOLE.pack(0, 0)),
        chunk(wire.CHUNK_HOLE, 1, wire.HOLE.pack(1 << 63, 100)),
        chunk(wire.CHUNK_HOLE, 1, wire.HOLE.pack(0, 0xFFFFFFFF)),
        chunk(wire.CHUNK_NONE, 1, b""),
        chunk(wire.CHUNK_NONE, 1, b"x"),
        chunk(77, 1, b""),
        chunk(wire.CHUNK_ERROR, 1, b"", length=1 << 20),
        status(1, 3, (100, 0)),
    ],
)
def test_replies_that_no_server_may_give(reply: bytes) -> None:
    client = machine()
    client.read(0, memoryview(bytearray(100)))
    with pytest.raises(Corruption, match="breaks the protocol"):
        feed(client, reply)
    assert not client.finished


def test_a_reply_without_an_end_ends() -> None:
    client = machine()
    client.read(0, memoryview(bytearray(100)))
    with pytest.raises(Corruption, match="no end"):
        feed(client, error(1, wire.EIO, done=False) * 1000)


@given(
    noise=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                chunk,
                st.sampled_from([0, 1, 2, 5, 0x8001, 0x8002, 0x9999]),
                st.integers(0, 3),
                st.binary(max_size=60),
                done=st.booleans(),
                length=st.one_of(st.none(), st.integers(0, 80)),
            ),
        ),
        max_size=8,
    )
)
def test_noise_is_refused_or_waited_on_and_nothing_worse(noise: list[bytes]) -> None:
    client = machine()
    client.read(0, memoryview(bytearray(32)))
    client.status(0, 1000)
    with contextlib.suppress(Corruption):
        feed(client, b"".join(noise))
    assert all(asked.error is not None or asked.is_status or asked.whole for asked in client.finished)
    assert len(client.window) <= STATUS_BYTES_MAX


# -- block status -------------------------------------------------------------------------------


def test_block_status_of_several_contexts() -> None:
    client = machine(contexts={1: BASE, 2: "qemu:dirty-bitmap:b"})
    client.status(0, 1000)
    feed(client, status(1, 2, (500, 1), (9_000, 0), done=False) + status(1, 1, (1000, 3)))
    (asked,) = client.finished
    assert {name: extents.tolist() for name, extents in asked.states.items()} == {
        BASE: [[1000, 3]],
        "qemu:dirty-bitmap:b": [[500, 1], [9000, 0]],
    }


@pytest.mark.parametrize(
    "reply",
    [
        status(1, 9, (1000, 0)),
        status(1, 3, (0, 0)),
        status(1, 3, (1000, 0), (1, 0)),  # goes on past what was asked
        status(1, 3),
        status(1, 3, (10, 0), done=False) + status(1, 3, (10, 0)),
        chunk(wire.CHUNK_NONE, 1, b""),
        chunk(wire.CHUNK_STATUS, 1, b"", length=STATUS_BYTES_MAX + 1),
        chunk(wire.CHUNK_STATUS, 1, wire.U32.pack(3) + bytes(9)),
        data(1, 0, 10),
        wire.SIMPLE.pack(wire.SIMPLE_MAGIC, 0, 1),
    ],
)
def test_block_statuses_that_no_server_may_give(reply: bytes) -> None:
    client = machine()
    client.status(0, 1000)
    with pytest.raises(Corruption, match="breaks the protocol"):
        feed(client, reply)


# -- negotiation --------------------------------------------------------------------------------


def talk(shake: ClientHandshake, said: bytes) -> bytes:
    """Feed a server's words as far as they are wanted; returns ours."""
    ours = shake.take_outgoing()
    while said and shake.needs and shake.done is None:
        part, said = said[: shake.needs], said[shake.needs :]
        shake.receive(part)
        ours += shake.take_outgoing()
    assert not said, "what came is taken"
    return ours


def reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return wire.option_reply(option, kind, payload)


EXPORT = reply(wire.OPT_GO, wire.REP_INFO, wire.U16.pack(wire.INFO_EXPORT) + wire.EXPORT.pack(SIZE, 1))
SIZES = reply(
    wire.OPT_GO,
    wire.REP_INFO,
    wire.U16.pack(wire.INFO_BLOCK_SIZE) + wire.BLOCK_SIZES.pack(512, 4096, 1 << 25),
)
GO = reply(wire.OPT_GO, wire.REP_ACK)
STRUCTURED = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)
CONTEXTS = reply(wire.OPT_SET_META_CONTEXT, wire.REP_META_CONTEXT, wire.U32.pack(5) + BASE.encode()) + reply(
    wire.OPT_SET_META_CONTEXT, wire.REP_ACK
)


def shake(*, tls: bool = False, contexts: tuple[str, ...] = (BASE, "qemu:dirty-bitmap:b")) -> ClientHandshake:
    return ClientHandshake("disk", contexts=contexts, tls=tls)


def test_a_negotiation() -> None:
    one = shake()
    ours = talk(one, wire.greeting() + STRUCTURED + CONTEXTS + EXPORT + SIZES + GO)
    assert one.done == Negotiated(SIZE, 1, 512, 1 << 25, True, {5: BASE})
    assert ours.startswith(wire.U32.pack(3))
    assert b"qemu:dirty-bitmap:b" in ours


def test_an_old_server_without_structured_replies_is_read_without_contexts() -> None:
    one = shake()
    talk(one, wire.greeting() + reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_UNSUP, b"no") + EXPORT + GO)
    assert one.done == Negotiated(SIZE, 1, 1, 1 << 25, False, {})


def test_nothing_is_said_or_believed_before_tls() -> None:
    one = shake(tls=True)
    ours = talk(one, wire.greeting() + reply(wire.OPT_STARTTLS, wire.REP_ACK))
    assert one.tls_due
    assert b"disk" not in ours
    assert not one.needs
    one.secured()
    talk(one, STRUCTURED + CONTEXTS + EXPORT + GO)
    assert one.done is not None
    refused = shake(tls=True)
    with pytest.raises(NotPermitted, match="no TLS"):
        talk(refused, wire.greeting() + reply(wire.OPT_STARTTLS, wire.REP_ERR_UNSUP))


@pytest.mark.parametrize(
    ("said", "error_class"),
    [
        (b"HTTP/1.1 400 Bad Re", Corruption),
        (wire.GREETING_MAGIC + b"\0\0\x42\x02\x81\x86\x12\x53" + b"\0\0", WrongState),  # oldstyle
        (wire.GREETING_MAGIC + wire.OPTION_MAGIC + b"\0\0", WrongState),
        (wire.greeting() + reply(wire.OPT_GO, wire.REP_ACK), Corruption),
        (wire.greeting() + STRUCTURED[:16] + wire.U32.pack(REPLY_BYTES_MAX + 1), Corruption),
        (wire.greeting() + reply(wire.OPT_STRUCTURED_REPLY, wire.REP_SERVER) * REPLIES_MAX, Corruption),
        (wire.greeting() + STRUCTURED + CONTEXTS + GO, Corruption),
        (
            wire.greeting()
            + STRUCTURED
            + reply(wire.OPT_SET_META_CONTEXT, wire.REP_META_CONTEXT, wire.U32.pack(5) + b"x:y")
            + reply(wire.OPT_SET_META_CONTEXT, wire.REP_ACK),
            Corruption,
        ),
        (wire.greeting() + STRUCTURED + CONTEXTS + reply(wire.OPT_GO, wire.REP_ERR_UNKNOWN, b"no"), NotFound),
        (wire.greeting() + STRUCTURED + CONTEXTS + reply(wire.OPT_GO, wire.REP_ERR_POLICY), NotPermitted),
        (wire.greeting() + STRUCTURED + CONTEXTS + reply(wire.OPT_GO, wire.REP_ERR_TLS_REQD), NotPermitted),
        (
            wire.greeting() + STRUCTURED + CONTEXTS + reply(wire.OPT_GO, wire.REP_ERR_SHUTDOWN),
            PeerUnavailable,
        ),
        (wire.greeting() + STRUCTURED + CONTEXTS + reply(wire.OPT_GO, wire.REP_ERR_UNSUP), WrongState),
    ],
)
def test_negotiations_that_fail(said: bytes, error_class: type[Exception]) -> None:
    one = shake()
    with pytest.raises(error_class):
        talk(one, said[: 18 if said.startswith(b"HTTP") else None])
    assert one.done is None


# -- URIs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nbd://h/disk", ("disk", False, "h", 10809, "", "h")),
        ("nbd://h", ("", False, "h", 10809, "", "h")),
        ("nbds://[::1]:7/a%2Fb", ("a/b", True, "::1", 7, "", "::1")),
        ("nbds://h/x?tls-hostname=n", ("x", True, "h", 10809, "", "n")),
        ("nbd+unix:///d?socket=/run/s", ("d", False, "", 0, "/run/s", "localhost")),
    ],
)
def test_uris(text: str, told: tuple[object, ...]) -> None:
    uri = parse_uri(text)
    assert (uri.export, uri.tls, uri.host, uri.port, uri.socket_path, uri.tls_name) == told


@pytest.mark.parametrize(
    "text",
    [
        "", "disk", "http://h/x", "nbd:///x", "nbd://u@h/x", "nbd://u:p@h/x", "nbd://h:99999/x", "nbd://h/x#y",
        "nbd://h/x?socket=/s", "nbd+unix:///x", "nbd+unix:///x?socket=rel", "nbd+unix://h/x?socket=/s",
        "nbd://h/x?a=b", "nbd://h/x?tls-hostname=a&tls-hostname=b", "nbd://h/\n", "nbd://h/" + "x" * 5000,
        "nbd+unix:///x?socket=/" + "s" * 200,
    ],
)  # fmt: skip
def test_uris_that_name_no_export(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_uri(text)
