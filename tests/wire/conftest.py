"""A CA, identities, and a server of scripted handlers, in process over real TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import grpc
import pytest

from arraylift import pki
from arraylift.rpc.channel import connect
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import exchange_pb2_grpc, image_pb2_grpc, volume_pb2_grpc
from tests.wire.stage import DaysAgo, House, Script

if TYPE_CHECKING:
    from tests.wire.stage import Dial


def _house(directory: str) -> House:
    # Old enough to have issued certificates that are expired today.
    pki.init_ca(directory, clock=DaysAgo(400))
    return House(directory)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return _house(str(tmp_path_factory.mktemp("pki")))


@pytest.fixture(scope="session")
def other_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return _house(str(tmp_path_factory.mktemp("other-pki")))


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(house: House, script: Script) -> Iterator[RpcServer]:
    images, volumes, exchange = (
        script.servicer(base)
        for base in (
            image_pb2_grpc.ImageServiceServicer,
            volume_pb2_grpc.VolumeServiceServicer,
            exchange_pb2_grpc.SegmentExchangeServiceServicer,
        )
    )
    services = [
        service_of(image_pb2_grpc.add_ImageServiceServicer_to_server, images),
        service_of(volume_pb2_grpc.add_VolumeServiceServicer_to_server, volumes),
        service_of(exchange_pb2_grpc.add_SegmentExchangeServiceServicer_to_server, exchange),
    ]
    running = RpcServer("127.0.0.1:0", house.identity("target", "server"), services)
    running.start()
    yield running
    running.stop(0)


@pytest.fixture
def dial(server: RpcServer) -> Iterator[Dial]:
    channels: list[grpc.Channel] = []

    def connect_as(tls: pki.TlsMaterial) -> grpc.Channel:
        channels.append(connect(server.address, tls, "target"))
        return channels[-1]

    yield connect_as
    for channel in channels:
        channel.close()


@pytest.fixture
def operator(house: House, dial: Callable[[pki.TlsMaterial], grpc.Channel]) -> grpc.Channel:
    return dial(house.identity("operator"))
