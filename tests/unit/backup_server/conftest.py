"""Fake peers that listen, and a server's state directory in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift import pki
from tests.fakes.backup_server import Rig
from tests.fakes.peers import FakePeers
from tests.wire.stage import House


@pytest.fixture(scope="session")
def fake_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    directory = str(tmp_path_factory.mktemp("fake-pki"))
    pki.init_ca(directory)
    return House(directory)


@pytest.fixture(scope="session")
def fake_peers(fake_house: House) -> Iterator[FakePeers]:
    peers = FakePeers(fake_house)
    yield peers
    peers.close()


@pytest.fixture
def rig(fake_peers: FakePeers, fake_house: House, tmp_path: Path) -> Iterator[Rig]:
    fake_peers.world.reset()
    made = Rig(tmp_path / "server", fake_peers.world, fake_house.identity("server", "server1"))
    yield made
    made.close()
