"""The channels that a daemon keeps: one for each peer, a bounded number, none after the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from arraylift.errors import Cancelled, PeerUnavailable
from arraylift.rpc.channel import call, stream
from arraylift.rpc.channels import Channels
from arraylift.rpc.server import RpcServer
from arraylift.v1 import image_pb2, image_pb2_grpc
from tests.wire.stage import PEER, House, Script

GET = image_pb2.GetImageRequest()
Stub = image_pb2_grpc.ImageServiceStub


def ask(stub: image_pb2_grpc.ImageServiceStub) -> None:
    call(stub.GetImage, GET, peer=PEER)


@pytest.fixture
def address(server: RpcServer, script: Script) -> str:
    script.behaviors["GetImage"] = lambda _request, _context: image_pb2.GetImageResponse()
    return server.address


def test_one_channel_for_whom_and_where(house: House, address: str) -> None:
    channels = Channels(house.identity("operator"), channels_max=8)
    first = channels.channel(address, "target")
    assert channels.channel(address, "target") is first
    assert channels.channel(address, "target", "server") is not first
    assert channels.channel(address, "array") is not first
    stub = channels.stub(Stub, address, "target")
    assert channels.stub(Stub, address, "target") is stub
    ask(stub)
    ask(channels.stub(Stub, address, "target", "server"))
    with pytest.raises(PeerUnavailable, match="whoever answers is not"):
        ask(channels.stub(Stub, address, "array"))
    channels.close()


def test_the_one_unused_longest_makes_room_and_ends_nobody_s_call(
    house: House, address: str, script: Script
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_request: object, _context: object) -> image_pb2.GetImageResponse:
        entered.set()
        assert leave.wait(10)
        return image_pb2.GetImageResponse()

    script.behaviors["GetImage"] = slow
    channels = Channels(house.identity("operator"), channels_max=2)
    old = channels.stub(Stub, address, "target")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, old)
        assert entered.wait(10)
        for port in (1, 2):
            channels.channel(f"127.0.0.1:{port}", "target")
        assert channels.stub(Stub, address, "target") is not old
        leave.set()
        answer.result(10)
    channels.close()


def test_after_the_end_there_is_none(house: House, address: str) -> None:
    channels = Channels(house.identity("operator"), channels_max=2)
    stub = channels.stub(Stub, address, "target")
    channels.close()
    channels.close()
    with pytest.raises(PeerUnavailable, match=f"the connection to {PEER} is closed"):
        ask(stub)
    with pytest.raises(PeerUnavailable, match=f"the connection to {PEER} is closed"):
        stream(stub.ReadRange, image_pb2.ReadRangeRequest(), peer=PEER, timeout_seconds=5)
    for ask_again in (channels.channel, partial(channels.stub, Stub)):
        with pytest.raises(PeerUnavailable, match="stopping"):
            ask_again(address, "target")


def test_threads_that_call_while_it_ends_get_an_error_and_no_fault(house: House, address: str) -> None:
    """C3: an earlier way to do this ended the process."""
    for _ in range(20):
        channels = Channels(house.identity("operator"), channels_max=2)
        begin = threading.Barrier(3)

        def work(channels: Channels = channels, begin: threading.Barrier = begin) -> None:
            begin.wait()
            while True:
                try:
                    ask(channels.stub(Stub, address, "target"))
                except (PeerUnavailable, Cancelled):
                    return

        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(work) for _ in range(2)]
            begin.wait()
            channels.close()
            for one in running:
                one.result(10)
