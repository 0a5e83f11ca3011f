"""Connections: limits, TLS, flushes beside requests, ends; over real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest, StoreFailed, WrongState
from arraylift.nbd import connection, link, server, tls, wire
from arraylift.nbd.negotiation import Tls
from arraylift.nbd.server import Listener, NbdServer
from arraylift.nbd.tls import server_context
from arraylift.rpc.identity import Peer
from arraylift.sizes import MIB
from tests.e2e.daemon import wait_until
from tests.fakes.nbd import Client, MemoryDevice, MemoryExports, option, request

FLAGS = wire.U32.pack(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)


class SlowDevice(MemoryDevice):
    """Its flushes wait for ``let_flush``."""

    def __init__(self) -> None:
        super().__init__(4 * MIB)
        self.let_flush = threading.Event()
        self.flushing = threading.Event()
        self.closed_while_flushing = False

    def flush(self) -> None:
        self.flushing.set()
        assert self.let_flush.wait(30)
        self.closed_while_flushing |= self.closed > 0
        super().flush()


class Stage:
    """One server on a Unix socket."""

    def __init__(self, folder: Path, *, connections_max: int = 256) -> None:
        self.path = str(folder / "nbd.sock")
        self.device = SlowDevice()
        self.exports = MemoryExports({"disk": self.device, "plain": MemoryDevice(4 * MIB)})
        self.server = NbdServer(
            [Listener(self.path, Tls.NONE)],
            self.exports,
            context=None,
            files=RealFiles(),
            connections_max=connections_max,
        )
        self.server.start()
        self._sockets: list[socket.socket] = []

    def client(self, name: str = "plain") -> Client:
        made = Client.connect(self.path, name)
        self._sockets.append(made.socket)
        return made

    def raw(self) -> socket.socket:
        """A connection that has said nothing yet."""
        made = socket.socket(socket.AF_UNIX)
        self._sockets.append(made)
        made.settimeout(10)
        made.connect(self.path)
        return made

    def count(self) -> int:
        return len(self.server._clients)

    def close(self) -> None:
        self.device.let_flush.set()
        for each in self._sockets:
            each.close()
        self.server.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_requests_go_on_while_a_flush_runs_and_later_flushes_share_the_next(stage: Stage) -> None:
    client = stage.client("disk")
    first = client.start(wire.CMD_FLUSH)
    assert stage.device.flushing.wait(10)
    assert client.read(0, 512) == bytes(512)
    later = [client.start(wire.CMD_FLUSH) for _ in range(3)]
    later.append(client.start(wire.CMD_WRITE, 0, 1, flags=wire.CMD_FLAG_FUA, payload=b"x"))
    assert client.read(0, 1) == b"x"
    stage.device.let_flush.set()
    assert [client.decoder.next().cookie for _ in range(5)] == [first, *later]
    assert stage.device.flushes <= 3


def test_a_disconnecting_client_gets_the_answers_it_waits_for(stage: Stage) -> None:
    client = stage.client("disk")
    flush = client.start(wire.CMD_FLUSH)
    client.start(wire.CMD_DISC)
    stage.device.let_flush.set()
    assert client.decoder.next().cookie == flush
    with pytest.raises(EOFError):
        client.take(1)
    wait_until(lambda: stage.device.closed == 1, "the device is closed")


def test_a_failed_flush_is_told(stage: Stage) -> None:
    client = stage.client("disk")
    stage.device.let_flush.set()
    stage.device.fail = StoreFailed("fsync failed")
    assert client.call(wire.CMD_FLUSH).error == wire.EIO


def test_a_client_that_goes_during_a_flush_leaves_the_device_closed_once(stage: Stage) -> None:
    client = stage.client("disk")
    client.start(wire.CMD_FLUSH)
    assert stage.device.flushing.wait(10)
    client.close()
    time.sleep(0.2)  # long enough for the connection to end, if it did not wait
    stage.device.let_flush.set()
    wait_until(lambda: (stage.device.closed, stage.device.flushes) == (1, 1), "the device is closed")
    assert not stage.device.closed_while_flushing


def test_many_flushes_at_once_are_bounded_and_answered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DEFERRED_MAX", 4)
    client = stage.client("disk")
    cookies = list(range(1, 201))
    # At once: as packets of their own they could fill the socket, with nobody to read them on.
    client.send(b"".join(request(wire.CMD_FLUSH, cookie=cookie) for cookie in cookies))
    stage.device.let_flush.set()
    assert [client.decoder.next().cookie for _ in range(200)] == cookies


def test_one_client_too_many_is_turned_away(tmp_path: Path) -> None:
    stage = Stage(tmp_path, connections_max=2)
    try:
        clients = [stage.client(), stage.client()]
        with pytest.raises((EOFError, OSError)):
            stage.client()
        assert clients[0].read(0, 512) == bytes(512)
        clients[1].close()
        wait_until(lambda: stage.count() == 1, "the place is free")
        assert stage.client().read(0, 512) == bytes(512)
    finally:
        stage.close()


def test_a_flood_of_silent_clients_pushes_out_its_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "NEGOTIATIONS_MAX", 4)
    working = stage.client()
    flood = [stage.raw() for _ in range(12)]
    wait_until(lambda: stage.server._serial == 13, "all have been let in")
    wait_until(lambda: stage.count() <= 5, "the oldest are gone", seconds=10)
    assert stage.client().read(0, 512) == bytes(512)
    assert working.read(0, 512) == bytes(512)
    assert flood[0].recv(18) in {wire.greeting(), b""}


def test_a_negotiation_has_an_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "NEGOTIATION_SECONDS_MAX", 0.3)
    begin = time.monotonic()
    slow = stage.raw()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012  # whichever call meets the end
        while True:
            slow.sendall(b"\0\0\0\3"[:1])
            time.sleep(0.05)
            assert time.monotonic() - begin < 5
    wait_until(lambda: stage.count() == 0, "it is gone")


def test_silence_in_the_middle_ends_and_between_requests_does_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS_MAX", 1)
    calm, half = stage.client(), stage.client()
    half.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 100) + b"not all")
    wait_until(lambda: stage.count() == 1, "the silent one is gone", seconds=10)
    time.sleep(1.2)
    assert calm.read(0, 512) == bytes(512)


def test_a_client_that_reads_nothing_is_cut(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS_MAX", 1)
    deaf = stage.client()
    deaf.write(0, b"x" * MIB)
    for _ in range(64):
        deaf.start(wire.CMD_READ, 0, MIB)
    wait_until(lambda: stage.count() == 0, "the deaf one is gone", seconds=15)


def test_stopping_hangs_up_and_closes_every_device(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    clients = [stage.client() for _ in range(3)]
    stage.raw()
    stage.server.stop()
    plain = stage.exports.devices["plain"]
    assert plain.closed == 3
    for client in clients:
        with pytest.raises((EOFError, OSError)):
            client.read(0, 1)
    assert not Path(stage.path).exists()
    stage.close()


def test_the_daemon_can_hang_up_on_one_client(stage: Stage) -> None:
    first, second = stage.client(), stage.client()
    stage.exports.hang_ups[0]()
    with pytest.raises((EOFError, OSError)):
        first.read(0, 1)
    assert second.read(0, 1) == b"\0"


# -- listening ----------------------------------------------------------------------------------


def test_a_socket_left_behind_is_replaced_and_a_living_one_is_not(stage: Stage, tmp_path: Path) -> None:
    def another(path: str) -> NbdServer:
        return NbdServer([Listener(path, Tls.NONE)], stage.exports, context=None, files=RealFiles())

    with pytest.raises(WrongState, match="somebody listens"):
        another(stage.path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left"))
    made = another(str(tmp_path / "left"))
    made.start()
    Client.connect(str(tmp_path / "left"), "plain").close()
    assert (tmp_path / "left").stat().st_mode & 0o777 == 0o600
    made.stop()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(WrongState, match="no socket"):
        another(str(tmp_path / "file"))
    with pytest.raises(InvalidRequest):
        another(str(tmp_path / "nowhere" / "s"))
    with pytest.raises(InvalidRequest, match="at most"):
        another("/" + "x" * 200)


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WrongState, match="is taken"):
            NbdServer([Listener(address, Tls.NONE)], MemoryExports({}), context=None, files=RealFiles())


# -- TLS ----------------------------------------------------------------------------------------


class SecureStage:
    """A server that demands TLS, and clients' certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "pki")
        pki.init_ca(self.folder)
        pki.issue(self.folder, "array", "a1")
        self.exports = MemoryExports({"disk": MemoryDevice(4 * MIB)})
        self.server = NbdServer(
            [Listener("127.0.0.1:0", Tls.DEMANDED)],
            self.exports,
            context=server_context(pki.load(self.folder, "array", "a1")),
            files=RealFiles(),
        )
        self.server.start()

    def handshake(self, folder: str | None, role: str = "host", name: str = "h1") -> socket.socket:
        """Connect, STARTTLS, shake hands as ``role`` of the CA in ``folder``; None: without a certificate."""
        raw = socket.create_connection(("127.0.0.1", self.server.port or 0), timeout=10)
        try:
            raw.recv(18, socket.MSG_WAITALL)
            raw.sendall(FLAGS + option(wire.OPT_STARTTLS))
            raw.recv(wire.OPTION_REPLY.size, socket.MSG_WAITALL)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(f"{self.folder}/ca.pem")
            if folder is not None:
                pki.issue(folder, role, name)
                context.load_cert_chain(f"{folder}/{role}-{name}.pem", f"{folder}/{role}-{name}.key")
            return context.wrap_socket(raw, server_hostname="127.0.0.1")
        except BaseException:
            raw.close()
            raise


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[SecureStage]:
    made = SecureStage(tmp_path)
    yield made
    made.server.stop()


