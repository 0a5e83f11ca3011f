"""Edge: policies to and from messages."""

from __future__ import annotations

from arraylift.errors import InvalidRequest
from arraylift.v1 import policy_pb2 as pb
from arraylift.vm import convert as shared
from backup_server.model import ChangeSource
from backup_server.policies.policy import Policy, Selection, WindowText
from backup_server.policies.retention import Retention
from backup_server.policies.schedule import Schedule

_SOURCES = {ChangeSource.UNSPECIFIED, ChangeSource.FULL_READ, ChangeSource.SUPPLIED}
_RULES = (
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_within_seconds",
)


def policy_from_pb(policy: pb.Policy) -> Policy:
    """Raises InvalidRequest for what no value can say; ``check_policy`` judges the rest."""
    chosen = policy.selection
    try:
        source = ChangeSource(int(policy.change_source))
    except ValueError:
        source = ChangeSource.DIFF
    if source not in _SOURCES:
        raise InvalidRequest(
            "a policy reads by the array's births, all, or what the VMM saw change",
            subject=f"policy {policy.name[:100]}",
        )
    return Policy(
        name=policy.name,
        disabled=policy.disabled,
        selection=Selection(
            tuple(chosen.vms),
            tuple(chosen.tags),
            tuple(chosen.hosts),
            chosen.all,
            tuple(chosen.exclude_vms),
            tuple(chosen.exclude_tags),
        ),
        schedule=Schedule(
            tuple(policy.schedule.cron), policy.schedule.time_zone, policy.schedule.jitter_seconds
        ),
        target=policy.target,
        exclude_disks=tuple(policy.exclude_disks),
        level_min=shared.level_demanded(policy.level_min),
        change_source=source,
        retention=Retention(**{rule: getattr(policy.retention, rule) for rule in _RULES}),
        windows=tuple(
            WindowText(tuple(window.weekdays), window.from_time, window.to_time) for window in policy.windows
        ),
        bytes_per_second_max=policy.bytes_per_second_max,
        lock_days=policy.lock_days,
        retries_max=policy.retries_max,
        full_every_days=policy.full_every_days,
        comment=policy.comment,
    )


def policy_to_pb(policy: Policy) -> pb.Policy:
    chosen = policy.selection
    return pb.Policy(
        name=policy.name,
        disabled=policy.disabled,
        selection=pb.VmSelection(
            vms=chosen.vms,
            tags=chosen.tags,
            hosts=chosen.hosts,
            all=chosen.all,
            exclude_vms=chosen.exclude_vms,
            exclude_tags=chosen.exclude_tags,
        ),
        schedule=pb.Schedule(
            cron=policy.schedule.lines,
            time_zone=policy.schedule.time_zone,
            jitter_seconds=policy.schedule.jitter_seconds,
        ),
        target=policy.target,
        exclude_disks=policy.exclude_disks,
        level_min=int(policy.level_min),  # type: ignore[arg-type]
        change_source=int(policy.change_source),  # type: ignore[arg-type]
        retention=pb.Retention(**{rule: getattr(policy.retention, rule) for rule in _RULES}),
        windows=[
            pb.BackupWindow(weekdays=one.weekdays, from_time=one.from_time, to_time=one.to_time)
            for one in policy.windows
        ],
        bytes_per_second_max=policy.bytes_per_second_max,
        lock_days=policy.lock_days,
        retries_max=policy.retries_max,
        full_every_days=policy.full_every_days,
        comment=policy.comment,
    )
