"""Edge: scrub of a unit, and verdicts on images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.ids import ImageId, check_id
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2, target_admin_pb2_grpc
from dedup_target.scrub import ScrubNews
from dedup_target.scrubs import Scrubs
from dedup_target.store import Store
from dedup_target.verify_image import ImageVerifier, Verdict


class ScrubEdge(target_admin_pb2_grpc.TargetAdminServiceServicer):
    """Scrub."""

    _store: Store
    _scrubs: Scrubs

    def Scrub(
        self, request: target_admin_pb2.ScrubRequest, context: grpc.ServicerContext
    ) -> Iterator[target_admin_pb2.ScrubResponse]:
        scrub = self._scrubs.of(self._store.unit_named(request.unit))
        cancelled = threading.Event()

        def run(report: Callable[[ScrubNews], None]) -> ScrubNews:
            return scrub.run(
                bytes_per_second_max=request.bytes_per_second_max,
                restart=request.restart,
                stopping=cancelled,
                report=report,
            )

        yield from map(_scrub_response, stream_long_call(context, run, cancelled=cancelled, what="scrub"))


class VerifyEdge(image_pb2_grpc.ImageServiceServicer):
    """VerifyImage."""

    _verifier: ImageVerifier

    def VerifyImage(
        self, request: image_pb2.VerifyImageRequest, context: grpc.ServicerContext
    ) -> Iterator[image_pb2.VerifyImageResponse]:
        image_id = ImageId(check_id(request.image_id, "image id"))
        cancelled = threading.Event()

        def run(report: Callable[[Verdict], None]) -> Verdict:
            return self._verifier.verify(
                image_id, max_age_seconds=request.max_age_seconds, cancelled=cancelled, report=report
            )

        news = stream_long_call(context, run, cancelled=cancelled, what=f"verify {image_id}")
        yield from map(_verify_response, news)


def _scrub_response(news: ScrubNews) -> target_admin_pb2.ScrubResponse:
    period = news.period
    return target_admin_pb2.ScrubResponse(
        containers_done=news.containers_done,
        containers_total=news.containers_total,
        bytes_read=period.figures.bytes_read,
        records_checked=period.figures.records_checked,
        records_damaged=period.figures.records_damaged,
        period_started_at_ns=period.started_at_ns,
        done=news.done,
        containers_worn=period.figures.containers_worn,
        unreadable_containers=[f"{container:016x}" for container in period.unreadable],
        affected_images=period.affected_images if news.done else (),
    )


def _verify_response(verdict: Verdict) -> image_pb2.VerifyImageResponse:
    return image_pb2.VerifyImageResponse(
        containers_done=verdict.containers_done,
        containers_total=verdict.containers_total,
        done=verdict.done,
        whole=verdict.whole,
        damaged_span_count=verdict.damaged_span_count,
        damaged_spans=verdict.damaged_spans,
        oldest_check_at_ns=verdict.oldest_check_at_ns,
        bytes_read=verdict.bytes_read,
    )
