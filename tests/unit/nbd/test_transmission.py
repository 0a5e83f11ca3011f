"""Requests and replies: what is carried out, in which pieces, and what a failure looks like."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from arraylift.errors import (
    ArrayliftError,
    Corruption,
    InvalidRequest,
    NotFound,
    OutOfSpace,
    Overloaded,
    StoreFailed,
)
from arraylift.nbd import wire
from arraylift.nbd.device import PAYLOAD_BYTES_MAX, errno_of
from arraylift.nbd.replies import OUT_BYTES
from arraylift.nbd.transmission import IN_BYTES, PIECE_BYTES, BrokenReplyError, Transmission
from arraylift.sizes import KIB, MIB
from tests.fakes.nbd import BLOCK, Decoder, MemoryDevice, Reply, request

SIZE = 40 * MIB
BOTH = pytest.mark.parametrize("structured", [True, False])


class Stage:
    """One connection over a device in memory."""

    def __init__(self, *, structured: bool = True, read_only: bool = False) -> None:
        self.device = MemoryDevice(SIZE, read_only=read_only)
        contexts = ((1, "base:allocation"), (2, "test:odd")) if structured else ()
        self.machine = Transmission(self.device, structured=structured, contexts=contexts)
        self.out = bytearray()
        self.buffers: list[int] = []
        self.decoder = Decoder(self._take)

    def _take(self, count: int) -> bytes:
        if len(self.out) < count:
            raise EOFError
        taken = bytes(self.out[:count])
        del self.out[:count]
        return taken

    def _sent(self, buffers: Iterable[memoryview]) -> None:
        for buffer in buffers:
            assert 0 < len(buffer) <= OUT_BYTES
            self.buffers.append(len(buffer))
            self.out += buffer

    def say(self, data: bytes, *, step: int = 1 << 30) -> None:
        """Hand over ``data`` in pieces of at most ``step`` bytes."""
        while data and not self.machine.ended:
            window = self.machine.window()
            assert window.nbytes > 0
            count = min(step, len(window), len(data))
            window[:count] = data[:count]
            data = data[count:]
            self._sent(self.machine.received(count))

    def replies(self) -> list[Reply]:
        found = []
        while self.out:
            found.append(self.decoder.next())
        return found

    def ask(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> Reply:
        if kind == wire.CMD_READ:
            self.decoder.reads[7] = offset, length
        self.say(request(kind, offset, length, flags=flags, payload=payload))
        (reply,) = self.replies()
        assert reply.cookie == 7
        return reply

    def flush(self, error: ArrayliftError | None = None) -> list[Reply]:
        self._sent(self.machine.flushed(self.machine.take_deferred(), error))
        return self.replies()


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- reads --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "length", [1, 4096, 64 * KIB, PIECE_BYTES, PIECE_BYTES + 1, 3 * MIB + 5, PAYLOAD_BYTES_MAX]
)
def test_reads_of_every_length_yield_the_bytes(structured: bool, length: int) -> None:
    stage = Stage(structured=structured)
    content = bytes(range(1, 256)) * (length // 255 + 1)
    stage.device.write(9, content[:length])
    reply = stage.ask(wire.CMD_READ, 9, length)
    assert reply.error == 0
    assert reply.content(9, length) == content[:length]


def test_many_small_reads_are_answered_by_one_buffer(stage: Stage) -> None:
    for cookie in range(20):
        stage.decoder.reads[cookie] = cookie * 4096, 4096
    stage.say(b"".join(request(wire.CMD_READ, cookie * 4096, 4096, cookie=cookie) for cookie in range(20)))
    assert [reply.cookie for reply in stage.replies()] == list(range(20))
    assert len(stage.buffers) == 1


def test_holes_are_told_instead_of_sent(stage: Stage) -> None:
    stage.device.write(MIB, b"x" * BLOCK)
    reply = stage.ask(wire.CMD_READ, 0, 2 * MIB)
    assert reply.holes == [(0, MIB), (MIB + BLOCK, MIB - BLOCK)]
    assert reply.content(0, 2 * MIB) == stage.device.content[: 2 * MIB]
    assert sum(stage.buffers) < 2 * BLOCK


def test_df_gets_one_chunk_however_the_range_looks(stage: Stage) -> None:
    stage.device.write(MIB, b"x" * BLOCK)
    reply = stage.ask(wire.CMD_READ, 0, 2 * MIB, flags=wire.CMD_FLAG_DF)
    assert reply.chunks == 1
    assert reply.content(0, 2 * MIB) == stage.device.content[: 2 * MIB]
    empty = stage.ask(wire.CMD_READ, 8 * MIB, 2 * MIB, flags=wire.CMD_FLAG_DF)
    assert (empty.chunks, empty.holes) == (1, [(8 * MIB, 2 * MIB)])


@BOTH
def test_a_read_of_nothing_is_answered(structured: bool) -> None:
    assert Stage(structured=structured).ask(wire.CMD_READ, 5, 0).error == 0


@BOTH
@pytest.mark.parametrize("length", [4096, 64 * KIB, MIB])
def test_a_read_that_fails_at_once_is_an_error_without_data(structured: bool, length: int) -> None:
    stage = Stage(structured=structured)
    stage.device.write(0, b"x" * MIB)
    stage.device.fail = Corruption("the disk cannot read")
    reply = stage.ask(wire.CMD_READ, 0, length)
    assert (reply.error, reply.pieces, reply.holes) == (wire.EIO, [], [])
    stage.device.fail = None
    assert stage.ask(wire.CMD_READ, 0, 10).error == 0


def test_a_read_that_fails_on_its_way_says_where(stage: Stage) -> None:
    stage.device.write(0, b"x" * (2 * MIB))
    stage.device.fail, stage.device.fail_from = Corruption("the disk cannot read"), MIB
    reply = stage.ask(wire.CMD_READ, 0, 2 * MIB)
    assert (reply.error, reply.error_offset) == (wire.EIO, MIB)
    assert sum(len(data) for _, data in reply.pieces) == MIB
    assert stage.machine.errors == 1


@pytest.mark.parametrize(("structured", "flags"), [(False, 0), (True, wire.CMD_FLAG_DF)])
def test_a_promised_read_that_fails_on_its_way_ends_the_connection(structured: bool, flags: int) -> None:
    stage = Stage(structured=structured)
    stage.device.write(0, b"x" * (2 * MIB))
    stage.device.fail, stage.device.fail_from = Corruption("the disk cannot read"), MIB
    with pytest.raises(BrokenReplyError):
        stage.say(request(wire.CMD_READ, 0, 2 * MIB, flags=flags))


# -- writes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1 << 30, 100_000, 65_536])
@pytest.mark.parametrize(
    "length", [1, 4096, IN_BYTES - 28, IN_BYTES, IN_BYTES + 1, 5 * MIB + 3, PAYLOAD_BYTES_MAX]
)
def test_writes_of_every_length_arrive(stage: Stage, length: int, step: int) -> None:
    content = (bytes(range(1, 256)) * (length // 255 + 1))[:length]
    stage.say(request(wire.CMD_WRITE, 777, length, payload=content) + request(wire.CMD_READ, 0, 1), step=step)
    assert [reply.error for reply in stage.replies()] == [0, 0]
    assert stage.device.content[777 : 777 + length] == content
    writes = [call for call in stage.device.calls if call[0] == "write"]
    assert len(writes) <= length // (PIECE_BYTES - 64 * KIB) + 1
    assert all((offset + count) % BLOCK == 0 for _, offset, count in writes[:-1]), "a block in two writes"


@pytest.mark.parametrize("arrived", [0, 1, 2000, 3318, 3319, 3320, 4096, 9000])
def test_a_long_write_that_begins_at_the_end_of_the_memory_changes_nothing_before_it(
    stage: Stage, arrived: int
) -> None:
    # Whatever came before is in the memory still: it must not be taken for the write's first bytes.
    stage.device.content[: 4 * MIB] = b"." * (4 * MIB)
    first = IN_BYTES - 2 * wire.REQUEST.size - arrived
    content = bytes(range(1, 256)) * (2 * MIB // 255)
    stage.say(
        request(wire.CMD_WRITE, 3 * MIB, first, payload=b"1" * first)
        + request(wire.CMD_WRITE, 8192 + 777, len(content), payload=content)
    )
    assert [reply.error for reply in stage.replies()] == [0, 0]
    assert stage.device.content[: 8192 + 777] == b"." * (8192 + 777), "wrote before its range"
    assert stage.device.content[8192 + 777 : 8192 + 777 + len(content)] == content
    assert stage.machine.bytes_written == first + len(content)


def test_a_small_write_that_comes_byte_by_byte(stage: Stage) -> None:
    stage.say(
        request(wire.CMD_WRITE, 3, 5, payload=b"hello") + request(wire.CMD_WRITE, 9, 1, payload=b"!"), step=1
    )
    assert [reply.error for reply in stage.replies()] == [0, 0]
    assert stage.device.content[3:10] == b"hello\0!"
    assert stage.machine.between_requests


@BOTH
def test_a_failed_write_skips_the_rest_of_its_payload(structured: bool) -> None:
    stage = Stage(structured=structured)
    stage.device.fail, stage.device.fail_from = OutOfSpace("full"), MIB
    payload = b"x" * (3 * MIB)
    stage.say(request(wire.CMD_WRITE, 0, len(payload), payload=payload) + request(wire.CMD_READ, 0, 0))
    stage.decoder.reads[7] = 0, 0
    assert [reply.error for reply in stage.replies()] == [wire.ENOSPC, 0]
    assert stage.device.calls[-1][1] + stage.device.calls[-1][2] <= 2 * MIB, "went on after the failure"


def test_a_longer_write_than_anybody_may_send_ends_the_connection(stage: Stage) -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        stage.say(request(wire.CMD_WRITE, 0, PAYLOAD_BYTES_MAX + 1))


@pytest.mark.parametrize("kind", [wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES])
def test_a_read_only_disk_refuses_changes_and_goes_on(kind: int) -> None:
    stage = Stage(read_only=True)
    payload = bytes(MIB) if kind == wire.CMD_WRITE else b""
    assert stage.ask(kind, 0, MIB, payload=payload).error == wire.EPERM
    assert stage.device.calls == []
    assert stage.ask(wire.CMD_READ, 0, 1).error == 0


# -- the others ---------------------------------------------------------------------------------


def test_zeroing_keeps_its_space_where_asked_for(stage: Stage) -> None:
    stage.device.write(0, b"x" * MIB)
    assert stage.ask(wire.CMD_WRITE_ZEROES, 0, BLOCK, flags=wire.CMD_FLAG_NO_HOLE).error == 0
    assert stage.ask(wire.CMD_WRITE_ZEROES, BLOCK, BLOCK, flags=wire.CMD_FLAG_FAST_ZERO).error == 0
    assert stage.device.content[: 2 * BLOCK] == bytes(2 * BLOCK)
    assert {0, 1} & stage.device.mapped == {0}


def test_trim_and_cache_reach_the_device(stage: Stage) -> None:
    assert stage.ask(wire.CMD_TRIM, BLOCK, MIB).error == 0
    assert stage.ask(wire.CMD_CACHE, 0, 2 * MIB).error == 0
    assert stage.device.calls == [("trim", BLOCK, MIB), ("cache", 0, 2 * MIB)]


@pytest.mark.parametrize("kind", [wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES, wire.CMD_CACHE])
def test_requests_for_nothing_change_nothing(stage: Stage, kind: int) -> None:
    assert stage.ask(kind, 5, 0).error == 0
    assert [call for call in stage.device.calls if call[2]] == []


def test_a_flush_and_fua_wait_and_nothing_else_does(stage: Stage) -> None:
    fua = wire.CMD_FLAG_FUA
    stage.say(
        request(wire.CMD_WRITE, 0, 1, cookie=1, payload=b"a")
        + request(wire.CMD_WRITE, 1, 1, cookie=2, flags=fua, payload=b"b")
        + request(wire.CMD_FLUSH, cookie=3)
        + request(wire.CMD_TRIM, 0, BLOCK, cookie=4, flags=fua)
        + request(wire.CMD_READ, 0, 1, cookie=5, flags=fua)
        + request(wire.CMD_WRITE_ZEROES, 0, BLOCK, cookie=6, flags=fua)
    )
    assert [reply.cookie for reply in stage.replies()] == [1, 5]
    assert stage.machine.deferred_count == 4
    assert [(reply.cookie, reply.error) for reply in stage.flush()] == [(2, 0), (3, 0), (4, 0), (6, 0)]
    assert stage.machine.deferred_count == 0


def test_a_failed_flush_fails_all_that_waited(stage: Stage) -> None:
    stage.say(request(wire.CMD_FLUSH, cookie=1) + request(wire.CMD_FLUSH, cookie=2))
    assert [reply.error for reply in stage.flush(StoreFailed("fsync failed"))] == [wire.EIO, wire.EIO]


def test_very_many_flushes_are_answered_in_several_buffers(stage: Stage) -> None:
    stage.say(b"".join(request(wire.CMD_FLUSH, cookie=cookie) for cookie in range(40_000)))
    assert [reply.cookie for reply in stage.flush()] == list(range(40_000))
    assert len(stage.buffers) > 1


def test_disconnecting_stops_what_follows(stage: Stage) -> None:
    stage.say(request(wire.CMD_DISC) + request(wire.CMD_WRITE, 0, 1, payload=b"x"))
    assert stage.machine.ended
    assert stage.device.calls == []
    assert stage.replies() == []


@pytest.mark.parametrize(
    ("kind", "flags", "offset", "length", "error"),
    [
        (8, 0, 0, 0, wire.EINVAL),
        (0xFFFF, 0, 0, 0, wire.EINVAL),
        (wire.CMD_READ, 1 << 7, 0, 1, wire.EINVAL),
        (wire.CMD_TRIM, wire.CMD_FLAG_DF, 0, 1, wire.EINVAL),
        (wire.CMD_READ, 0, SIZE, 1, wire.EINVAL),
        (wire.CMD_READ, 0, 0xFFFFFFFFFFFFFFFF, 2, wire.EINVAL),
        (wire.CMD_READ, 0, 0, PAYLOAD_BYTES_MAX + 1, wire.EINVAL),
        (wire.CMD_TRIM, 0, SIZE - 1, 2, wire.EINVAL),
        (wire.CMD_CACHE, 0, SIZE, 1, wire.EINVAL),
        (wire.CMD_WRITE_ZEROES, 0, SIZE - 1, 2, wire.ENOSPC),
        (wire.CMD_BLOCK_STATUS, 0, 0, 0, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, SIZE, 1, wire.EINVAL),
    ],
)
def test_bad_requests_are_refused_without_the_device(
    stage: Stage, kind: int, flags: int, offset: int, length: int, error: int
) -> None:
    assert stage.ask(kind, offset, length, flags=flags).error == error
    assert stage.device.calls == []


def test_a_write_outside_is_refused_and_its_payload_skipped(stage: Stage) -> None:
    assert stage.ask(wire.CMD_WRITE, SIZE - 1, 2, payload=b"xy").error == wire.ENOSPC
    assert stage.ask(wire.CMD_READ, 0, 1).error == 0


def test_df_and_block_status_need_structured_replies() -> None:
    stage = Stage(structured=False)
    assert stage.ask(wire.CMD_READ, 0, 1, flags=wire.CMD_FLAG_DF).error == wire.EINVAL
    assert stage.ask(wire.CMD_BLOCK_STATUS, 0, 1).error == wire.EINVAL


def test_what_is_no_request_ends_the_connection(stage: Stage) -> None:
    with pytest.raises(InvalidRequest, match="does not begin"):
        stage.say(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")


# -- block status -------------------------------------------------------------------------------


def test_block_status_tells_each_context(stage: Stage) -> None:
    stage.device.write(BLOCK, b"x" * BLOCK)
    reply = stage.ask(wire.CMD_BLOCK_STATUS, 0, 4 * BLOCK)
    assert reply.states == {
        1: [(BLOCK, 3), (BLOCK, 0), (2 * BLOCK, 3)],
        2: [(BLOCK, 0), (BLOCK, 1), (BLOCK, 0), (BLOCK, 1)],
    }
    one = stage.ask(wire.CMD_BLOCK_STATUS, BLOCK + 1, 3 * BLOCK, flags=wire.CMD_FLAG_REQ_ONE)
    assert one.states == {1: [(BLOCK - 1, 0)], 2: [(BLOCK - 1, 1)]}


def test_block_status_is_cut_where_extents_are_many(stage: Stage) -> None:
    reply = stage.ask(wire.CMD_BLOCK_STATUS, 0, SIZE)
    assert reply.states[1] == [(SIZE, 3)]
    assert len(reply.states[2]) == 2048


def test_block_status_that_fails_is_an_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> object:
        raise NotFound("the snapshot is gone")

    monkeypatch.setattr(MemoryDevice, "status", gone)
    assert stage.ask(wire.CMD_BLOCK_STATUS, 0, BLOCK).error == wire.ESHUTDOWN


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (InvalidRequest("x"), wire.EINVAL),
        (OutOfSpace("x"), wire.ENOSPC),
        (Overloaded("x"), wire.ENOMEM),
        (NotFound("x"), wire.ESHUTDOWN),
        (Corruption("x"), wire.EIO),
        (ArrayliftError("x"), wire.EIO),
    ],
)
def test_errors_become_the_protocols_numbers(error: ArrayliftError, number: int) -> None:
    assert errno_of(error) == number
