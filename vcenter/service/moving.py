"""Edge: the methods of VirtualCenterService about where VMs are, were and go. Checks, converts, delegates."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from arraylift.clock import Clock
from arraylift.errors import InvalidRequest
from arraylift.ids import VmId, check_id
from arraylift.rpc import pages
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import virtual_center_pb2_grpc as pb_grpc
from vcenter import convert
from vcenter.inventory_store import HISTORY_PER_VM_MAX, NUMBER_MAX, HistoryEntry
from vcenter.live_inventory import LiveInventory
from vcenter.migrate import Asked, Migrator
from vcenter.moves import Moves
from vcenter.routing import Budget, Router
from vcenter.synchronize import synchronize_hosts

ANSWER_SECONDS = 0.25
"""Kept back from a caller's time, so that he hears what failed before his deadline does."""

DOWNTIME_MS_MAX = 60_000
SEND_SECONDS_MAX = 6 * 3600


class MovingEdge(pb_grpc.VirtualCenterServiceServicer):
    """Serves one center."""

    def __init__(
        self, *, live: LiveInventory, router: Router, moves: Moves, migrator: Migrator, clock: Clock
    ) -> None:
        self._live, self._router, self._moves, self._migrator = live, router, moves, migrator
        self._clock = clock

    def SynchronizeHosts(
        self, request: pb.SynchronizeHostsRequest, context: grpc.ServicerContext
    ) -> pb.SynchronizeHostsResponse:
        names = synchronize_hosts(self._router, request.host, self._budget(context))
        now = self._live.now
        known = [now.hosts[name] for name in names if name in now.hosts]
        return pb.SynchronizeHostsResponse(hosts=[convert.host_to_pb(host, now) for host in known])

    def GetVmHistory(
        self, request: pb.GetVmHistoryRequest, context: grpc.ServicerContext
    ) -> pb.GetVmHistoryResponse:
        if bool(request.vm_id) == bool(request.name):
            raise InvalidRequest("give a VM's id or its name, one of the two")
        vm_id = vm_id_of(request.vm_id) if request.vm_id else self._live.now.vm_named(request.name).vm_id
        behind = pages.after(request.page_token, int)
        before = NUMBER_MAX if behind is None else int(behind[0])
        found = self._live.history(vm_id, before=before, count=HISTORY_PER_VM_MAX)
        page, token = pages.cut(found, request.page_size, key=_by_number, to_pb=convert.history_to_pb)
        return pb.GetVmHistoryResponse(entries=page, next_page_token=token)

    def MigrateVm(
        self, request: pb.MigrateVmRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.MigrateVmResponse]:
        if request.downtime_ms_max > DOWNTIME_MS_MAX or request.seconds_max > SEND_SECONDS_MAX:
            raise InvalidRequest(
                f"at most {DOWNTIME_MS_MAX} ms for a guest to stand still, {SEND_SECONDS_MAX} s to be sent"
            )
        asked = Asked(
            vm_id_of(request.vm_id),
            request.host,
            live=request.live,
            downtime_ms_max=request.downtime_ms_max,
            seconds_max=request.seconds_max,
        )
        for news in self._migrator.migrate(asked, context.is_active, self._budget(context)):
            yield convert.news_to_pb(news, self._live.now)

    def ListMigrations(
        self, request: pb.ListMigrationsRequest, context: grpc.ServicerContext
    ) -> pb.ListMigrationsResponse:
        vm_id = vm_id_of(request.vm_id) if request.vm_id else ""
        found = [one for one in self._moves.all() if vm_id in ("", one[0].vm_id)]
        return pb.ListMigrationsResponse(
            migrations=[convert.migration_to_pb(one, waits_for) for one, waits_for in found]
        )

    def _budget(self, context: grpc.ServicerContext) -> Budget:
        return Budget(self._clock, context.time_remaining() - ANSWER_SECONDS)


def vm_id_of(value: str) -> VmId:
    """Raises InvalidRequest."""
    return VmId(check_id(value, "VM id"))


def _by_number(entry: HistoryEntry) -> pages.Key:
    return (entry.number,)
