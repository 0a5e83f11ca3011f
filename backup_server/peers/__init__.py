"""Edge: calls to virtual center, hosts, arrays and targets, in the words of ``ports``.

Owns: one channel for each peer, made at first use, shared by all threads.
Callers: any thread.
"""

from __future__ import annotations

from grpc_health.v1 import health_pb2, health_pb2_grpc

from arraylift.errors import WrongState
from arraylift.pki import TlsMaterial
from arraylift.rpc.channels import Channels
from backup_server.model import PeerKind, RegisteredPeer
from backup_server.peers.array import GrpcArray
from backup_server.peers.caller import Caller, Deadlines
from backup_server.peers.target import GrpcTarget
from backup_server.peers.vms import GrpcCenter, GrpcHost
from backup_server.ports import HostRef
from backup_server.registry import PEERS_MAX

__all__ = ["Deadlines", "GrpcPeers"]

CHANNELS_MAX = PEERS_MAX


class GrpcPeers:
    """ports.Peers over gRPC."""

    def __init__(self, tls: TlsMaterial, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        self._channels = Channels(tls, channels_max=CHANNELS_MAX)

    def center(self, peer: RegisteredPeer) -> GrpcCenter:
        return GrpcCenter(self._channels, self.deadlines, peer)

    def host(self, ref: HostRef) -> GrpcHost:
        return GrpcHost(self._channels, self.deadlines, RegisteredPeer(PeerKind.HOST, ref.name, ref.address))

    def array(self, peer: RegisteredPeer) -> GrpcArray:
        return GrpcArray(self._channels, self.deadlines, peer)

    def target(self, peer: RegisteredPeer) -> GrpcTarget:
        return GrpcTarget(self._channels, self.deadlines, peer)

    def check(self, peer: RegisteredPeer) -> None:
        seconds = self.deadlines.health_seconds
        caller = Caller(self._channels, self.deadlines, peer)
        answer = caller.call(
            health_pb2_grpc.HealthStub, "Check", health_pb2.HealthCheckRequest(), seconds=seconds
        )
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise WrongState(f"{peer} is not serving", subject=str(peer), next_step="look at its log")

    def close(self) -> None:
        """End every call (P2)."""
        self._channels.close()
