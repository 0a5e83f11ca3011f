"""PolicyService over the wire: what is checked, what comes back, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arraylift import errors, pki
from arraylift.clock import SYSTEM_CLOCK
from arraylift.rpc import pages
from arraylift.rpc.channel import call, connect
from arraylift.rpc.server import RpcServer, service_of
from arraylift.v1 import policy_pb2 as pb
from arraylift.v1 import policy_pb2_grpc
from backup_server.service.policies import PolicyEdge
from tests.fakes.backup_server import Rig
from tests.fakes.peers import FakePeers
from tests.wire.stage import House

Ask = Callable[[str, object], Any]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    pki.init_ca(str(tmp_path / "pki"))
    house = House(str(tmp_path / "pki"))
    peers = FakePeers(house)
    rig = Rig(tmp_path / "server", peers.world, house.identity("server", "server1"))
    server = rig.server
    edge = PolicyEdge(server.policies, server.policy_runs, server.reports, server.registry, SYSTEM_CLOCK)
    served = RpcServer(
        "127.0.0.1:0",
        house.identity("server", "server1"),
        [service_of(policy_pb2_grpc.add_PolicyServiceServicer_to_server, edge)],
    )
    served.start()
    channel = connect(served.address, house.identity("operator", "admin"), role="server")
    stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
    try:
        yield lambda method, request: call(getattr(stub, method), request, peer="server of the test")
    finally:
        channel.close()
        served.stop()
        rig.close()
        peers.close()


def whole_policy() -> pb.Policy:
    return pb.Policy(
        name="nightly",
        selection=pb.VmSelection(all=True, exclude_vms=["db*"], exclude_tags=["lab"]),
        schedule=pb.Schedule(cron=["30 2 * * 1-5"], time_zone="Europe/Berlin", jitter_seconds=600),
        target="target1",
        exclude_disks=["swap*"],
        level_min=2,  # type: ignore[arg-type]
        change_source=4,  # type: ignore[arg-type]
        retention=pb.Retention(keep_last=1, keep_daily=7, keep_within_seconds=86_400),
        windows=[pb.BackupWindow(weekdays=["fri"], from_time="22:00", to_time="06:00")],
        bytes_per_second_max=1 << 20,
        lock_days=3,
        full_every_days=30,
        comment="all but the lab",
    )


def test_a_policy_comes_back_as_it_was_set(ask: Ask) -> None:
    for _ in range(2):
        ask("SetPolicy", pb.SetPolicyRequest(policy=whole_policy()))
    (state,) = ask("ListPolicies", pb.ListPoliciesRequest()).policies
    assert state.policy == whole_policy()
    assert state.next_run_at_ns > 0
    planned = ask("PlanPolicy", pb.PlanPolicyRequest(name="nightly", run_count=3))
    assert [(vm.vm_name, vm.chosen, vm.reason) for vm in planned.vms] == [
        ("db1", False, "excluded as db*"),
        ("web1", True, "all"),
    ]
    assert len(planned.runs_at_ns) == 3
    assert len(ask("RunPolicy", pb.RunPolicyRequest(name="nightly")).job_ids) == 1
    ask("RemovePolicy", pb.RemovePolicyRequest(name="nightly"))
    ask("RemovePolicy", pb.RemovePolicyRequest(name="nightly", missing_ok=True))
    with pytest.raises(errors.NotFound):
        ask("RemovePolicy", pb.RemovePolicyRequest(name="nightly"))


def test_reports_and_plans_come_in_pages(ask: Ask) -> None:
    request = pb.ReportUnprotectedRequest(page_size=1)
    found = [
        vm.vm_name
        for answer in pages.follow(lambda asked: ask("ReportUnprotected", asked), request)
        for vm in answer.vms
    ]
    assert found == ["db1", "web1"]
    assert not ask("ReportOverdue", pb.ReportOverdueRequest()).vms
    assert not ask("ReportSpace", pb.ReportSpaceRequest()).vms
    ask("SetPolicy", pb.SetPolicyRequest(policy=whole_policy()))
    plan = ask("PlanRetention", pb.PlanRetentionRequest(name="nightly"))
    assert (plan.kept_count, plan.deleted_count, len(plan.digest)) == (0, 0, 32)
    applied = ask("ApplyRetention", pb.ApplyRetentionRequest(name="nightly", digest=plan.digest))
    assert applied.deleted_count == 0


def _broken(**changes: Any) -> pb.Policy:
    policy = whole_policy()
    for name, value in changes.items():
        policy.ClearField(name)
        policy.MergeFrom(pb.Policy(**{name: value}))
    return policy


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (_broken(name=""), errors.InvalidRequest),
        (_broken(name="x" * 101), errors.InvalidRequest),
        (_broken(name="a\nb"), errors.InvalidRequest),
        (_broken(selection=pb.VmSelection(exclude_vms=["x"])), errors.InvalidRequest),
        (_broken(selection=pb.VmSelection(vms=[""])), errors.InvalidRequest),
        (_broken(schedule=pb.Schedule(cron=["never"])), errors.InvalidRequest),
        (_broken(schedule=pb.Schedule(time_zone="Nowhere/City")), errors.InvalidRequest),
        (
            _broken(windows=[pb.BackupWindow(weekdays=["x"], from_time="1:00", to_time="2:00")]),
            errors.InvalidRequest,
        ),
        (_broken(retention=pb.Retention(keep_last=100_001)), errors.InvalidRequest),
        (_broken(bytes_per_second_max=5), errors.InvalidRequest),
        (_broken(change_source=3), errors.InvalidRequest),
        (_broken(lock_days=40_000), errors.InvalidRequest),
        (_broken(comment="x" * 1001), errors.InvalidRequest),
        (_broken(target="nowhere"), errors.NotFound),
    ],
)
def test_what_is_no_policy_is_refused_and_kept_nowhere(
    ask: Ask, policy: pb.Policy, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask("SetPolicy", pb.SetPolicyRequest(policy=policy))
    assert not ask("ListPolicies", pb.ListPoliciesRequest()).policies


def test_a_plan_needs_one_policy(ask: Ask) -> None:
    for request in (pb.PlanPolicyRequest(), pb.PlanPolicyRequest(name="x", policy=whole_policy())):
        with pytest.raises(errors.InvalidRequest):
            ask("PlanPolicy", request)
    assert ask("PlanPolicy", pb.PlanPolicyRequest(policy=whole_policy())).vms
    with pytest.raises(errors.NotFound):
        ask("RunPolicy", pb.RunPolicyRequest(name="missing"))
