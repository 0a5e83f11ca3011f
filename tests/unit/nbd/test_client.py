"""An NBD client over sockets: our own server, silent ones, ones that go away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.durable import RealFiles
from arraylift.errors import Cancelled, Corruption, InvalidRequest, NotFound, NotPermitted, PeerUnavailable
from arraylift.nbd import client as client_module
from arraylift.nbd import wire
from arraylift.nbd.client import NbdClient
from arraylift.nbd.client_tls import ClientCredentials, house_credentials
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.nbd.negotiation import Tls
from arraylift.nbd.server import Listener, NbdServer
from arraylift.nbd.tls import server_context
from arraylift.nbd.uri import NbdUri, parse_uri
from arraylift.sizes import KIB, MIB
from tests.e2e.daemon import free_port
from tests.fakes.nbd import MemoryDevice, MemoryExports


class Stage:
    """Our server on a Unix socket, and on a port that demands TLS."""

    def __init__(self, folder: Path) -> None:
        self.pki = str(folder / "pki")
        pki.init_ca(self.pki)
        for role in ("array", "operator"):
            pki.issue(self.pki, role, "a1")
        self.device = MemoryDevice(8 * MIB + 512)
        for start in (0, 3 * MIB, 8 * MIB):
            self.device.write(start, bytes(range(256)) * 2)
        port = free_port()
        self.unix = parse_uri(f"nbd+unix:///disk?socket={folder}/nbd.sock")
        self.tls = parse_uri(f"nbds://127.0.0.1:{port}/disk")
        self.server = NbdServer(
            [Listener(self.unix.socket_path, Tls.NONE), Listener(f"127.0.0.1:{port}", Tls.DEMANDED)],
            MemoryExports({"disk": self.device}),
            context=server_context(pki.load(self.pki, "array", "a1")),
            files=RealFiles(),
            connections_max=8,
        )
        self.server.start()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("nbd"))
    yield made
    made.server.stop()


def whole(client: NbdClient) -> bytes:
    content = bytearray(client.size_bytes)
    view = memoryview(content)
    client.read((at, view[at : at + 300 * KIB]) for at in range(0, len(content), 300 * KIB))
    return bytes(content)


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_every_byte_and_every_hole(stage: Stage, way: str) -> None:
    credentials = house_credentials(pki.load(stage.pki, "operator", "a1")) if way == "tls" else None
    asked = [BASE_ALLOCATION, "test:odd", "nobody:knows"]
    with NbdClient(getattr(stage, way), credentials, contexts=asked) as client:
        assert client.contexts == {BASE_ALLOCATION, "test:odd"}
        assert client.multi_conn
        assert whole(client) == bytes(stage.device.content)
        told = bytearray(client.size_bytes)
        for offset, states in client.status():
            at = offset
            for length, state in states[BASE_ALLOCATION].tolist():
                if not state & wire.STATE_ZERO:
                    told[at : at + length] = b"\1" * length
                at += length
        assert all(told[at] for at, byte in enumerate(stage.device.content) if byte)
        assert not all(told)


def test_an_error_of_the_disk_is_raised_and_the_rest_is_read(stage: Stage) -> None:
    with NbdClient(stage.unix) as client:
        stage.device.fail, stage.device.fail_from = Corruption("a bad sector"), 3 * MIB
        try:
            with pytest.raises(Corruption, match="cannot read"):
                whole(client)
        finally:
            stage.device.fail = None
    with NbdClient(stage.unix) as client:
        assert whole(client) == bytes(stage.device.content)


def test_certificates_that_will_not_do(stage: Stage, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    pki.init_ca(other)
    pki.issue(other, "operator", "a1")
    ours, theirs = pki.load(stage.pki, "operator", "a1"), pki.load(other, "operator", "a1")
    with pytest.raises(NotPermitted, match="TLS"):
        NbdClient(stage.tls, house_credentials(theirs))
    with pytest.raises((NotPermitted, PeerUnavailable)):
        NbdClient(stage.tls, ClientCredentials(ours.ca_pem))  # the server demands one of us
    misnamed = NbdUri("disk", tls=True, host="127.0.0.1", port=stage.tls.port, tls_name="elsewhere")
    with pytest.raises(NotPermitted, match="elsewhere"):
        NbdClient(misnamed, house_credentials(ours))
    with pytest.raises(InvalidRequest, match="cannot be used"):
        NbdClient(stage.tls, ClientCredentials(b"no certificate"))
    with pytest.raises(InvalidRequest, match="demands"):
        NbdClient(stage.tls)
    with pytest.raises(NotFound):
        NbdClient(parse_uri(f"nbd+unix:///other?socket={stage.unix.socket_path}"))


class Scripted:
    """Answers its one client with given bytes, and then says nothing more, or hangs up."""

    def __init__(self, said: bytes, *, hang_up: bool = False) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = parse_uri(f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/disk")
        self._said, self._hang_up = said, hang_up
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.sendall(self._said)
        if self._hang_up:
            self._connection.close()

    def close(self) -> None:
        self._thread.join(10)
        if self._connection is not None:
            self._connection.close()
        self._listener.close()


READY = (
    wire.greeting()
    + wire.option_reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ACK)
    + wire.option_reply(
        wire.OPT_GO, wire.REP_INFO, wire.U16.pack(wire.INFO_EXPORT) + wire.EXPORT.pack(MIB, wire.HAS_FLAGS)
    )
    + wire.option_reply(wire.OPT_GO, wire.REP_ACK)
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 0.5)


@pytest.mark.parametrize("said", [b"", wire.greeting(), READY[:-1]])
def test_a_server_that_is_silent_in_the_negotiation(impatient: None, said: bytes) -> None:
    server = Scripted(said)
    with pytest.raises(PeerUnavailable, match="silent"):
        NbdClient(server.uri)
    server.close()


def test_a_server_that_is_silent_later_or_hangs_up(impatient: None) -> None:
    half = wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_DONE, wire.CHUNK_DATA, 1, 8 + 4096) + bytes(8 + 2000)
    for hang_up, why in ((False, "silent"), (True, "hung up|went away")):
        server = Scripted(READY + half, hang_up=hang_up)
        with pytest.raises(PeerUnavailable, match=why), NbdClient(server.uri) as client:
            client.read([(0, memoryview(bytearray(4096)))])
        server.close()


class Trickling(Scripted):
    """Goes on with one byte after the other, and never gets done."""

    def _serve(self) -> None:
        super()._serve()
        assert self._connection is not None
        with contextlib.suppress(OSError):
            while not self._over.wait(0.01):
                self._connection.sendall(b"x")

    def __init__(self, said: bytes) -> None:
        self._over = threading.Event()
        super().__init__(said)

    def close(self) -> None:
        self._over.set()
        super().close()


@pytest.mark.parametrize("negotiated", [False, True])
def test_a_server_that_trickles(
    impatient: None, monkeypatch: pytest.MonkeyPatch, *, negotiated: bool
) -> None:
    if negotiated:
        monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.5)
        answer = wire.CHUNK.pack(wire.CHUNK_MAGIC, wire.CHUNK_DONE, wire.CHUNK_DATA, 1, 8 + 64 * KIB)
        server = Trickling(READY + answer + bytes(8))
    else:
        reply = wire.OPTION_REPLY.pack(
            wire.OPTION_REPLY_MAGIC, wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_POLICY, 16 * KIB
        )
        server = Trickling(wire.greeting() + reply)
    cancelled = threading.Event()
    guard = threading.Timer(10, cancelled.set)
    guard.start()
    with (
        pytest.raises(PeerUnavailable, match="too slow"),
        NbdClient(server.uri, cancelled=cancelled) as client,
    ):
        client.read([(0, memoryview(bytearray(64 * KIB)))])
    guard.cancel()
    server.close()


def test_a_slow_server_that_answers_is_borne_with(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer in its time, though all of them together take longer than one may."""
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(stage.device, "_note", lambda *_: threading.Event().wait(0.03))  # a read of the disk
    with NbdClient(stage.unix) as client:
        started = time.monotonic()
        client.read([(at * 512, memoryview(bytearray(512))) for at in range(40)])
        assert time.monotonic() - started > 1.1


def test_a_wait_is_cancelled() -> None:
    server, cancelled = Scripted(READY), threading.Event()
    with NbdClient(server.uri, cancelled=cancelled) as client:
        threading.Timer(0.1, cancelled.set).start()
        with pytest.raises(Cancelled):
            client.read([(0, memoryview(bytearray(4096)))])
    server.close()


def test_a_disk_of_no_bytes_is_none() -> None:
    empty = READY.replace(wire.EXPORT.pack(MIB, wire.HAS_FLAGS), wire.EXPORT.pack(0, wire.HAS_FLAGS))
    server = Scripted(empty)
    with pytest.raises(Exception, match="0 bytes"):
        NbdClient(server.uri)
    server.close()
