"""Edge: Exchange, where a target sends an image into a new volume."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from arraylift.exchange import wire
from arraylift.exchange.messages import Reply
from arraylift.exchange.serve_lane import serve_lane
from arraylift.rpc.identity import current_peer
from arraylift.rpc.server import Service
from primary_array.restores import Restores

SERVICE = "arraylift.v1.SegmentExchangeService"


def exchange_service(restores: Restores) -> Service:
    """The array's receiving side."""

    def exchange(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Reply]:
        peer = current_peer().name
        return serve_lane(requests, lambda opening: restores.find(opening, peer))

    handler: grpc.RpcMethodHandler[bytes, Reply] = grpc.stream_stream_rpc_method_handler(
        exchange, request_deserializer=None, response_serializer=wire.encode_reply
    )
    return Service(SERVICE, {"Exchange": handler})
