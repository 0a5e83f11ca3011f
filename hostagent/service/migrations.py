"""Edge: the methods of VmService by which the virtual center moves VMs. Checks, converts, delegates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.ids import MigrationId, VmId, check_id
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import vm_pb2 as pb
from arraylift.v1 import vm_pb2_grpc as pb_grpc
from arraylift.vm import convert as shared
from hostagent.live_move import MoveProgress
from hostagent.migration import HandOver, Migrations

Tell = Callable[[pb.HandOverVmResponse], None]


class MigrationEdge(pb_grpc.VmServiceServicer):
    """Both sides of a migration. ``host`` is the name in this host's certificate."""

    def __init__(self, host: str, migrations: Migrations) -> None:
        self._name, self._migrations = host, migrations

    def ExpectVm(self, request: pb.ExpectVmRequest, context: grpc.ServicerContext) -> pb.ExpectVmResponse:
        address = self._migrations.expect(
            *_ids(request),
            shared.config_from_pb(request.config),
            revision=request.revision,
            live=request.live,
        )
        return pb.ExpectVmResponse(address=address)

    def HandOverVm(
        self, request: pb.HandOverVmRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.HandOverVmResponse]:
        vm_id, migration_id = _ids(request)
        asked = HandOver(
            vm_id,
            migration_id,
            request.revision,
            live=request.live,
            address=request.address,
            downtime_ms_max=request.downtime_ms_max,
            seconds_max=request.seconds_max,
        )

        def run(tell: Tell) -> pb.HandOverVmResponse:
            sent = MoveProgress(0, 0)

            def report(progress: MoveProgress) -> None:
                nonlocal sent
                sent = progress
                tell(pb.HandOverVmResponse(bytes_sent=progress.bytes_sent, bytes_left=progress.bytes_left))

            done = self._migrations.hand_over(asked, report)
            return pb.HandOverVmResponse(
                bytes_sent=sent.bytes_sent,
                handed_over=True,
                downtime_ns=done.downtime_ns,
                firmware_variables=done.firmware_variables,
            )

        # A caller who leaves stops nothing: what the guest has sent is to be recorded at once.
        yield from stream_long_call(context, run, cancelled=threading.Event(), what=f"hand over {vm_id}")

    def AcceptVm(self, request: pb.AcceptVmRequest, context: grpc.ServicerContext) -> pb.AcceptVmResponse:
        vm = self._migrations.accept(*_ids(request), request.firmware_variables)
        return pb.AcceptVmResponse(vm=shared.vm_to_pb(vm.told(self._name)))

    def AbandonMigration(
        self, request: pb.AbandonMigrationRequest, context: grpc.ServicerContext
    ) -> pb.AbandonMigrationResponse:
        self._migrations.abandon(*_ids(request))
        return pb.AbandonMigrationResponse()

    def FinishMigration(
        self, request: pb.FinishMigrationRequest, context: grpc.ServicerContext
    ) -> pb.FinishMigrationResponse:
        self._migrations.finish(*_ids(request))
        return pb.FinishMigrationResponse()


_Request = (
    pb.ExpectVmRequest
    | pb.HandOverVmRequest
    | pb.AcceptVmRequest
    | pb.AbandonMigrationRequest
    | pb.FinishMigrationRequest
)


def _ids(request: _Request) -> tuple[VmId, MigrationId]:
    return (
        VmId(check_id(request.vm_id, "VM id")),
        MigrationId(check_id(request.migration_id, "migration id")),
    )
