"""Edge: TargetAdminService."""

from __future__ import annotations

import grpc

from arraylift.errors import InvalidRequest
from arraylift.ids import ImageId, TransferId, check_id, check_name
from arraylift.v1 import target_admin_pb2 as pb
from dedup_target.collect import Collector
from dedup_target.lock_clock import LockClock
from dedup_target.move_images import Mover
from dedup_target.rebuild_unit import UnitRebuilder
from dedup_target.scrubs import Scrubs
from dedup_target.service.keeping import KeepingEdge
from dedup_target.service.maintenance import MaintenanceEdge
from dedup_target.service.scrub import ScrubEdge
from dedup_target.service.stats import StatsEdge
from dedup_target.service.units import UnitsEdge
from dedup_target.store import Store
from dedup_target.survey import Surveyor
from dedup_target.transfers import GrantRequest, Transfers
from dedup_target.unit_admin import UnitAdmin


class AdminEdge(KeepingEdge, MaintenanceEdge, ScrubEdge, StatsEdge, UnitsEdge):
    """Serves one target."""

    def __init__(
        self,
        store: Store,
        transfers: Transfers,
        *,
        lock_clock: LockClock,
        scrubs: Scrubs,
        collector: Collector,
        surveyor: Surveyor,
        unit_admin: UnitAdmin,
        mover: Mover,
        rebuilder: UnitRebuilder,
    ) -> None:
        self._store = store
        self._collector = collector
        self._surveyor = surveyor
        self._transfers = transfers
        self._lock_clock = lock_clock
        self._scrubs = scrubs
        self._unit_admin = unit_admin
        self._mover = mover
        self._rebuilder = rebuilder

    def CreateGrant(
        self, request: pb.CreateGrantRequest, context: grpc.ServicerContext
    ) -> pb.CreateGrantResponse:
        if request.no_base and request.base_image_id:
            raise InvalidRequest("a grant names a base or wants none, not both")
        grant, base = self._transfers.create_grant(
            GrantRequest(
                transfer_id=TransferId(check_id(request.transfer_id, "transfer id")),
                peer=check_name(request.array, "array name"),
                tenant_name=check_name(request.tenant, "tenant name") if request.tenant else "",
                image_name=check_name(request.image_name, "image name", slash=True),
                base_image_id=ImageId(check_id(request.base_image_id, "base image id"))
                if request.base_image_id
                else None,
                no_base=request.no_base,
            )
        )
        return pb.CreateGrantResponse(grant=grant, base_image_id=base or "")

    def RevokeGrant(
        self, request: pb.RevokeGrantRequest, context: grpc.ServicerContext
    ) -> pb.RevokeGrantResponse:
        self._transfers.revoke(TransferId(check_id(request.transfer_id, "transfer id")))
        return pb.RevokeGrantResponse()
