"""``arraylift policy``: which VMs are backed up when, and how long their backups are kept.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer

from arraylift.cli import policy_options as options
from arraylift.cli.backups import NoWait, wait
from arraylift.cli.command import command, group
from arraylift.cli.connection import Connection
from arraylift.cli.session import Session
from arraylift.cli.show import moment, pairs, plain, row, table
from arraylift.errors import NotFound
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.v1 import policy_pb2 as pb

Name = Annotated[str, typer.Argument(metavar="POLICY", help="Its name.")]


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("What is backed up when, and how long it is kept.")
    command(
        noun,
        "set",
        examples='arraylift policy set nightly --all --cron "30 2 * * *" --time-zone Europe/Berlin '
        "--keep-daily 7 --keep-weekly 4\n"
        'arraylift policy set gold --tag tier=gold --cron "0 * * * *" --keep-within 2d --lock-days 30\n'
        'arraylift policy set nightly --window "sat,sun 22:00-06:00" --rate 50M',
    )(set_policy)
    command(noun, "ls", examples="arraylift policy ls")(ls)
    command(noun, "show", examples="arraylift policy show nightly")(show)
    command(noun, "rm", examples="arraylift policy rm nightly")(rm)
    command(
        noun,
        "plan",
        examples="arraylift policy plan nightly\narraylift policy plan nightly --retention",
    )(plan)
    command(noun, "run", examples="arraylift policy run nightly")(run)
    command(noun, "prune", examples="arraylift policy prune nightly --dry-run")(prune)
    app.add_typer(noun, name="policy")


def find_policy(server: Connection, name: str) -> pb.PolicyState:
    """Raises NotFound."""
    answer: pb.ListPoliciesResponse = server.call(
        server.policies.ListPolicies, pb.ListPoliciesRequest(name=name)
    )
    if not answer.policies:
        raise NotFound(
            f"there is no policy {name}", subject=f"policy {name}", next_step="see `arraylift policy ls`"
        )
    return answer.policies[0]


def set_policy(
    session: Session,
    name: Name,
    vm: options.Vms = None,
    tag: options.Tags = None,
    host: options.Hosts = None,
    every: options.Every = None,
    exclude: options.Exclude = None,
    exclude_tag: options.ExcludeTags = None,
    exclude_disk: options.ExcludeDisks = None,
    cron: options.Cron = None,
    time_zone: options.TimeZone = None,
    jitter: options.Jitter = None,
    window: options.Windows = None,
    to: options.To = None,
    consistency: options.Consistency = None,
    changes: options.Changes = None,
    rate: options.Rate = None,
    full_every: options.FullEvery = None,
    lock_days: options.LockDays = None,
    retries: options.Retries = None,
    keep_last: options.KeepLast = None,
    keep_hourly: options.KeepHourly = None,
    keep_daily: options.KeepDaily = None,
    keep_weekly: options.KeepWeekly = None,
    keep_monthly: options.KeepMonthly = None,
    keep_yearly: options.KeepYearly = None,
    keep_within: options.KeepWithin = None,
    disabled: options.Disabled = None,
    comment: options.Comment = None,
    reset: Annotated[bool, typer.Option("--reset", help="Begin from nothing, not from what is set.")] = False,
) -> None:
    """Make a policy, or change one: what is not said stays. `plan` shows what it would do."""
    server = session.server
    try:
        policy = pb.Policy(name=name) if reset else find_policy(server, name).policy
    except NotFound:
        policy = pb.Policy(name=name)
    chosen = (vm, tag, host, every, exclude, exclude_tag, exclude_disk)
    keeps = (keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly, keep_within)
    options.choose(policy, *chosen)
    options.time(policy, cron, time_zone, jitter, window, disabled)
    options.treat(policy, to, consistency, changes, rate, full_every, lock_days, retries, comment)
    options.keep(policy, *keeps)
    server.call(server.policies.SetPolicy, pb.SetPolicyRequest(policy=policy))
    state = find_policy(server, name)
    session.emit(plain(state), pairs(options.rows(state)))


def ls(session: Session) -> None:
    """List the policies."""
    server = session.server
    found = server.call(server.policies.ListPolicies, pb.ListPoliciesRequest()).policies
    shown = table("policy", "schedule", "VMs", "last run", "next run", "problem")
    for state in found:
        policy = state.policy
        following = "disabled" if policy.disabled else moment(state.next_run_at_ns) or "when asked for"
        row(
            shown,
            policy.name,
            ", ".join(policy.schedule.cron),
            options.selection_text(policy.selection),
            moment(state.last_run_at_ns) or "never",
            following,
            state.problem,
        )
    session.emit([plain(state) for state in found], shown)


def show(session: Session, name: Name) -> None:
    """Show one policy."""
    state = find_policy(session.server, name)
    session.emit(plain(state), pairs(options.rows(state)))


def rm(
    session: Session,
    name: Name,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Fine if there is none.")] = False,
) -> None:
    """Remove a policy; the backups that it made stay, and no retention goes over them any more."""
    server = session.server
    server.call(server.policies.RemovePolicy, pb.RemovePolicyRequest(name=name, missing_ok=missing_ok))
    session.emit({"removed": name}, f"removed policy {name}; its backups stay")


def plan(
    session: Session,
    name: Name,
    retention: Annotated[bool, typer.Option("--retention", help="Which backups stay, which go.")] = False,
    runs: Annotated[int, typer.Option(metavar="N", help="So many next runs.", min=1, max=100)] = 5,
) -> None:
    """Show what a policy means now: VMs and next runs; or which backups it keeps and why. Changes nothing."""
    server = session.server
    if retention:
        backups, answer = _retention(server, name)
        _emit_retention(session, backups, answer)
        return
    planned = server.call(
        server.policies.PlanPolicy,
        pb.PlanPolicyRequest(name=name, run_count=runs),
        timeout_seconds=LONG_CALL_SECONDS,
    )
    shown = table("vm", "host", "backed up", "why")
    for vm in planned.vms:
        row(shown, vm.vm_name, vm.host, "yes" if vm.chosen else "no", vm.reason)
    session.emit(plain(planned), shown)
    if planned.runs_at_ns:
        session.note("next runs: " + ", ".join(map(moment, planned.runs_at_ns)))
    else:
        session.note(f"it has no schedule: `arraylift policy run {name}` runs it")


def _retention(server: Connection, name: str) -> tuple[list[pb.PlannedBackup], pb.PlanRetentionResponse]:
    request = pb.PlanRetentionRequest(name=name)
    backups = list(server.listing(server.policies.PlanRetention, request, "backups", slow=True))
    first = pb.PlanRetentionRequest(name=name, page_size=1)
    answer: pb.PlanRetentionResponse = server.call(
        server.policies.PlanRetention, first, timeout_seconds=LONG_CALL_SECONDS
    )
    return backups, answer


def _emit_retention(
    session: Session, backups: list[pb.PlannedBackup], answer: pb.PlanRetentionResponse
) -> None:
    shown = table("vm", "id", "snapshot", "", "why")
    for one in backups:
        row(
            shown,
            one.vm_name,
            one.backup_id[:12],
            moment(one.snapshot_at_ns),
            "stays" if one.kept else "GOES",
            ", ".join(one.reasons),
        )
    session.emit(
        {"digest": answer.digest.hex(), "backups": [plain(one) for one in backups]},
        shown if backups else "the policy has made no backup yet",
    )
    session.note(f"{answer.kept_count} stay, {answer.deleted_count} go")


def run(session: Session, name: Name, no_wait: NoWait = False) -> None:
    """Start a policy's backups now; ends with the exit code of the worst."""
    server = session.server
    answer = server.call(
        server.policies.RunPolicy, pb.RunPolicyRequest(name=name), timeout_seconds=LONG_CALL_SECONDS
    )
    wait(session, list(answer.job_ids), no_wait=no_wait)


def prune(
    session: Session,
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
) -> None:
    """Delete the backups that retention does not keep: exactly those of the plan that is shown."""
    server = session.server
    backups, answer = _retention(server, name)
    if dry_run or not answer.deleted_count:
        _emit_retention(session, backups, answer)
        return
    applied = server.call(
        server.policies.ApplyRetention,
        pb.ApplyRetentionRequest(name=name, digest=answer.digest),
        timeout_seconds=LONG_CALL_SECONDS,
    )
    session.emit(
        plain(applied),
        f"deleted {applied.deleted_count} backups, kept {applied.kept_count}; "
        "their space comes back by `target gc`",
    )
    for problem in applied.problems:
        session.note(f"left for another time: {problem}")
