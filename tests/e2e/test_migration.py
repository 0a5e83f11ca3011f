"""A VM moves between real host agents; its backups are prepared wherever it is, its snapshots released
where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.errors import NotFound
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2
from tests.e2e.daemon import wait_until
from tests.e2e.move_house import HOSTS, running_move_house


def test_backups_are_prepared_and_released_around_a_move(tmp_path: Path) -> None:
    old, new = HOSTS
    with running_move_house(tmp_path) as house:
        vm_id = house.make_vm("web1").vm_id
        house.ask("PowerVm", pb.PowerVmRequest(vm_id=vm_id, power=vm_pb2.POWER_STATE_ON))
        with pytest.raises(Exception, match="move it live, or stop it"):
            house.migrate(vm_id, new)
        with pytest.raises(Exception, match="cannot move a running guest"):  # the emulated VMM
            house.migrate(vm_id, new, live=True)
        house.wait_ended()
        house.ask("PowerVm", pb.PowerVmRequest(vm_id=vm_id, power=vm_pb2.POWER_STATE_OFF))
        before = house.ask("PrepareBackup", pb.PrepareBackupRequest(vm_id=vm_id, name="before"))
        assert before.host.name == old
        last = house.migrate(vm_id, "")[-1]
        assert (last.host.name, house.shown(vm_id).host.name) == (new, new)
        after = house.ask("PrepareBackup", pb.PrepareBackupRequest(vm_id=vm_id, name="after"))
        assert (after.host.name, after.vm.config) == (new, before.vm.config)
        for prepared in (before, after):
            snapshot_id = prepared.snapshot.vm_snapshot_id
            house.ask("RenewSnapshot", pb.RenewSnapshotRequest(vm_id=vm_id, vm_snapshot_id=snapshot_id))
            house.ask("ReleaseSnapshot", pb.ReleaseSnapshotRequest(vm_id=vm_id, vm_snapshot_id=snapshot_id))
            request = vm_pb2.GetVmSnapshotRequest(vm_snapshot_id=snapshot_id)
            for name in HOSTS:
                with pytest.raises(NotFound):
                    house.ask_host(name, "GetVmSnapshot", request)
        house.wait_ended()
        history = house.ask("GetVmHistory", pb.GetVmHistoryRequest(name="web1")).entries
        assert [entry.host for entry in history] == [new, old]
        house.daemons[new].kill()
        house.daemons[new].start()
        house.ask("RemoveVm", pb.RemoveVmRequest(vm_id=vm_id))
        wait_until(lambda: not house.ask("ListManagedVms", pb.ListManagedVmsRequest()).vms, "it is gone")
