"""Exchange calls to other daemons of one role: a channel for each peer, a stream for each lane."""

from __future__ import annotations

import threading

import grpc

from arraylift.exchange.grpc_stream import GrpcLaneStream
from arraylift.exchange.lane import LaneStream
from arraylift.pki import TlsMaterial
from arraylift.rpc.channel import connect


class ExchangePeers:
    """Channels to receivers of a role, one each, made at first use. Any thread."""

    def __init__(self, tls: TlsMaterial, role: str) -> None:
        self._role = role
        self._tls = tls
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}

    def open_stream(self, address: str) -> LaneStream:
        """Begin an Exchange call to ``host:port``. Raises InvalidRequest."""
        with self._lock:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = connect(address, self._tls, self._role)
        return GrpcLaneStream(channel, f"{self._role} {address}")

    def close(self) -> None:
        """Close every channel; calls on them end."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
