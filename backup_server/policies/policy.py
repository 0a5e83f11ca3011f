"""What a policy is, and which VMs and disks it means. Pure.

The fields are those of protos/arraylift/v1/policy.proto, which documents them; all of it can be written as
JSON (``documents``).
Invariants:
  P1 an exclusion wins over everything that chooses; every VM left out has its reason.
  P2 a policy that passed ``check_policy`` can be run, whatever the inventory holds.
Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from arraylift.errors import InvalidRequest
from arraylift.vm.types import DISKS_MAX, LATER, ConsistencyLevel, Vm
from backup_server.model import ChangeSource
from backup_server.policies.retention import COUNT_MAX, WITHIN_SECONDS_MAX, Retention
from backup_server.policies.schedule import WINDOWS_MAX, Schedule, Window, check_schedule, parse_window

NAME_BYTES_MAX = 100
COMMENT_BYTES_MAX = 1_000
ENTRIES_MAX = 4_096
LOCK_DAYS_MAX = 36_500
RETRIES_MAX = 10
FULL_EVERY_DAYS_MAX = 3_650
RATE_MIN = 65_536
"""Bytes a second: below it a transfer would seem to stand still."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A VM is chosen if any of the first four names it, unless it is excluded (P1)."""

    vms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    all: bool = False
    exclude_vms: tuple[str, ...] = ()
    exclude_tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowText:
    """A window as it is written; ``schedule.Window`` is what it means."""

    weekdays: tuple[str, ...]
    from_time: str
    to_time: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Which VMs, when, whereto, how, and how long their backups are kept."""

    name: str
    disabled: bool = False
    selection: Selection = field(default_factory=Selection)
    schedule: Schedule = field(default_factory=Schedule)
    target: str = ""
    exclude_disks: tuple[str, ...] = ()
    level_min: ConsistencyLevel = ConsistencyLevel.UNSPECIFIED
    change_source: ChangeSource = ChangeSource.UNSPECIFIED
    retention: Retention = field(default_factory=Retention)
    windows: tuple[WindowText, ...] = ()
    bytes_per_second_max: int = 0
    lock_days: int = 0
    full_every_days: int = 0
    comment: str = ""
    retries_max: int = field(default=0, metadata={LATER: True})

    @property
    def subject(self) -> str:
        return f"policy {self.name}"

    def open_windows(self) -> list[Window]:
        """When its jobs may start. Raises InvalidRequest."""
        return [parse_window(one.weekdays, one.from_time, one.to_time) for one in self.windows]


def check_policy(policy: Policy) -> None:
    """Raises InvalidRequest, naming what is wrong (P2)."""
    if not 0 < len(policy.name.encode()) <= NAME_BYTES_MAX or not policy.name.isprintable():
        raise InvalidRequest(f"a policy's name has 1 to {NAME_BYTES_MAX} bytes that can be printed")
    if len(policy.comment.encode()) > COMMENT_BYTES_MAX:
        raise InvalidRequest(f"a comment has at most {COMMENT_BYTES_MAX} bytes", subject=policy.subject)
    _check_selection(policy)
    check_schedule(policy.schedule)
    policy.open_windows()
    for count, limit, what in (
        (len(policy.windows), WINDOWS_MAX, "windows"),
        (len(policy.exclude_disks), DISKS_MAX, "excluded disks"),
        (policy.lock_days, LOCK_DAYS_MAX, "days of a lock"),
        (policy.retries_max, RETRIES_MAX, "retries of a job"),
        (policy.full_every_days, FULL_EVERY_DAYS_MAX, "days between full reads"),
        (policy.retention.keep_within_seconds, WITHIN_SECONDS_MAX, "seconds to keep all backups"),
    ):
        if not 0 <= count <= limit:
            raise InvalidRequest(f"{count} {what}; at most {limit}", subject=policy.subject)
    for rule in fields(policy.retention):
        if rule.name != "keep_within_seconds" and not 0 <= getattr(policy.retention, rule.name) <= COUNT_MAX:
            raise InvalidRequest(f"{rule.name} is 0 to {COUNT_MAX}", subject=policy.subject)
    if policy.bytes_per_second_max and policy.bytes_per_second_max < RATE_MIN:
        raise InvalidRequest(
            f"a rate is at least {RATE_MIN} bytes a second, or 0 for none", subject=policy.subject
        )


def _check_selection(policy: Policy) -> None:
    chosen = policy.selection
    if not (chosen.vms or chosen.tags or chosen.hosts or chosen.all):
        raise InvalidRequest(
            f"{policy.subject} chooses no VM",
            subject=policy.subject,
            next_step="name VMs, tags or hosts, or say all",
        )
    for entries in (chosen.vms, chosen.tags, chosen.hosts, chosen.exclude_vms, chosen.exclude_tags):
        if len(entries) > ENTRIES_MAX or not all(0 < len(one.encode()) <= 255 for one in entries):
            raise InvalidRequest(
                f"a selection has at most {ENTRIES_MAX} entries of 1 to 255 bytes each",
                subject=policy.subject,
            )


# -- what it means ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Meant:
    """A VM, and why it is chosen or left out."""

    vm: Vm
    chosen: bool
    reason: str


def meant(selection: Selection, vms: Sequence[Vm]) -> list[Meant]:
    """Say of each VM whether the selection means it, by name."""
    return [_meant(selection, vm) for vm in sorted(vms, key=lambda vm: (vm.config.name, vm.vm_id))]


def _meant(selection: Selection, vm: Vm) -> Meant:
    chosen_by = _chosen_by(selection, vm)
    if not chosen_by:
        return Meant(vm, False, "not chosen")
    for pattern in selection.exclude_vms:
        if pattern == vm.vm_id or fnmatchcase(vm.config.name, pattern):
            return Meant(vm, False, f"excluded as {pattern}")
    for tag in selection.exclude_tags:
        if has_tag(vm, tag):
            return Meant(vm, False, f"excluded by tag {tag}")
    return Meant(vm, True, chosen_by)


def _chosen_by(selection: Selection, vm: Vm) -> str:
    if vm.config.name in selection.vms or vm.vm_id in selection.vms:
        return "named"
    for tag in selection.tags:
        if has_tag(vm, tag):
            return f"tag {tag}"
    if vm.host in selection.hosts:
        return f"host {vm.host}"
    return "all" if selection.all else ""


def has_tag(vm: Vm, tag: str) -> bool:
    """``tag``: "key=value", or "key" with any value."""
    key, equals, value = tag.partition("=")
    return any(key == own and (not equals or value == its) for own, its in vm.config.tags)


def excluded_disks(policy: Policy, vm: Vm) -> tuple[str, ...]:
    """Names of the VM's disks that the policy leaves out, by its patterns."""
    return tuple(
        disk.name
        for disk in vm.config.disks
        if any(fnmatchcase(disk.name, pattern) for pattern in policy.exclude_disks)
    )
