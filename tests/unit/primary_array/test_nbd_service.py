"""What the settings say of NBD is what is served, or an error at the start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest, WrongState
from arraylift.pki import TlsMaterial
from primary_array.config import ArraySettings
from primary_array.exports import ArrayExports
from primary_array.nbd_service import NbdService
from primary_array.pool import Pool


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsMaterial:
    folder = str(tmp_path_factory.mktemp("pki"))
    pki.init_ca(folder)
    pki.issue(folder, "array", "a1")
    return pki.load(folder, "array", "a1")


@pytest.fixture
def exports(tmp_path: Path) -> Iterator[ArrayExports]:
    pool = Pool.open(RealFiles(), str(tmp_path / "pool"))
    made = ArrayExports(pool, RealFiles(), str(tmp_path / "pool"))
    yield made
    made.close()
    pool.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (ArraySettings(nbd_listen="nowhere"), "not an address"),
        (ArraySettings(nbd_listen="127.0.0.1:0", nbd_tls="maybe"), "one of demanded, offered, none"),
        (ArraySettings(nbd_listen="127.0.0.1:0", nbd_connections=0), "1 to 1024"),
        (ArraySettings(nbd_listen="127.0.0.1:0", nbd_socket="here.sock"), "from the root"),
    ],
)
def test_settings_that_make_no_sense(
    exports: ArrayExports, tls: TlsMaterial, settings: ArraySettings, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        NbdService(settings, tls, exports, RealFiles())


def test_a_taken_port(exports: ArrayExports, tls: TlsMaterial) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ArraySettings(nbd_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(WrongState, match="is taken"):
            NbdService(settings, tls, exports, RealFiles())


def test_addresses_are_told_as_clients_need_them(
    exports: ArrayExports, tls: TlsMaterial, tmp_path: Path
) -> None:
    path = str(tmp_path / "n.sock")
    ways = {
        ArraySettings(nbd_listen="127.0.0.1:0"): "nbds://127.0.0.1:",
        ArraySettings(nbd_listen="127.0.0.1:0", nbd_tls="none"): "nbd://127.0.0.1:",
        ArraySettings(nbd_listen="0.0.0.0:0"): f"nbds://{socket.gethostname()}:",
        ArraySettings(nbd_listen="", nbd_socket=path): "nbd+unix:///a%20b?socket=/",
        ArraySettings(nbd_listen=""): "",
    }
    for settings, begins in ways.items():
        service = NbdService(settings, tls, exports, RealFiles())
        assert service.uri("a b").startswith(begins)
        assert bool(service.uri("a b")) == bool(begins)
        service.stop()