class Secured(Client):
    """Goes on after STARTTLS, where neither greeting nor flags are repeated."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._said = wire.greeting()
        super().__init__(connection, name)

    def take(self, count: int) -> bytes:
        if self._said:
            said, self._said = self._said, b""
            return said
        return super().take(count)

    def send(self, data: bytes) -> None:
        if data != FLAGS:
            super().send(data)


def test_everything_works_inside_tls(secure: SecureStage) -> None:
    client = Secured(secure.handshake(secure.folder), "disk")
    assert secure.exports.callers == [Peer("host", "h1")]
    client.write(0, bytes(range(256)) * 8192)
    client.flush()
    assert client.read(0, 2 * MIB) == bytes(range(256)) * 8192
    for offset in range(0, MIB, 4096):
        client.start(wire.CMD_READ, offset, 4096)
    for offset in range(0, MIB, 4096):
        assert client.decoder.next().content(offset, 4096) == bytes(range(256)) * 16
    client.close()


def test_flushes_run_beside_requests_inside_tls(secure: SecureStage) -> None:
    slow = SlowDevice()
    secure.exports.devices["slow"] = slow
    client = Secured(secure.handshake(secure.folder), "slow")
    flush = client.start(wire.CMD_FLUSH)
    assert slow.flushing.wait(10)
    assert client.read(0, 512) == bytes(512)
    slow.let_flush.set()
    assert client.decoder.next().cookie == flush
    client.close()


def test_another_ca_and_no_certificate_end_in_the_handshake(secure: SecureStage, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    pki.init_ca(other)
    for folder in (other, None):
        with pytest.raises((ssl.SSLError, OSError)):  # noqa: PT012  # TLS 1.3 tells at the first read
            secured = secure.handshake(folder)
            with secured:
                secured.sendall(option(wire.OPT_LIST))
                if not secured.recv(1):
                    raise ConnectionResetError
    assert secure.exports.callers == []
    wait_until(lambda: not secure.server._clients, "they are gone")


def test_a_hang_up_while_the_socket_changes_hands_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    made = link.Link(ours, SYSTEM_CLOCK)

    def accept(_context: ssl.SSLContext, connection: socket.socket) -> tuple[socket.socket, Peer]:
        made.hang_up()
        return connection, Peer("host", "h1")

    monkeypatch.setattr(tls, "accept", accept)
    with pytest.raises(ConnectionAbortedError):
        made.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), SYSTEM_CLOCK.monotonic() + 5)
    made.close()
    theirs.close()


def test_rubbish_instead_of_a_handshake_ends_the_connection(secure: SecureStage) -> None:
    with socket.create_connection(("127.0.0.1", secure.server.port or 0), timeout=10) as raw:
        raw.recv(18, socket.MSG_WAITALL)
        raw.sendall(FLAGS + option(wire.OPT_STARTTLS))
        raw.recv(wire.OPTION_REPLY.size, socket.MSG_WAITALL)
        raw.sendall(b"\0" * 500)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(100):
                pass
    wait_until(lambda: not secure.server._clients, "it is gone")
