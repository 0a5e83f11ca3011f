"""Put a daemon's gRPC server together: TLS, limits, health, and every handler guarded.

Owns: the listening port and the thread pool of a daemon's RPCs.
Invariants:
  V1 only mutual TLS is served; there is no plaintext port.
  V2 every served method went through ``wrap_handler`` and has an authorization entry, or the
     server does not start.
  V3 calls beyond ``calls_max`` are refused at once (RESOURCE_EXHAUSTED): none waits for a thread
     that may never come.
Callers: the composition root, on the main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from arraylift.errors import WrongState
from arraylift.logs import get_logger
from arraylift.pki import TlsMaterial
from arraylift.rpc.address import check_bindable
from arraylift.rpc.authz import check_complete
from arraylift.rpc.interceptors import Handler, wrap_handler
from arraylift.rpc.status import METADATA_BYTES_MAX
from arraylift.sizes import MESSAGE_BYTES_MAX

CALLS_MAX = 128
"""Calls that one daemon handles at once: each holds a thread while it lasts."""

STREAMS_PER_CONNECTION_MAX = 64
STOP_GRACE_SECONDS = 5.0

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # It would count calls that have ended and wait for Python's collector, and refuse new ones for them.
    ("grpc.http.overload_protection", 0),
    # Two daemons on one port would share its calls between them.
    ("grpc.so_reuseport", 0),
    # Find half-open callers, and let ours ping as channel.py does.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]

_log = get_logger("rpc")


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service: its full name and the handler of each method.

    Make it with ``service_of`` from generated code, or directly, where a method has its own
    (de)serializers: ``Service("arraylift.v1.SegmentExchangeService", {"Exchange":
    grpc.stream_stream_rpc_method_handler(behavior, request_deserializer=..., ...)})``. A deserializer
    that raises fails the call with INTERNAL before any handler sees it; one that wants to say
    more returns something that the handler refuses.
    """

    name: str
    handlers: Mapping[str, Handler]

    def methods(self) -> list[str]:
        """Full method names, ``/package.Service/Method``."""
        return [f"/{self.name}/{method}" for method in self.handlers]


class _Collector:
    """Stands in for a grpc.Server while generated code registers its handlers."""

    def __init__(self) -> None:
        self.services: list[Service] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same handlers come a second time, by name, below."""

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Handler]) -> None:
        self.services.append(Service(name, dict(handlers)))


def service_of(add_to_server: Callable[[Any, Any], None], servicer: object) -> Service:
    """Return the service of a generated ``add_XServicer_to_server`` and its servicer."""
    collector = _Collector()
    add_to_server(servicer, collector)
    assert len(collector.services) == 1, "generated code registers exactly one service"
    return collector.services[0]


class RpcServer:
    """A daemon's gRPC server. ``port`` is the bound one; port 0 in ``address`` lets the system choose."""

    def __init__(
        self,
        address: str,
        tls: TlsMaterial,
        services: Sequence[Service],
        *,
        calls_max: int = CALLS_MAX,
    ) -> None:
        """Bind the port; nothing is answered before ``start``.

        Raises WrongState (port taken), NotPermitted (privileged port), InvalidRequest (address).
        """
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._service_names = [service.name for service in services]
        served = [*services, self._health_service()]
        check_complete(method for service in served for method in service.methods())
        self._pool = ThreadPoolExecutor(max_workers=calls_max, thread_name_prefix="rpc")
        self._server = grpc.server(self._pool, options=_OPTIONS, maximum_concurrent_rpcs=calls_max)
        self._server.add_generic_rpc_handlers([_guarded(service) for service in served])
        credentials = grpc.ssl_server_credentials(
            [(tls.key_pem, tls.certificate_pem)], root_certificates=tls.ca_pem, require_client_auth=True
        )
        self.host = address.rpartition(":")[0]
        self.port = self._bind(address, credentials)

    @property
    def address(self) -> str:
        """``host:port`` as bound."""
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Answer calls from now on; health says SERVING."""
        for name in self._service_names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        _log.info("rpc_started", address=self.address, services=self._service_names)

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Refuse new calls, let running ones finish for ``grace_seconds``, cut the rest, wait."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()
        # Handlers that were cut still run until they notice; their threads end with them.
        self._pool.shutdown(wait=False, cancel_futures=True)
        _log.info("rpc_stopped", address=self.address)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Block until stopped; True if the time ran out first."""
        return self._server.wait_for_termination(timeout_seconds)

    def _health_service(self) -> Service:
        served = service_of(health_pb2_grpc.add_HealthServicer_to_server, self._health)
        # Watch would hold a thread for each caller, without end; Check tells as much.
        return Service(served.name, {name: served.handlers[name] for name in ("Check", "List")})

    def _bind(self, address: str, credentials: grpc.ServerCredentials) -> int:
        check_bindable(address)
        try:
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:  # taken since the check, or a certificate that gRPC refuses
            raise WrongState(
                f"cannot listen on {address}: {error}", subject=address, next_step="try again"
            ) from None


def _guarded(service: Service) -> grpc.GenericRpcHandler:
    guarded = {
        method: wrap_handler(f"/{service.name}/{method}", handler)
        for method, handler in service.handlers.items()
    }
    return grpc.method_handlers_generic_handler(service.name, guarded)
