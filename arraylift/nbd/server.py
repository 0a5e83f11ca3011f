"""Listen, and give each client a thread.

Owns: the listening sockets and the list of connections.
Invariants:
  V1 at most ``connections_max`` clients; one more is turned away at once.
  V2 at most NEGOTIATIONS_MAX of them have no disk yet; where one more comes, the one that has
     been at it longest goes: whoever floods is in the way of nobody but itself.
  V3 when ``stop`` has returned, no device is in use.
Callers: the composition root's thread. One thread a listener, one a connection, FLUSHERS_MAX that flush.
Why threads: docs/decisions/0070-nbd-threads.md
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import Files
from arraylift.errors import InvalidRequest, WrongState
from arraylift.logs import get_logger
from arraylift.nbd.connection import Connection
from arraylift.nbd.device import Exports
from arraylift.nbd.link import Link
from arraylift.nbd.negotiation import Tls
from arraylift.rpc.address import check_bindable, split_address

CONNECTIONS_MAX = 256
NEGOTIATIONS_MAX = 32
FLUSHERS_MAX = 16
BACKLOG = 128
STOP_SECONDS_MAX = 20.0
_PAUSE_SECONDS = 0.2
_SOCKET_PATH_BYTES_MAX = 107

_log = get_logger("nbd")


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen: ``host:port``, or the absolute path of a Unix socket."""

    address: str
    tls: Tls

    @property
    def is_path(self) -> bool:
        return self.address.startswith("/")


@dataclass(slots=True)
class _Client:
    connection: Connection
    thread: threading.Thread
    negotiating: bool = True


class NbdServer:
    """Serves one daemon's exports."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        exports: Exports,
        *,
        context: ssl.SSLContext | None,
        files: Files,
        connections_max: int = CONNECTIONS_MAX,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Bind; nobody is served before ``start``. Raises WrongState, NotPermitted, InvalidRequest."""
        self._exports = exports
        self._context = context
        self._files = files
        self._connections_max = connections_max
        self._clock = clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[int, _Client] = {}  # in the order in which they came
        self._serial = 0
        self._flushers = ThreadPoolExecutor(FLUSHERS_MAX, thread_name_prefix="nbd-flush")
        self._sockets: list[tuple[socket.socket, Listener]] = []
        self._threads: list[threading.Thread] = []
        try:
            for listener in listeners:
                self._bind(listener)
        except BaseException:
            self._close_sockets()
            raise

    # -- listening ------------------------------------------------------------------------------

    def _bind(self, listener: Listener) -> None:
        if listener.is_path:
            self._sockets.append((self._bind_path(listener.address), listener))
            return
        check_bindable(listener.address)
        host, port = split_address(listener.address, port_min=0)
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            bound = socket.socket(family, kind, protocol)
            self._sockets.append((bound, listener))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(where)
            bound.listen(BACKLOG)

    def _bind_path(self, path: str) -> socket.socket:
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
            raise InvalidRequest(f"a socket's path has at most {_SOCKET_PATH_BYTES_MAX} bytes: {path}")
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._clear_path(path)
            bound.bind(path)
            os.chmod(path, 0o600)  # before it listens: nobody else ever gets in
            bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            raise InvalidRequest(
                f"cannot listen on {path}: {error.strerror}", subject=path, next_step="use another path"
            ) from None
        except BaseException:
            bound.close()
            raise
        return bound

    def _clear_path(self, path: str) -> None:
        """Remove what a process that is gone left there, and nothing else."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.connect(path)
            raise WrongState(f"somebody listens on {path}", subject=path, next_step="stop that first")
        if not stat.S_ISSOCK(found.st_mode):
            raise WrongState(f"{path} is there and is no socket", subject=path, next_step="use another path")
        self._files.remove(path, label="nbd-socket")

    @property
    def port(self) -> int | None:
        """The bound TCP port, where there is one."""
        for bound, listener in self._sockets:
            if not listener.is_path:
                found: int = bound.getsockname()[1]
                return found
        return None

    def start(self) -> None:
        """Begin to serve."""
        for bound, listener in self._sockets:
            thread = threading.Thread(
                target=self._accept, args=(bound, listener), name="nbd-accept", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    # -- clients --------------------------------------------------------------------------------

    def _accept(self, bound: socket.socket, listener: Listener) -> None:
        while not self._stopping.is_set():
            try:
                accepted, _ = bound.accept()
            except OSError as error:
                if not self._stopping.is_set():  # out of file handles, as a rule
                    _log.warning("nbd_accept_failed", error=str(error))
                    self._stopping.wait(_PAUSE_SECONDS)
                continue
            try:
                self._admit(accepted, listener)
            except (OSError, RuntimeError) as error:  # no handle or thread to be had
                _log.warning("nbd_accept_failed", error=str(error))
                accepted.close()

    def _admit(self, accepted: socket.socket, listener: Listener) -> None:
        with self._lock:
            if self._stopping.is_set() or len(self._clients) >= self._connections_max:  # V1
                accepted.close()
                _log.warning("nbd_client_turned_away", connections=len(self._clients))
                return
            self._make_room()
            connection = Connection(
                Link(accepted, self._clock),
                self._exports,
                tls=listener.tls,
                context=None if listener.tls is Tls.NONE else self._context,
                flushers=self._flushers,
                clock=self._clock,
            )
            self._serial += 1
            number = self._serial
            thread = threading.Thread(
                target=self._serve, args=(number, connection), name=f"nbd-{number}", daemon=True
            )
            self._clients[number] = _Client(connection, thread)
            try:
                thread.start()  # under the lock, so that ``stop`` finds no thread that has not begun
            except RuntimeError:
                del self._clients[number]
                connection.close()
                raise

    def _make_room(self) -> None:
        """V2; lock held."""
        negotiating = [client for client in self._clients.values() if client.negotiating]
        if len(negotiating) >= NEGOTIATIONS_MAX:
            negotiating[0].negotiating = False
            negotiating[0].connection.hang_up()
            _log.warning("nbd_negotiation_cut", negotiations=len(negotiating))

    def _serve(self, number: int, connection: Connection) -> None:
        def negotiated() -> None:
            with self._lock:
                self._clients[number].negotiating = False

        try:
            connection.run(negotiated)
        finally:
            with self._lock:
                del self._clients[number]

    # -- end ------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Hang up on everybody and wait until they are gone (V3)."""
        self._stopping.set()
        self._close_sockets()
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.connection.hang_up()
        deadline = self._clock.monotonic() + STOP_SECONDS_MAX
        for thread in [*self._threads, *(client.thread for client in clients)]:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
            if thread.is_alive():
                _log.error("nbd_thread_stuck", thread=thread.name)
        self._flushers.shutdown(wait=False)

    def _close_sockets(self) -> None:
        for bound, listener in self._sockets:
            with contextlib.suppress(OSError):
                bound.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            bound.close()
            if listener.is_path and self._threads:
                self._files.remove(listener.address, label="nbd-socket", missing_ok=True)
