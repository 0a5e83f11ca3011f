"""What stands before every handler: TLS, role, deadline."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift import errors
from arraylift.rpc.authz import ALLOWED
from arraylift.rpc.channel import TRANSFER_SECONDS, call, connect, stream
from arraylift.rpc.identity import ROLES, current_peer
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import (
    exchange_pb2,
    exchange_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from tests.wire.stage import PEER, Dial, House, Script


def answer(_request: Any, _context: grpc.ServicerContext) -> Any:
    return image_pb2.GetImageResponse(image=image_pb2.Image(name=str(current_peer())))


def get_image(channel: grpc.Channel, **how: Any) -> Any:
    stub = image_pb2_grpc.ImageServiceStub(channel)
    return call(stub.GetImage, image_pb2.GetImageRequest(), peer=PEER, **how)


def test_a_handler_learns_who_calls(operator: grpc.Channel, script: Script) -> None:
    script.behaviors["GetImage"] = answer
    assert get_image(operator).image.name == "operator/one"


def test_a_generator_learns_who_calls_at_every_step(house: House, dial: Dial, script: Script) -> None:
    def behavior(requests: Any, _context: grpc.ServicerContext) -> Any:
        for _ in requests:
            opened = exchange_pb2.Opened(tenant=str(current_peer()))
            yield exchange_pb2.ExchangeReply(opened=opened)

    script.behaviors["Exchange"] = behavior
    for name in ("a1", "a2", "a3"):
        stub = exchange_pb2_grpc.SegmentExchangeServiceStub(dial(house.identity("array", name)))
        requests = iter([exchange_pb2.ExchangeRequest()] * 3)
        with stream(stub.Exchange, requests, peer=PEER, timeout_seconds=10) as replies:
            assert [reply.opened.tenant for reply in replies] == [f"array/{name}"] * 3


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "method", ["ListVolumes", "PrepareRestore", "ImportVolume", "ReadExtents", "WriteExtents"]
)
def test_a_role_reaches_only_its_methods(
    house: House, dial: Dial, script: Script, role: str, method: str
) -> None:
    """One method of each of three handler kinds; the fourth is below."""
    reached: list[str] = []
    response = getattr(volume_pb2, f"{method}Response")()

    def one(_request: Any, _context: grpc.ServicerContext) -> Any:
        reached.append(method)
        return response

    def many(_request: Any, _context: grpc.ServicerContext) -> Any:
        reached.append(method)
        yield response

    streams_requests = method in {"ImportVolume", "WriteExtents"}
    streams_responses = method == "ReadExtents"
    script.behaviors[method] = many if streams_responses else one
    stub = getattr(volume_pb2_grpc.VolumeServiceStub(dial(house.identity(role))), method)
    message = getattr(volume_pb2, f"{method}Request")()
    request = iter([message]) if streams_requests else message

    def run() -> None:
        if streams_responses:
            assert list(stream(stub, request, peer=PEER, timeout_seconds=10)) == [response]
        else:
            assert call(stub, request, peer=PEER) == response

    if role in ALLOWED[f"/arraylift.v1.VolumeService/{method}"]:
        run()
        assert reached == [method]
    else:
        with pytest.raises(errors.NotPermitted, match=f"{role}/one may not call {method}"):
            run()
        assert reached == []


@pytest.mark.parametrize("role", ROLES)
def test_only_movers_exchange(house: House, dial: Dial, script: Script, role: str) -> None:
    reply = exchange_pb2.ExchangeReply()
    script.behaviors["Exchange"] = lambda _requests, _context: iter([reply])
    stub = exchange_pb2_grpc.SegmentExchangeServiceStub(dial(house.identity(role)))
    replies = stream(stub.Exchange, iter(()), peer=PEER, timeout_seconds=10)
    if role in {"array", "target"}:
        assert list(replies) == [reply]
    else:
        with pytest.raises(errors.NotPermitted, match="may not call Exchange"):
            list(replies)


def test_health_answers_every_role_without_a_deadline(house: House, dial: Dial) -> None:
    for role in ROLES:
        stub = health_pb2_grpc.HealthStub(dial(house.identity(role)))
        response = stub.Check(health_pb2.HealthCheckRequest(service="arraylift.v1.ImageService"))
        assert response.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("seconds", [None, TRANSFER_SECONDS * 2])
def test_a_call_needs_a_sensible_deadline(
    operator: grpc.Channel, script: Script, seconds: float | None
) -> None:
    script.behaviors["GetImage"] = answer
    with pytest.raises(errors.InvalidRequest, match="deadline"):
        get_image(operator, timeout_seconds=seconds)


def test_the_longest_deadline_is_taken(operator: grpc.Channel, script: Script) -> None:
    script.behaviors["GetImage"] = answer
    assert get_image(operator, timeout_seconds=TRANSFER_SECONDS).image.name


def test_a_late_answer_is_our_deadline_exceeded(operator: grpc.Channel, script: Script) -> None:
    ended = threading.Event()

    def slow(_request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        assert ended.wait(10)
        return image_pb2.GetImageResponse()

    script.behaviors["GetImage"] = slow
    with pytest.raises(errors.DeadlineExceeded, match=PEER):
        get_image(operator, timeout_seconds=0.2)


def test_a_client_refuses_a_server_of_another_ca(other_house: House, dial: Dial) -> None:
    with pytest.raises(errors.PeerUnavailable, match=f"no trusted connection with {PEER}"):
        get_image(dial(other_house.identity("operator")))


@pytest.mark.parametrize("fault", ["other CA", "expired", "none", "plaintext"])
def test_a_server_refuses_a_client_without_a_good_certificate(
    house: House, other_house: House, server: RpcServer, script: Script, fault: str
) -> None:
    script.behaviors["GetImage"] = answer
    good = house.identity("operator")
    if fault == "other CA":
        theirs = replace(other_house.identity("operator"), ca_pem=good.ca_pem)
        channel = connect(server.address, theirs, "target")
    elif fault == "expired":
        channel = connect(server.address, house.expired_identity("operator"), "target")
    elif fault == "none":
        channel = grpc.secure_channel(server.address, grpc.ssl_channel_credentials(good.ca_pem))
    else:
        channel = grpc.insecure_channel(server.address)
    with channel, pytest.raises(errors.PeerUnavailable, match=f"{PEER} hung up on us"):
        get_image(channel)


def test_a_client_refuses_an_expired_server(house: House) -> None:
    servicer = image_pb2_grpc.ImageServiceServicer()
    service = service_of(image_pb2_grpc.add_ImageServiceServicer_to_server, servicer)
    late = RpcServer("127.0.0.1:0", house.expired_identity("target"), [service])
    late.start()
    try:
        with (
            connect(late.address, house.identity("operator"), "target") as channel,
            pytest.raises(errors.PeerUnavailable, match="no trusted connection"),
        ):
            get_image(channel)
    finally:
        late.stop(0)
