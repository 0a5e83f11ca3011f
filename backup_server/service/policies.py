"""Edge: PolicyService. Checks, converts, delegates; decides nothing."""

from __future__ import annotations

import contextlib

import grpc

from arraylift.clock import Clock
from arraylift.errors import InvalidRequest, NotFound
from arraylift.ids import check_name
from arraylift.rpc import pages
from arraylift.v1 import policy_pb2 as pb
from arraylift.v1 import policy_pb2_grpc as pb_grpc
from backup_server.backup_index import Sums
from backup_server.policies import retention, schedule
from backup_server.policies.policy import Policy, check_policy, meant
from backup_server.policies.retention import Decision
from backup_server.policy_reports import Gap, Reports
from backup_server.policy_runs import PolicyRuns
from backup_server.policy_store import KeptPolicy, PolicyStore
from backup_server.registry import Registry
from backup_server.service import policy_convert as convert

RUNS_TOLD, RUNS_TOLD_MAX = 5, 100


class PolicyEdge(pb_grpc.PolicyServiceServicer):
    """Serves the policies of one backup server."""

    def __init__(
        self, store: PolicyStore, runs: PolicyRuns, reports: Reports, registry: Registry, clock: Clock
    ) -> None:
        self._store, self._runs, self._reports = store, runs, reports
        self._registry, self._clock = registry, clock

    # -- policies -------------------------------------------------------------------------------

    def SetPolicy(self, request: pb.SetPolicyRequest, context: grpc.ServicerContext) -> pb.SetPolicyResponse:
        policy = self._checked(request.policy)
        self._store.set(policy, now_ns=self._clock.wall_ns())
        self._runs.changed()
        return pb.SetPolicyResponse()

    def _checked(self, message: pb.Policy) -> Policy:
        policy = convert.policy_from_pb(message)
        check_policy(policy)
        if policy.target:
            self._registry.target(policy.target)
        return policy

    def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: grpc.ServicerContext
    ) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(policies=map(self._state, self._store.all(request.name)))

    def _state(self, kept: KeptPolicy) -> pb.PolicyState:
        runs = [] if kept.policy.disabled else self._next_runs(kept.policy, 1)
        return pb.PolicyState(
            policy=convert.policy_to_pb(kept.policy),
            last_run_at_ns=kept.last_due_ns,
            next_run_at_ns=runs[0] if runs else 0,
            problem=kept.problem,
        )

    def _next_runs(self, policy: Policy, count: int) -> list[int]:
        return schedule.next_runs(policy.schedule, self._clock.wall_ns(), count)

    def RemovePolicy(
        self, request: pb.RemovePolicyRequest, context: grpc.ServicerContext
    ) -> pb.RemovePolicyResponse:
        with contextlib.suppress(NotFound) if request.missing_ok else contextlib.nullcontext():
            self._store.remove(check_name(request.name, "policy name"))
        return pb.RemovePolicyResponse()

    def _meant(self, name: str, policy: pb.Policy, *, given: bool) -> Policy:
        if bool(name) == given:
            raise InvalidRequest("name a policy, or give one whole: one of the two")
        return self._checked(policy) if given else self._store.get(name).policy

    def PlanPolicy(
        self, request: pb.PlanPolicyRequest, context: grpc.ServicerContext
    ) -> pb.PlanPolicyResponse:
        if request.run_count > RUNS_TOLD_MAX:
            raise InvalidRequest(f"at most {RUNS_TOLD_MAX} runs are told")
        policy = self._meant(request.name, request.policy, given=request.HasField("policy"))
        return pb.PlanPolicyResponse(
            vms=[
                pb.PlannedVm(
                    vm_id=one.vm.vm_id,
                    vm_name=one.vm.config.name,
                    host=one.vm.host,
                    chosen=one.chosen,
                    reason=one.reason,
                )
                for one in meant(policy.selection, self._runs.vms())
            ],
            runs_at_ns=self._next_runs(policy, request.run_count or RUNS_TOLD),
        )

    def RunPolicy(self, request: pb.RunPolicyRequest, context: grpc.ServicerContext) -> pb.RunPolicyResponse:
        return pb.RunPolicyResponse(job_ids=self._runs.run_now(check_name(request.name, "policy name")))

    # -- retention ------------------------------------------------------------------------------

    def PlanRetention(
        self, request: pb.PlanRetentionRequest, context: grpc.ServicerContext
    ) -> pb.PlanRetentionResponse:
        given = request.HasField("policy")
        if given and not request.policy.name:
            raise InvalidRequest("a policy that is given has a name: whose backups are meant")
        policy = self._meant(request.name, request.policy, given=given)
        decisions = self._runs.plan_retention(policy)
        behind = pages.after(request.page_token, str, str, int, str)
        page, token = pages.cut(
            pages.rest(decisions, behind, _decision_key), request.page_size, key=_decision_key, to_pb=_planned
        )
        kept = sum(one.kept for one in decisions)
        return pb.PlanRetentionResponse(
            backups=page,
            digest=retention.digest(decisions),
            kept_count=kept,
            deleted_count=len(decisions) - kept,
            next_page_token=token,
        )

    def ApplyRetention(
        self, request: pb.ApplyRetentionRequest, context: grpc.ServicerContext
    ) -> pb.ApplyRetentionResponse:
        applied = self._runs.apply_retention(check_name(request.name, "policy name"), request.digest)
        return pb.ApplyRetentionResponse(
            deleted_count=applied.deleted_count, kept_count=applied.kept_count, problems=applied.problems
        )

    # -- reports --------------------------------------------------------------------------------

    def ReportUnprotected(
        self, request: pb.ReportUnprotectedRequest, context: grpc.ServicerContext
    ) -> pb.ReportUnprotectedResponse:
        page, token = _gaps(self._reports.unprotected(), request.page_size, request.page_token)
        return pb.ReportUnprotectedResponse(vms=page, next_page_token=token)

    def ReportOverdue(
        self, request: pb.ReportOverdueRequest, context: grpc.ServicerContext
    ) -> pb.ReportOverdueResponse:
        page, token = _gaps(self._reports.overdue(), request.page_size, request.page_token)
        return pb.ReportOverdueResponse(vms=page, next_page_token=token)

    def ReportSpace(
        self, request: pb.ReportSpaceRequest, context: grpc.ServicerContext
    ) -> pb.ReportSpaceResponse:
        vms, targets = self._reports.space()
        return pb.ReportSpaceResponse(vms=map(_space, vms), targets=map(_space, targets))


