"""Edge: collection of garbage, surveys of space, previews of deletions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.errors import Cancelled, InvalidRequest
from arraylift.ids import ImageId, check_id, check_name
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import image_pb2, image_pb2_grpc, target_admin_pb2_grpc
from arraylift.v1 import target_admin_pb2 as pb
from dedup_target.collect import LIVE_PERCENT_MIN, CollectFigures, CollectOptions, Collector
from dedup_target.key_store import DEFAULT_TENANT
from dedup_target.store import Store
from dedup_target.survey import SpaceUse, Survey, Surveyor

PREVIEW_IMAGES_MAX = 1024


class MaintenanceEdge(target_admin_pb2_grpc.TargetAdminServiceServicer):
    """CollectGarbage, SurveySpace."""

    _store: Store
    _collector: Collector
    _surveyor: Surveyor

    def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CollectGarbageResponse]:
        if request.live_percent_min > 100:
            raise InvalidRequest("live_percent_min is a percentage")
        unit, stopping = self._store.unit_named(request.unit), threading.Event()
        options = CollectOptions(
            dry_run=request.dry_run,
            live_percent_min=request.live_percent_min or LIVE_PERCENT_MIN,
            bytes_per_second_max=request.bytes_per_second_max,
        )

        def run(report: Callable[[CollectFigures], None]) -> CollectFigures:
            return self._collector.collect(unit, options, report=report, stopping=stopping)

        news = stream_long_call(context, run, cancelled=stopping, what=f"collect {unit.name}")
        yield from map(_figures, news)

    def SurveySpace(
        self, request: pb.SurveySpaceRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SurveySpaceResponse]:
        stopping = threading.Event()

        def run(report: Callable[[pb.SurveySpaceResponse], None]) -> pb.SurveySpaceResponse:
            def progress(done: int, total: int) -> None:
                if stopping.is_set():
                    raise Cancelled("the survey was stopped")
                report(pb.SurveySpaceResponse(images_done=done, images_total=total))

            return _survey(self._surveyor.survey(by_vm=request.by_vm, progress=progress))

        yield from stream_long_call(context, run, cancelled=stopping, what="survey")


class PreviewEdge(image_pb2_grpc.ImageServiceServicer):
    """PreviewDelete."""

    _surveyor: Surveyor

    def PreviewDelete(
        self, request: image_pb2.PreviewDeleteRequest, context: grpc.ServicerContext
    ) -> image_pb2.PreviewDeleteResponse:
        if bool(request.image_ids) == bool(request.vm_id):
            raise InvalidRequest("name images or a VM, one of the two")
        if len(request.image_ids) > PREVIEW_IMAGES_MAX:
            raise InvalidRequest(f"a preview is of at most {PREVIEW_IMAGES_MAX} images, or of a VM")
        if request.vm_id:
            tenant = check_name(request.tenant, "tenant name") if request.tenant else DEFAULT_TENANT
            ids = self._surveyor.images_of(tenant, check_id(request.vm_id, "VM id"))
        else:
            ids = [ImageId(check_id(one, "image id")) for one in request.image_ids]
        found = self._surveyor.preview(ids)
        return image_pb2.PreviewDeleteResponse(
            image_count=found.image_count,
            unique_plain_bytes=found.plain_bytes,
            unique_stored_bytes=found.stored_bytes,
        )


def _figures(figures: CollectFigures) -> pb.CollectGarbageResponse:
    names = [field.name for field in pb.CollectGarbageResponse.DESCRIPTOR.fields]
    return pb.CollectGarbageResponse(**{name: getattr(figures, name) for name in names})


def _survey(survey: Survey) -> pb.SurveySpaceResponse:
    return pb.SurveySpaceResponse(
        done=True,
        total=_use(survey.total),
        tenants=map(_use, survey.tenants),
        units=map(_use, survey.units),
        vms=map(_use, survey.vms),
    )


def _use(use: SpaceUse) -> pb.SpaceUse:
    return pb.SpaceUse(**{name: getattr(use, name) for name in SpaceUse.__slots__})
