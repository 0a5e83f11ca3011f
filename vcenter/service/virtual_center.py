"""Edge: VirtualCenterService. Checks, converts, delegates; decides nothing.

Invariants:
  S1 a host speaks for itself only: the name in its request is that of its certificate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import grpc

from arraylift.clock import Clock
from arraylift.errors import InvalidRequest, NotFound, NotPermitted
from arraylift.ids import VmId, VmSnapshotId, check_id, check_name
from arraylift.rpc import pages
from arraylift.rpc.address import split_address
from arraylift.rpc.identity import current_peer
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2
from arraylift.vm import convert as shared
from arraylift.vm.types import GRACE_SECONDS_MAX, PowerState, Vm
from vcenter import admission, convert
from vcenter.inventory import Inventory
from vcenter.live_inventory import LiveInventory
from vcenter.migrate import Migrator
from vcenter.moves import Moves
from vcenter.prepare_backup import BackupPreparer
from vcenter.provision import Provisioner
from vcenter.routing import Router
from vcenter.service.moving import MovingEdge, vm_id_of
from vcenter.watch import Watchers


class VirtualCenterEdge(MovingEdge):
    """Serves one center."""

    def __init__(
        self,
        *,
        live: LiveInventory,
        router: Router,
        moves: Moves,
        migrator: Migrator,
        preparer: BackupPreparer,
        provisioner: Provisioner,
        watchers: Watchers,
        clock: Clock,
    ) -> None:
        super().__init__(live=live, router=router, moves=moves, migrator=migrator, clock=clock)
        self._preparer = preparer
        self._provisioner = provisioner
        self._watchers = watchers
        self._messages = convert.VmMessages()
        self._by_name: tuple[Mapping[VmId, Vm], list[Vm]] = ({}, [])

    # -- hosts ----------------------------------------------------------------------------------

    def RegisterHost(
        self, request: pb.RegisterHostRequest, context: grpc.ServicerContext
    ) -> pb.RegisterHostResponse:
        _check_own_name(request.name)
        split_address(check_name(request.address, "address"))
        driver = check_name(request.driver, "driver") if request.driver else ""
        self._live.register(name=request.name, address=request.address, driver=driver)
        return pb.RegisterHostResponse()

    def ReportInventory(
        self, request: pb.ReportInventoryRequest, context: grpc.ServicerContext
    ) -> pb.ReportInventoryResponse:
        _check_own_name(request.name)
        self._live.report(admission.check_report(convert.report_from_pb(request)))
        return pb.ReportInventoryResponse()

    def ListHosts(self, request: pb.ListHostsRequest, context: grpc.ServicerContext) -> pb.ListHostsResponse:
        now = self._live.now
        return pb.ListHostsResponse(
            hosts=[convert.host_to_pb(now.hosts[name], now) for name in sorted(now.hosts)]
        )

    def RemoveHost(
        self, request: pb.RemoveHostRequest, context: grpc.ServicerContext
    ) -> pb.RemoveHostResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._live.remove_host(request.name)
        return pb.RemoveHostResponse()

    # -- inventory ------------------------------------------------------------------------------

    def ListManagedVms(
        self, request: pb.ListManagedVmsRequest, context: grpc.ServicerContext
    ) -> pb.ListManagedVmsResponse:
        now = self._live.now
        if request.host:
            now.host(request.host)
        self._messages.keep_only(now)
        behind = pages.after(request.page_token, str, str)
        vms = self._of_host(now, request.host) if request.host else self._all_by_name(now)
        page, token = pages.cut_frames(
            pages.rest(vms, behind, _by_name), request.page_size, key=_by_name, to_frame=self._messages.frame
        )
        answer = pb.ListManagedVmsResponse.FromString(page)  # a tenth of the time of copying 10,000 messages
        answer.revision, answer.next_page_token = now.revision, token
        return answer

    def _of_host(self, now: Inventory, host: str) -> list[Vm]:
        claimed = (now.shown[vm_id] for vm_id in now.ids_by_host[host])
        return sorted((vm for vm in claimed if vm.host == host), key=_by_name)

    def _all_by_name(self, now: Inventory) -> list[Vm]:
        """Sorted once for all listings, and pages, of one inventory."""
        shown, vms = self._by_name
        if shown is not now.shown:
            vms = sorted(now.shown.values(), key=_by_name)
            self._by_name = now.shown, vms
        return vms

    def GetManagedVm(
        self, request: pb.GetManagedVmRequest, context: grpc.ServicerContext
    ) -> pb.GetManagedVmResponse:
        if bool(request.vm_id) == bool(request.name):
            raise InvalidRequest("give a VM's id or its name, one of the two")
        now = self._live.now
        vm = now.vm(vm_id_of(request.vm_id)) if request.vm_id else now.vm_named(request.name)
        return pb.GetManagedVmResponse(
            vm=self._messages.of(vm), host=convert.host_to_pb(now.hosts[vm.host], now)
        )

    def WatchInventory(
        self, request: pb.WatchInventoryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchInventoryResponse]:
        context.add_callback(self._watchers.wake)
        for event in self._watchers.follow(request.after_revision, context.is_active):
            yield convert.event_to_pb(event, self._messages)

    # -- backup ---------------------------------------------------------------------------------

    def PrepareBackup(
        self, request: pb.PrepareBackupRequest, context: grpc.ServicerContext
    ) -> pb.PrepareBackupResponse:
        asked = admission.check_snapshot_request(shared.snapshot_request_from_pb(request))
        prepared = self._preparer.prepare(asked, self._budget(context))
        return pb.PrepareBackupResponse(
            host=convert.host_to_pb(prepared.host, self._live.now),
            vm=shared.vm_to_pb(prepared.vm),
            snapshot=shared.snapshot_to_pb(prepared.snapshot),
        )

    def ReleaseSnapshot(
        self, request: pb.ReleaseSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.ReleaseSnapshotResponse:
        snapshot_id = _snapshot_id(request.vm_snapshot_id)
        self._preparer.release(vm_id_of(request.vm_id), snapshot_id, self._budget(context))
        return pb.ReleaseSnapshotResponse()

    def RenewSnapshot(
        self, request: pb.RenewSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.RenewSnapshotResponse:
        snapshot_id = _snapshot_id(request.vm_snapshot_id)
        self._preparer.renew(vm_id_of(request.vm_id), snapshot_id, self._budget(context))
        return pb.RenewSnapshotResponse()

    # -- VMs on their hosts ---------------------------------------------------------------------

    def PlaceVm(self, request: pb.PlaceVmRequest, context: grpc.ServicerContext) -> pb.PlaceVmResponse:
        host = self._provisioner.place(
            memory_bytes=request.memory_bytes, cpus=request.cpus, arrays=frozenset(request.arrays)
        )
        return pb.PlaceVmResponse(host=convert.host_to_pb(host, self._live.now))

    def ProvisionVm(
        self, request: pb.ProvisionVmRequest, context: grpc.ServicerContext
    ) -> pb.ProvisionVmResponse:
        config = admission.check_config(shared.config_from_pb(request.config))
        vm, host = self._provisioner.provision(
            vm_id_of(request.vm_id),
            config,
            request.host,
            self._budget(context),
            firmware_variables=request.firmware_variables,
        )
        return pb.ProvisionVmResponse(vm=shared.vm_to_pb(vm), host=convert.host_to_pb(host, self._live.now))

    def AttachVmVolume(
        self, request: pb.AttachVmVolumeRequest, context: grpc.ServicerContext
    ) -> pb.AttachVmVolumeResponse:
        disk = admission.check_disk(shared.disk_from_pb(request.disk))
        vm = self._provisioner.attach(vm_id_of(request.vm_id), disk, self._budget(context))
        return pb.AttachVmVolumeResponse(vm=shared.vm_to_pb(vm))

    def PowerVm(self, request: pb.PowerVmRequest, context: grpc.ServicerContext) -> pb.PowerVmResponse:
        if request.power not in (vm_pb2.POWER_STATE_OFF, vm_pb2.POWER_STATE_ON):
            raise InvalidRequest("say whether the VM shall be on or off")
        if request.grace_seconds > GRACE_SECONDS_MAX:
            raise InvalidRequest(f"a guest gets at most {GRACE_SECONDS_MAX} s to shut down")
        vm = self._provisioner.power(
            vm_id_of(request.vm_id),
            PowerState(request.power),
            grace_seconds=request.grace_seconds,
            force=request.force,
            budget=self._budget(context),
        )
        return pb.PowerVmResponse(vm=shared.vm_to_pb(vm))

    def RemoveVm(self, request: pb.RemoveVmRequest, context: grpc.ServicerContext) -> pb.RemoveVmResponse:
        self._provisioner.remove(
            vm_id_of(request.vm_id),
            keep_volumes=request.keep_volumes,
            missing_ok=request.missing_ok,
            budget=self._budget(context),
        )
        return pb.RemoveVmResponse()


def _by_name(vm: Vm) -> pages.Key:
    return vm.config.name, vm.vm_id


def _check_own_name(name: str) -> None:
    """S1."""
    peer = current_peer()
    if peer.name != name or peer.role != "host":
        raise NotPermitted(
            f"{peer} may not speak for host {name[:80]!r}",
            subject=str(peer),
            next_step="use the name in the certificate, or the certificate of that name",
        )


def _snapshot_id(value: str) -> VmSnapshotId:
    return VmSnapshotId(check_id(value, "VM snapshot id"))