def _decision_key(one: Decision) -> pages.Key:
    backup = one.candidate
    return backup.vm_name, backup.vm_id, -backup.taken_at_ns, backup.backup_id


def _planned(one: Decision) -> pb.PlannedBackup:
    return pb.PlannedBackup(
        backup_id=one.candidate.backup_id,
        vm_name=one.candidate.vm_name,
        snapshot_at_ns=one.candidate.taken_at_ns,
        kept=one.kept,
        reasons=one.reasons,
    )


def _gap_key(gap: Gap) -> pages.Key:
    return gap.due_at_ns, gap.vm.config.name, gap.vm.vm_id, gap.policy


def _gaps(found: list[Gap], size: int, token: str) -> tuple[list[pb.ProtectionGap], str]:
    behind = pages.after(token, int, str, str, str)
    return pages.cut(
        pages.rest(sorted(found, key=_gap_key), behind, _gap_key), size, key=_gap_key, to_pb=_gap
    )


def _gap(gap: Gap) -> pb.ProtectionGap:
    return pb.ProtectionGap(
        vm_id=gap.vm.vm_id,
        vm_name=gap.vm.config.name,
        host=gap.vm.host,
        policy=gap.policy,
        last_backup_at_ns=gap.last_backup_at_ns,
        due_at_ns=gap.due_at_ns,
        reason=gap.reason,
    )


def _space(one: Sums) -> pb.ProtectedSpace:
    return pb.ProtectedSpace(
        name=one.name,
        backup_count=one.backup_count,
        bytes_protected=one.bytes_protected,
        bytes_sent=one.bytes_sent,
        bytes_stored=one.bytes_stored,
    )
