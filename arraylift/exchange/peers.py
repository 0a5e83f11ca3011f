"""Exchange calls to other daemons of one role: a channel for each peer, a stream for each lane."""

from __future__ import annotations

from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.lane import LaneStream
from arraylift.pki import TlsMaterial
from arraylift.rpc.channels import Channels

CHANNELS_MAX = 64


class ExchangePeers:
    """Receivers of a role. Any thread."""

    def __init__(self, tls: TlsMaterial, role: str) -> None:
        self._role = role
        self._channels = Channels(tls, channels_max=CHANNELS_MAX)

    def open_stream(self, address: str) -> LaneStream:
        """Begin an Exchange call to ``host:port``. Raises InvalidRequest, PeerUnavailable (closed)."""
        return GrpcLaneStream(self._channels.channel(address, self._role), f"{self._role} {address}")

    def close(self) -> None:
        """Close every channel; calls on them end."""
        self._channels.close()
