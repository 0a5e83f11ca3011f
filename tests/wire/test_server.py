"""Ports, message limits, call limits, streams that are cut, custom codecs."""

from __future__ import annotations

import gc
import json
import threading
from io import StringIO
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift import errors, logs
from arraylift.rpc.channel import call, connect, stream
from arraylift.rpc.interceptors import Handler
from arraylift.rpc.server import STREAMS_PER_CONNECTION_MAX, RpcServer, Service, service_of
from arraylift.sizes import MESSAGE_BYTES_MAX, MIB
from arraylift.v1 import (
    exchange_pb2,
    exchange_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from tests.wire.stage import PEER, Dial, House, Script, raiser


def test_a_taken_port_is_named(house: House, server: RpcServer) -> None:
    with pytest.raises(errors.WrongState, match=rf"port {server.port} on 127\.0\.0\.1 is taken") as caught:
        RpcServer(server.address, house.identity("target"), [])
    assert caught.value.next_step


@pytest.mark.parametrize(
    "address", ["nowhere", "127.0.0.1:99999", "127.0.0.1:x", "192.0.2.1:7403", "::1:7403", "[]:1"]
)
def test_a_bad_address_is_the_callers_fault(house: House, address: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        RpcServer(address, house.identity("target"), [])


@pytest.mark.parametrize("address", ["nowhere", ":7403", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:65536"])
def test_a_client_checks_the_address_first(house: House, address: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="host:port"):
        connect(address, house.identity("operator"), "target")


def test_nobody_there_says_which_address(house: House, server: RpcServer) -> None:
    address = server.address
    server.stop(0)
    with connect(address, house.identity("operator"), "target") as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(errors.PeerUnavailable, match=f"target {address} does not answer") as caught:
            call(stub.GetImage, image_pb2.GetImageRequest(), peer=f"target {address}")
    assert "retry" in caught.value.next_step


def test_calls_that_python_has_yet_to_collect_are_in_nobodys_way(
    operator: grpc.Channel, script: Script
) -> None:
    """A call whose context lies in a cycle is no call that runs."""

    def lingering(_request: object, context: object) -> image_pb2.GetImageResponse:
        cycle: list[object] = [context]
        cycle.append(cycle)
        return image_pb2.GetImageResponse()

    script.behaviors["GetImage"] = lingering
    stub = image_pb2_grpc.ImageServiceStub(operator)
    gc.disable()
    try:
        for _ in range(3 * STREAMS_PER_CONNECTION_MAX):
            call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER, timeout_seconds=10)
    finally:
        gc.enable()


def test_a_method_without_an_entry_stops_the_start(house: House) -> None:
    handler: Handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
    service = Service("arraylift.v1.ImageService", {"Forgotten": handler})
    with pytest.raises(AssertionError, match=r"no authorization entry for .*ImageService/Forgotten"):
        RpcServer("127.0.0.1:0", house.identity("target"), [service])


def test_another_daemons_method_says_so(operator: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(operator).Watch
    with pytest.raises(errors.WrongState, match=PEER):
        list(stream(watch, health_pb2.HealthCheckRequest(), peer=PEER, timeout_seconds=10))


@pytest.mark.parametrize("excess", [0, 1])
def test_the_largest_message_passes_and_one_byte_more_does_not(
    operator: grpc.Channel, script: Script, excess: int
) -> None:
    script.behaviors["GetImage"] = lambda request, _context: image_pb2.GetImageResponse(
        image=image_pb2.Image(name=str(len(request.image_id)))
    )
    stub = image_pb2_grpc.ImageServiceStub(operator)
    framing = len(image_pb2.GetImageRequest(image_id="x" * MIB).SerializeToString()) - MIB
    request = image_pb2.GetImageRequest(image_id="x" * (MESSAGE_BYTES_MAX - framing - 1 + excess))
    assert request.ByteSize() == MESSAGE_BYTES_MAX + excess
    if excess:
        with pytest.raises(errors.InvalidRequest, match="larger than max"):
            call(stub.GetImage, request, peer=PEER)
    else:
        assert call(stub.GetImage, request, peer=PEER).image.name == str(len(request.image_id))


def test_an_oversize_message_of_a_peer_without_limits_is_refused(
    house: House, server: RpcServer, script: Script
) -> None:
    script.behaviors["GetImage"] = raiser(AssertionError("the handler ran"))
    tls = house.identity("operator")
    credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.certificate_pem)
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(server.address, credentials, options=unlimited) as channel:
        stub = image_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(errors.InvalidRequest, match="larger than max"):
            call(stub.GetImage, image_pb2.GetImageRequest(image_id="x" * (8 * MIB)), peer=PEER)


def test_calls_beyond_the_limit_are_refused_at_once(house: House) -> None:
    script, release, entered = Script(), threading.Event(), threading.Semaphore(0)

    def hold(_request: Any, _context: grpc.ServicerContext) -> Any:
        entered.release()
        assert release.wait(30)
        return image_pb2.GetImageResponse()

    script.behaviors["GetImage"] = hold
    service = service_of(
        image_pb2_grpc.add_ImageServiceServicer_to_server,
        script.servicer(image_pb2_grpc.ImageServiceServicer),
    )
    small = RpcServer("127.0.0.1:0", house.identity("target"), [service], calls_max=2)
    small.start()
    try:
        with connect(small.address, house.identity("operator"), "target") as channel:
            stub = image_pb2_grpc.ImageServiceStub(channel)
            held = [stub.GetImage.future(image_pb2.GetImageRequest(), timeout=30) for _ in range(2)]
            for _ in held:
                assert entered.acquire(timeout=10)
            with pytest.raises(errors.Overloaded):
                call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER)
            release.set()
            assert all(future.result() is not None for future in held)
    finally:
        release.set()
        small.stop(1)


def test_a_cut_request_stream_ends_the_handler(house: House, dial: Dial, script: Script) -> None:
    ended = threading.Event()

    def behavior(requests: Any, _context: grpc.ServicerContext) -> Any:
        try:
            for _ in requests:
                yield exchange_pb2.ExchangeReply()
        finally:  # by RpcError, or by what looks like the end: gRPC promises neither
            ended.set()

    script.behaviors["Exchange"] = behavior
    stub = exchange_pb2_grpc.SegmentExchangeServiceStub(dial(house.identity("array")))
    hold = threading.Event()

    def requests() -> Any:
        yield exchange_pb2.ExchangeRequest()
        hold.wait(30)

    replies = stream(stub.Exchange, requests(), peer=PEER, timeout_seconds=30)
    next(replies)
    replies.cancel()
    with pytest.raises(errors.Cancelled):
        next(replies)
    assert ended.wait(10)
    hold.set()


def test_leaving_a_response_stream_closes_the_handler(operator: grpc.Channel, script: Script) -> None:
    closed = threading.Event()

    def endless(_request: Any, _context: grpc.ServicerContext) -> Any:
        try:
            while True:
                yield image_pb2.ReadRangeResponse(data=bytes(MIB))
        finally:
            closed.set()

    script.behaviors["ReadRange"] = endless
    stub = image_pb2_grpc.ImageServiceStub(operator)
    with stream(stub.ReadRange, image_pb2.ReadRangeRequest(), peer=PEER, timeout_seconds=30) as responses:
        assert len(next(responses).data) == MIB
    assert closed.wait(10)


def test_an_error_under_a_request_stream_reaches_its_sender(operator: grpc.Channel, script: Script) -> None:
    def behavior(requests: Any, _context: grpc.ServicerContext) -> Any:
        next(requests)
        raise errors.OutOfSpace("the pool is full", subject="pool", next_step="free space", free_bytes=7)

    script.behaviors["ImportVolume"] = behavior
    stub = volume_pb2_grpc.VolumeServiceStub(operator)
    extent = volume_pb2.Extent(data=bytes(MIB))
    requests = (volume_pb2.ImportVolumeRequest(extent=extent) for _ in range(1000))
    with pytest.raises(errors.OutOfSpace) as caught:
        call(stub.ImportVolume, requests, peer=PEER)
    assert caught.value.fields == {"free_bytes": "7"}


def test_a_handler_keeps_its_own_codec(house: House) -> None:
    handler = grpc.stream_stream_rpc_method_handler(
        lambda requests, _context: (request.upper() for request in requests),
        request_deserializer=lambda raw: raw.decode(),
        response_serializer=str.encode,
    )
    codec = RpcServer(
        "127.0.0.1:0",
        house.identity("target", "codec"),
        [Service("arraylift.v1.SegmentExchangeService", {"Exchange": handler})],
    )
    codec.start()
    try:
        with connect(codec.address, house.identity("array"), "target") as channel:
            raw: Any = channel.stream_stream("/arraylift.v1.SegmentExchangeService/Exchange")
            shouted = list(stream(raw, iter([b"one", b"two"]), peer=PEER, timeout_seconds=10))
            assert shouted == [b"ONE", b"TWO"]
        with connect(codec.address, house.identity("operator"), "target") as channel:
            raw = channel.stream_stream("/arraylift.v1.SegmentExchangeService/Exchange")
            with pytest.raises(errors.NotPermitted):
                list(stream(raw, iter([b"one"]), peer=PEER, timeout_seconds=10))
    finally:
        codec.stop(0)


def test_garbage_fails_the_call_and_leaves_the_server_up(operator: grpc.Channel, script: Script) -> None:
    script.behaviors["GetImage"] = lambda _request, _context: image_pb2.GetImageResponse()
    raw: Any = operator.unary_unary("/arraylift.v1.ImageService/GetImage")
    with pytest.raises(errors.ArrayliftError):
        call(raw, b"\xff\xff\xff", peer=PEER)
    assert call(raw, b"", peer=PEER) == b""


def test_every_call_leaves_one_summary_line(operator: grpc.Channel, script: Script) -> None:
    lines = StringIO()
    script.behaviors["GetImage"] = lambda _request, _context: image_pb2.GetImageResponse()
    stub = image_pb2_grpc.ImageServiceStub(operator)
    logs.configure("info", "json", lines)
    try:
        call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER)
        script.behaviors["GetImage"] = raiser(errors.NotFound("no image", subject="image i"))
        with pytest.raises(errors.NotFound):
            call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER)
        script.behaviors["GetImage"] = raiser(ZeroDivisionError())
        with pytest.raises(errors.ArrayliftError):
            call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER)
    finally:
        logs.configure()
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    done = [event for event in events if event["event"] == "rpc_done"]
    assert [event["code"] for event in done] == ["OK", "NOT_FOUND", "INTERNAL"]
    assert {event["rpc"] for event in done} == {"/arraylift.v1.ImageService/GetImage"}
    assert {event["peer"] for event in done} == {"operator/one"}
    assert all(event["duration_ms"] >= 0 for event in done)
    crashed = [event for event in events if event["event"] == "rpc_crashed"]
    assert len(crashed) == 1
    assert "ZeroDivisionError" in crashed[0]["exception"]


def test_stop_lets_running_calls_finish(
    house: House, operator: grpc.Channel, server: RpcServer, script: Script
) -> None:
    entered, release = threading.Event(), threading.Event()

    def behavior(_request: Any, _context: grpc.ServicerContext) -> Any:
        entered.set()
        assert release.wait(30)
        return image_pb2.GetImageResponse(image=image_pb2.Image(name="late"))

    script.behaviors["GetImage"] = behavior
    stub = image_pb2_grpc.ImageServiceStub(operator)
    future = stub.GetImage.future(image_pb2.GetImageRequest(), timeout=30)
    assert entered.wait(10)
    stopper = threading.Thread(target=server.stop, args=(20,))
    stopper.start()
    release.set()
    assert future.result().image.name == "late"
    stopper.join(20)
    assert not stopper.is_alive()
    RpcServer(server.address, house.identity("target"), []).stop(0)  # the port is free again
