"""Edge: SegmentExchangeService, for every daemon that receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from arraylift.exchange import wire
from arraylift.exchange.messages import Open, Reply
from arraylift.exchange.serve_lane import Receiving, serve_lane
from arraylift.rpc.identity import Peer, current_peer
from arraylift.rpc.server import Service

SERVICE = "arraylift.v1.SegmentExchangeService"


def exchange_service(find: Callable[[Open, Peer], Receiving]) -> Service:
    """The receiving side; ``find`` returns the transfer that a peer may open.

    Requests stay bytes until they are in our own code, so that what is malformed gets our own error.
    """

    def exchange(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[Reply]:
        peer = current_peer()
        return serve_lane(requests, lambda opening: find(opening, peer))

    handler: grpc.RpcMethodHandler[bytes, Reply] = grpc.stream_stream_rpc_method_handler(
        exchange, request_deserializer=None, response_serializer=wire.encode_reply
    )
    return Service(SERVICE, {"Exchange": handler})
