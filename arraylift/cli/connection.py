"""One daemon as the command line calls it: its channel, its stubs, its name.

Owns: a gRPC channel, and the words by which errors name its other end.
Callers: main thread; ``close`` when done.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift import pki
from arraylift.errors import ArrayliftError, NotPermitted, PeerUnavailable
from arraylift.rpc import channel, pages
from arraylift.rpc.address import split_address
from arraylift.rpc.channel import CALL_SECONDS, LONG_CALL_SECONDS, TRANSFER_SECONDS, ResponseStream
from arraylift.rpc.identity import Peer, peer_of_names
from arraylift.rpc.status import AWAY_STEP
from arraylift.v1 import (
    backup_logic_pb2_grpc,
    backup_pb2_grpc,
    catalog_pb2_grpc,
    image_pb2_grpc,
    policy_pb2_grpc,
    target_admin_pb2_grpc,
    virtual_center_pb2_grpc,
    vm_pb2_grpc,
    volume_pb2_grpc,
)

OPERATOR_ROLE = "operator"
OPERATOR_NAME = "admin"
HEALTH_SECONDS = 5.0

Response = TypeVar("Response")


class Connection:
    """Calls one daemon as the operator. Connects at the first call."""

    def __init__(self, noun: str, address: str, pki_directory: Path, *, away_step: str = "") -> None:
        """``noun`` is its role; ``away_step`` what to do when it does not answer.

        Raises what ``pki.load`` does, and InvalidRequest (address).
        """
        self.noun = noun
        self.address = address
        self._away_step = away_step
        self._pki = pki_directory
        tls = pki.load(str(pki_directory), OPERATOR_ROLE, OPERATOR_NAME)
        self._channel = channel.connect(address, tls, noun)

    @property
    def label(self) -> str:
        """As errors name it."""
        return f"{self.noun} {self.address}"

    @cached_property
    def volumes(self) -> volume_pb2_grpc.VolumeServiceStub:
        return volume_pb2_grpc.VolumeServiceStub(self._channel)

    @cached_property
    def backup_logic(self) -> backup_logic_pb2_grpc.BackupLogicServiceStub:
        return backup_logic_pb2_grpc.BackupLogicServiceStub(self._channel)

    @cached_property
    def images(self) -> image_pb2_grpc.ImageServiceStub:
        return image_pb2_grpc.ImageServiceStub(self._channel)

    @cached_property
    def admin(self) -> target_admin_pb2_grpc.TargetAdminServiceStub:
        return target_admin_pb2_grpc.TargetAdminServiceStub(self._channel)

    @cached_property
    def vms(self) -> vm_pb2_grpc.VmServiceStub:
        return vm_pb2_grpc.VmServiceStub(self._channel)

    @cached_property
    def center(self) -> virtual_center_pb2_grpc.VirtualCenterServiceStub:
        return virtual_center_pb2_grpc.VirtualCenterServiceStub(self._channel)

    @cached_property
    def backups(self) -> backup_pb2_grpc.BackupServiceStub:
        return backup_pb2_grpc.BackupServiceStub(self._channel)

    @cached_property
    def catalog(self) -> catalog_pb2_grpc.CatalogServiceStub:
        return catalog_pb2_grpc.CatalogServiceStub(self._channel)

    @cached_property
    def policies(self) -> policy_pb2_grpc.PolicyServiceStub:
        return policy_pb2_grpc.PolicyServiceStub(self._channel)

    def call(
        self, method: Callable[..., Response], request: object, *, timeout_seconds: float = CALL_SECONDS
    ) -> Response:
        """Call a method that answers once; errors of ``channel.call``."""
        try:
            return channel.call(method, request, peer=self.label, timeout_seconds=timeout_seconds)
        except PeerUnavailable as error:
            if self._away_step and error.subject == self.label and error.next_step == AWAY_STEP:
                error.next_step = self._away_step
            raise

    def listing(
        self, method: Callable[..., Any], request: object, items: str, *, slow: bool = False
    ) -> Iterator[Any]:
        """Every item of a listing, over all its pages; ``items`` is the field that has them."""
        seconds = LONG_CALL_SECONDS if slow else CALL_SECONDS
        for answer in pages.follow(lambda asked: self.call(method, asked, timeout_seconds=seconds), request):
            yield from getattr(answer, items)

    def stream(self, method: Callable[..., Any], request: object) -> ResponseStream[Any]:
        """Call a method that answers by a stream of data or progress."""
        return channel.stream(method, request, peer=self.label, timeout_seconds=TRANSFER_SECONDS)

    def upload(self, method: Callable[..., Response], requests: Iterable[object]) -> Response:
        """Call a method that takes a stream; an error raised while making ``requests`` comes out here."""
        failures: list[Exception] = []

        def watched() -> Iterator[object]:
            try:
                yield from requests
            except Exception as error:
                failures.append(error)
                raise  # gRPC cancels the call

        try:
            return self.call(method, watched(), timeout_seconds=TRANSFER_SECONDS)
        except ArrayliftError:
            if failures:
                raise failures[0] from None
            raise

    def is_serving(self) -> bool:
        """Ask for its health. Raises PeerUnavailable, DeadlineExceeded, NotPermitted."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        request = health_pb2.HealthCheckRequest(service="")
        answer = self.call(stub.Check, request, timeout_seconds=HEALTH_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def identity(self) -> Peer:
        """Return who the daemon is, from its verified certificate: grants are made out to that name.

        Raises PeerUnavailable, NotPermitted (a certificate without an identity, or of another role).
        """
        host, port = split_address(self.address)
        stem = self._pki / f"{OPERATOR_ROLE}-{OPERATOR_NAME}"
        try:
            context = ssl.create_default_context(cafile=str(self._pki / "ca.pem"))
            context.load_cert_chain(f"{stem}.pem", f"{stem}.key")
            context.set_alpn_protocols(["h2"])
            with (
                socket.create_connection((host, port), timeout=CALL_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host) as secure,
            ):
                certificate: dict[str, Any] = secure.getpeercert() or {}
        except OSError as error:
            raise PeerUnavailable(
                f"no trusted connection with {self.label}: {error}",
                subject=self.label,
                next_step="check that the daemon runs there and has a certificate of the same CA",
            ) from None
        peer = peer_of_names(value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")
        if peer.role != self.noun:
            raise NotPermitted(
                f"{self.address} is {peer}, and no {self.noun}",
                subject=self.label,
                next_step="give another address",
            )
        return peer

    def close(self) -> None:
        """End whatever still runs on it."""
        self._channel.close()
