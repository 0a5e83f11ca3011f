"""NBD's machines against models: the same answers however the bytes are cut, and no harm from any bytes.

The state machine goes through a real socket to a real pool.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest
from arraylift.nbd import options, wire
from arraylift.nbd.negotiation import OPTION_BYTES_MAX, Negotiation, Tls
from arraylift.nbd.replies import OUT_BYTES
from arraylift.nbd.server import Listener, NbdServer
from arraylift.nbd.transmission import Transmission
from arraylift.sizes import GRANULE_BYTES, KIB
from primary_array.exports import ArrayExports
from primary_array.pool import Pool
from tests.fakes.nbd import (
    BLOCK,
    Client,
    Decoder,
    MemoryDevice,
    MemoryExports,
    Reply,
    named,
    option,
    queries,
    request,
)

SIZE = 3 << 20
COMMANDS = (
    wire.CMD_READ,
    wire.CMD_WRITE,
    wire.CMD_TRIM,
    wire.CMD_WRITE_ZEROES,
    wire.CMD_CACHE,
    wire.CMD_BLOCK_STATUS,
    wire.CMD_FLUSH,
    9,
)


# -- requests against a model -------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    kind: int
    flags: int
    offset: int
    length: int


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    kind = draw(st.sampled_from(COMMANDS))
    flags = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8, 16, 1 << 9]))
    offset = draw(st.one_of(st.integers(0, SIZE), st.integers(0, 300).map(lambda block: block * BLOCK)))
    length = draw(st.one_of(st.integers(0, 9000), st.integers(0, SIZE), st.just(700 * KIB)))
    if draw(st.integers(0, 9)):  # mostly inside
        length = min(length, SIZE - offset)
    return Asked(kind, flags, offset, length)


def _content(asked: Asked) -> bytes:
    return random.Random(repr(asked)).randbytes(asked.length)


def _allowed(asked: Asked, *, structured: bool) -> bool:
    """Whether the protocol lets a server carry it out."""
    also = {
        wire.CMD_READ: wire.CMD_FLAG_DF if structured else 0,
        wire.CMD_WRITE_ZEROES: wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO,
        wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_REQ_ONE,
    }.get(asked.kind, 0)
    if asked.kind == 9 or asked.flags & ~(also | wire.CMD_FLAG_FUA):
        return False
    if asked.kind == wire.CMD_BLOCK_STATUS and not (structured and asked.length):
        return False
    return asked.kind == wire.CMD_FLUSH or asked.offset + asked.length <= SIZE


class Conversation:
    """Hands a stream to the machine in the cuts it is given, and models the disk beside it."""

    def __init__(self, asked: list[Asked], cuts: list[int], *, structured: bool) -> None:
        self.device = MemoryDevice(SIZE)
        self.model = bytearray(SIZE)
        self.structured = structured
        contexts = ((1, "base:allocation"), (2, "test:odd")) if structured else ()
        self.machine = Transmission(self.device, structured=structured, contexts=contexts)
        self.out = bytearray()
        self._decoder = Decoder(self._take)
        stream = b"".join(
            request(
                each.kind,
                each.offset,
                each.length,
                flags=each.flags,
                cookie=cookie,
                payload=_content(each) if each.kind == wire.CMD_WRITE else b"",
            )
            for cookie, each in enumerate(asked)
        )
        self._feed(stream, cuts)
        for cookie, each in enumerate(asked):
            if each.kind == wire.CMD_READ:
                self._decoder.reads[cookie] = each.offset, each.length
        self.replies = {reply.cookie: reply for reply in self._all()}

    def _take(self, count: int) -> bytes:
        assert len(self.out) >= count
        taken = bytes(self.out[:count])
        del self.out[:count]
        return taken

    def _feed(self, stream: bytes, cuts: list[int]) -> None:
        at = 0
        while at < len(stream):
            window = self.machine.window()
            count = min(cuts[at % len(cuts)], len(window), len(stream) - at)
            assert count > 0
            window[:count] = stream[at : at + count]
            at += count
            for buffer in self.machine.received(count):
                assert len(buffer) <= OUT_BYTES
                self.out += buffer
        assert self.machine.between_requests
        for buffer in self.machine.flushed(self.machine.take_deferred(), None):
            self.out += buffer

    def _all(self) -> Iterator[Reply]:
        while self.out:
            yield self._decoder.next()

    def check(self, cookie: int, asked: Asked) -> None:
        """Compare one reply with the model, and bring the model up to it."""
        reply = self.replies[cookie]
        assert (reply.error == 0) == _allowed(asked, structured=self.structured)
        if reply.error:
            return
        part = slice(asked.offset, asked.offset + asked.length)
        if asked.kind == wire.CMD_READ:
            assert reply.content(asked.offset, asked.length) == self.model[part]
            if asked.flags & wire.CMD_FLAG_DF:
                assert reply.chunks == 1
        elif asked.kind == wire.CMD_WRITE:
            self.model[part] = _content(asked)
        elif asked.kind in {wire.CMD_TRIM, wire.CMD_WRITE_ZEROES}:
            self.model[part] = bytes(asked.length)
        elif asked.kind == wire.CMD_BLOCK_STATUS:
            assert set(reply.states) == {1, 2}
            offset = asked.offset
            for length, state in reply.states[1]:
                assert not state or not any(self.model[offset : offset + length])
                offset += length
            assert asked.offset < offset <= asked.offset + asked.length


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.data_too_large])
@given(
    st.lists(requests(), min_size=1, max_size=12),
    st.lists(st.one_of(st.integers(1, 40), st.integers(1, 1 << 20)), min_size=1, max_size=5),
    st.booleans(),
)
def test_every_cut_of_the_stream_gets_the_models_answers(
    asked: list[Asked], cuts: list[int], structured: bool
) -> None:
    if min(cuts) < 1000 and sum(each.length for each in asked if each.kind == wire.CMD_WRITE) > 200_000:
        cuts = [cut + 5000 for cut in cuts]  # a million small steps show nothing more
    conversation = Conversation(asked, cuts, structured=structured)
    assert len(conversation.replies) == len(asked)
    for cookie, each in enumerate(asked):
        conversation.check(cookie, each)
    assert conversation.device.content == conversation.model


# -- any bytes ----------------------------------------------------------------------------------


@st.composite
def utterances(draw: st.DrawFn) -> bytes:
    """Options, whole, cut, with lies in their lengths; or anything."""
    said: bytes = draw(
        st.one_of(
            st.binary(max_size=60),
            st.builds(option, st.integers(0, 12), st.binary(max_size=80)),
            st.builds(
                lambda number, data, length: option(number, data, length=length),
                st.integers(0, 12),
                st.binary(max_size=40),
                st.integers(0, 100),
            ),
            st.builds(lambda name: option(wire.OPT_GO, named(name)), st.sampled_from(["disk", "x", ""])),
            st.just(option(wire.OPT_STRUCTURED_REPLY)),
            st.just(option(wire.OPT_SET_META_CONTEXT, queries("disk", "base:allocation"))),
        )
    )
    return said


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(Tls), st.booleans(), st.lists(utterances(), max_size=12))
def test_no_bytes_harm_a_negotiation(tls: Tls, well_begun: bool, said: list[bytes]) -> None:
    device = MemoryDevice(1 << 16)
    exports = MemoryExports({"disk": device})
    machine = Negotiation(exports, tls=tls, caller=None, hang_up=lambda: None)
    opened = 0
    with contextlib.suppress(InvalidRequest):
        for piece in [b"\0\0\0\3" if well_begun else b"", *said]:
            for answer in machine.received(piece):
                assert answer
            assert len(machine._held) <= OPTION_BYTES_MAX + wire.OPTION.size
            if machine.outcome is not None:
                break
    opened = len(exports.hang_ups)
    ready = type(machine.outcome).__name__ == "Ready"
    assert device.closed == opened - ready, "what was opened is closed, or handed on"
    if tls is Tls.DEMANDED:
        assert exports.callers == []


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.builds(
                request,
                st.integers(0, 12),
                st.integers(0, (1 << 64) - 1),
                st.integers(0, (1 << 32) - 1),
                flags=st.integers(0, (1 << 16) - 1),
                cookie=st.integers(0, (1 << 64) - 1),
                payload=st.binary(max_size=50),
            ),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_no_bytes_harm_a_transmission(said: list[bytes], read_only: bool) -> None:
    device = MemoryDevice(1 << 20, read_only=read_only)
    machine = Transmission(device, structured=True, contexts=((1, "base:allocation"),))
    with contextlib.suppress(InvalidRequest):
        for piece in said:
            machine.window()[: len(piece)] = piece
            for _ in machine.received(len(piece)):
                pass
            if machine.ended:
                break


names = st.text(st.characters(codec="utf-8"), max_size=40)


@settings(deadline=None, max_examples=50)
@given(names, st.lists(st.integers(0, 65535), max_size=5), st.lists(names, max_size=5), st.integers(1, 30))
def test_options_are_read_whole_or_not_at_all(
    name: str, infos: list[int], asked: list[str], cut: int
) -> None:
    export, contexts = named(name, *infos), queries(name, *asked)
    assert options.parse_export(export) == options.ExportRequest(name, frozenset(infos))
    assert options.parse_contexts(contexts) == options.ContextRequest(name, tuple(asked))
    for parse, data in ((options.parse_export, export), (options.parse_contexts, contexts)):
        for broken in (data[:-cut], data + b"x" * cut):
            with pytest.raises(InvalidRequest):
                parse(broken)


# -- a disk behind a socket ---------------------------------------------------------------------

VOLUME_BYTES = 5 * GRANULE_BYTES + 1536
ranges = st.tuples(
    st.one_of(st.integers(0, VOLUME_BYTES), st.integers(0, 5).map(lambda granule: granule * GRANULE_BYTES)),
    st.one_of(st.integers(0, 5000), st.sampled_from([512, GRANULE_BYTES, 2 * GRANULE_BYTES, VOLUME_BYTES])),
).map(lambda pair: (pair[0], min(pair[1], VOLUME_BYTES - pair[0])))


class DiskMachine(RuleBasedStateMachine):
    """Operations through two connections, one structured, one simple, against a bytearray."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="arraylift-nbd-"))
        files = RealFiles()
        self.pool = Pool.open(files, str(self.folder / "pool"))
        self.pool.create_volume("v", VOLUME_BYTES)
        self.exports = ArrayExports(self.pool, files, str(self.folder / "pool"))
        self.exports.create("v", volume_name="v", read_only=False)
        self.path = str(self.folder / "s")
        self.server = NbdServer([Listener(self.path, Tls.NONE)], self.exports, context=None, files=files)
        self.server.start()
        self.clients: list[Client] = []
        self.model = bytearray(VOLUME_BYTES)
        self.snapshots: list[tuple[str, bytes]] = []

    @initialize()
    def connect(self) -> None:
        for client in self.clients:
            client.close()
        contexts = ("base:allocation",)
        self.clients = [
            Client.connect(self.path, "v", contexts=contexts),
            Client.connect(self.path, "v", structured=False),
        ]
        assert {client.size_bytes for client in self.clients} == {VOLUME_BYTES}

    @rule()
    def reconnect(self) -> None:
        self.connect()

    @rule(which=st.integers(0, 1), where=ranges, value=st.integers(1, 255), fua=st.booleans())
    def write(self, which: int, where: tuple[int, int], value: int, fua: bool) -> None:
        offset, length = where
        self.clients[which].write(offset, bytes([value]) * length, flags=wire.CMD_FLAG_FUA * fua)
        self.model[offset : offset + length] = bytes([value]) * length

    @rule(
        which=st.integers(0, 1),
        where=ranges,
        kind=st.sampled_from([wire.CMD_TRIM, wire.CMD_WRITE_ZEROES]),
        hole=st.booleans(),
    )
    def clear(self, which: int, where: tuple[int, int], kind: int, hole: bool) -> None:
        flags = 0 if hole or kind == wire.CMD_TRIM else wire.CMD_FLAG_NO_HOLE
        assert self.clients[which].call(kind, *where, flags=flags).error == 0
        self.model[where[0] : where[0] + where[1]] = bytes(where[1])

    @rule(which=st.integers(0, 1), where=ranges, df=st.booleans())
    def read(self, which: int, where: tuple[int, int], df: bool) -> None:
        flags = wire.CMD_FLAG_DF if df and which == 0 else 0
        assert self.clients[which].read(*where, flags=flags) == self.model[where[0] : where[0] + where[1]]

    @rule(which=st.integers(0, 1))
    def flush(self, which: int) -> None:
        self.clients[which].flush()

    @rule(where=ranges)
    def status(self, where: tuple[int, int]) -> None:
        offset, length = where
        reply = self.clients[0].call(wire.CMD_BLOCK_STATUS, offset, length)
        if not length:
            assert reply.error == wire.EINVAL
            return
        for extent_bytes, state in reply.states[1]:
            assert state == 0 or not any(self.model[offset : offset + extent_bytes])
            offset += extent_bytes
        assert offset == sum(where)

    @rule(which=st.integers(0, 1), where=ranges)
    def outside(self, which: int, where: tuple[int, int]) -> None:
        offset, length = where[0], VOLUME_BYTES - where[0] + 1
        assert self.clients[which].call(wire.CMD_TRIM, offset, length).error == wire.EINVAL

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def snapshot(self) -> None:
        name = f"s{len(self.snapshots)}"
        made = self.pool.snapshot(["v"])[0].snapshot_id
        self.exports.create(name, snapshot_id=made, read_only=True)
        self.snapshots.append((name, bytes(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(chance=st.randoms(use_true_random=False))
    def look_back(self, chance: random.Random) -> None:
        name, content = chance.choice(self.snapshots)
        client = Client.connect(self.path, name)
        try:
            assert client.read(0, VOLUME_BYTES) == content
            assert client.call(wire.CMD_TRIM, 0, 512).error == wire.EPERM
        finally:
            client.close()

    @invariant()
    def whole(self) -> None:
        for client in self.clients:
            assert client.read(0, VOLUME_BYTES) == self.model

    def teardown(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()
        self.exports.close()
        self.pool.close()
        shutil.rmtree(self.folder)


def test_a_disk_behind_a_socket_is_a_disk() -> None:
    run_state_machine_as_test(
        DiskMachine, settings=settings(max_examples=6, stateful_step_count=25, deadline=None)
    )


@pytest.mark.campaign
def test_campaign_of_disks() -> None:
    run_state_machine_as_test(
        DiskMachine, settings=settings(max_examples=1000, stateful_step_count=60, deadline=None)
    )
