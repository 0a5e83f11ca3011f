"""Edge: Exchange, where an array or another target sends an image to this one."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from arraylift.clock import Clock
from arraylift.exchange import wire
from arraylift.exchange.messages import Reply
from arraylift.exchange.serve_lane import serve_lane
from arraylift.rpc.identity import current_peer
from arraylift.rpc.server import Service
from dedup_target.ingest import Ingest
from dedup_target.transfers import Transfers

SERVICE = "arraylift.v1.SegmentExchangeService"


def exchange_service(transfers: Transfers, clock: Clock) -> Service:
    """The target's receiving side. Requests stay bytes until they are in our own code, so that
    what is malformed gets our own error."""

    def exchange(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Reply]:
        peer = current_peer().name
        return serve_lane(requests, lambda opening: Ingest(transfers.find(opening, peer), clock))

    handler: grpc.RpcMethodHandler[bytes, Reply] = grpc.stream_stream_rpc_method_handler(
        exchange, request_deserializer=None, response_serializer=wire.encode_reply
    )
    return Service(SERVICE, {"Exchange": handler})
