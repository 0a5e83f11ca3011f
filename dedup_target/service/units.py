"""Edge: those methods of TargetAdminService that are about storage units."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import ImageId, check_id, check_name
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import target_admin_pb2 as pb
from arraylift.v1 import target_admin_pb2_grpc as pb_grpc
from dedup_target.move_images import MoveProgress, Mover
from dedup_target.rebuild_unit import RebuildNews, UnitRebuilder
from dedup_target.store import Store
from dedup_target.superblock import Role
from dedup_target.unit_admin import UnitAdmin
from dedup_target.units import Member

AFFECTED_MAX = 1000
IMAGES_MAX = 10_000

_ROLES = {pb.UNIT_ROLE_ACTIVE: Role.ACTIVE, pb.UNIT_ROLE_ARCHIVE: Role.ARCHIVE}
_TO_PB = {role: number for number, role in _ROLES.items()}


class UnitsEdge(pb_grpc.TargetAdminServiceServicer):
    """ListUnits, AddUnit, DrainUnit, RetireUnit, MoveImages, RebuildUnit."""

    _store: Store
    _unit_admin: UnitAdmin
    _mover: Mover
    _rebuilder: UnitRebuilder

    def ListUnits(self, request: pb.ListUnitsRequest, context: grpc.ServicerContext) -> pb.ListUnitsResponse:
        receiving = self._store.unit
        members = sorted(self._store.units.members, key=lambda member: member.unit is not receiving)
        return pb.ListUnitsResponse(units=map(_unit, members))

    def AddUnit(self, request: pb.AddUnitRequest, context: grpc.ServicerContext) -> pb.AddUnitResponse:
        if request.role not in _ROLES:
            raise InvalidRequest("a unit is active or archive", next_step="name its role")
        name = check_name(request.name, "unit name")
        added = self._unit_admin.add(name, _ROLES[request.role], request.location, request.endpoint)
        return pb.AddUnitResponse(unit=_unit(added))

    def DrainUnit(
        self, request: pb.DrainUnitRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DrainUnitResponse]:
        name, cancelled = check_name(request.name, "unit name"), threading.Event()

        def run(report: Callable[[MoveProgress], None]) -> MoveProgress:
            return self._unit_admin.drain(name, report=report, stopping=cancelled)

        for one in stream_long_call(context, run, cancelled=cancelled, what=f"drain {name}"):
            yield pb.DrainUnitResponse(progress=_progress(one))

    def RetireUnit(
        self, request: pb.RetireUnitRequest, context: grpc.ServicerContext
    ) -> pb.RetireUnitResponse:
        self._unit_admin.retire(check_name(request.name, "unit name"), lose_images=request.lose_images)
        return pb.RetireUnitResponse()

    def MoveImages(
        self, request: pb.MoveImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.MoveImagesResponse]:
        if len(request.image_ids) > IMAGES_MAX:
            raise InvalidRequest(f"at most {IMAGES_MAX} images a call")
        image_ids = [ImageId(check_id(one, "image id")) for one in request.image_ids]
        to_unit = check_name(request.to_unit, "unit name") if request.to_unit else ""
        cancelled = threading.Event()
        named: list[pb.MoveImagesResponse] = []

        def run(report: Callable[[MoveProgress], None]) -> MoveProgress:
            return self._mover.archive(
                to_unit,
                image_ids=image_ids,
                older_than_seconds=None if image_ids else request.older_than_seconds,
                dry_run=request.dry_run,
                report=report,
                stopping=cancelled,
            )

        if request.dry_run:  # nothing of it may be dropped for a slow reader, and it is quick
            last = run(lambda one: named.append(pb.MoveImagesResponse(progress=_progress(one))))
            yield from named
            yield pb.MoveImagesResponse(progress=_progress(last))
            return
        for one in stream_long_call(context, run, cancelled=cancelled, what="move images"):
            yield pb.MoveImagesResponse(progress=_progress(one))

    def RebuildUnit(
        self, request: pb.RebuildUnitRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RebuildUnitResponse]:
        unit, cancelled = self._store.unit_named(request.unit), threading.Event()

        def run(report: Callable[[RebuildNews], None]) -> RebuildNews:
            return self._rebuilder.rebuild(unit, report=report, cancelled=cancelled)

        news = stream_long_call(context, run, cancelled=cancelled, what=f"rebuild {unit.name}")
        yield from map(_rebuilt, news)


def _rebuilt(news: RebuildNews) -> pb.RebuildUnitResponse:
    return pb.RebuildUnitResponse(
        containers_done=news.index.containers_done,
        containers_total=news.index.containers_total,
        records=news.index.records,
        manifests_restored=news.manifests_restored,
        containers_damaged=news.index.containers_damaged,
        done=news.done,
    )


def _unit(member: Member) -> pb.Unit:
    images = member.manifests.all()
    affected = [image.image_id for image in images[:AFFECTED_MAX]] if member.problem else []
    return pb.Unit(
        name=member.entry.name,
        unit_id=member.entry.unit_id,
        role=_TO_PB[member.entry.role],
        location=member.entry.location,
        endpoint=member.entry.endpoint,
        absent=bool(member.problem),
        problem=member.problem,
        image_count=len(images),
        container_bytes=member.unit.index.totals().file_bytes if member.unit is not None else 0,
        affected_images=affected,
        draining=member.entry.draining,
    )


def _progress(one: MoveProgress) -> pb.MoveProgress:
    return pb.MoveProgress(
        images_done=one.images_done,
        images_total=one.images_total,
        image_id=one.image_id,
        bytes_read=one.bytes_read,
        bytes_stored=one.bytes_stored,
        kept_image_ids=[image_id for image_id, _ in one.kept],
        kept_reasons=[why for _, why in one.kept],
        done=one.done,
    )
