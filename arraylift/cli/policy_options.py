"""The options of ``arraylift policy set`` laid over a policy, and a policy as people read it.

Callers: ``policy``, main thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Annotated, Any

import typer
from google.protobuf.message import Message

from arraylift.cli.show import moment, short_name, size_bytes
from arraylift.cli.times import duration_seconds
from arraylift.errors import InvalidRequest
from arraylift.sizes import human
from arraylift.v1 import backup_logic_pb2, vm_pb2
from arraylift.v1 import policy_pb2 as pb

_WINDOW = re.compile(r"(?:([a-z,]+)\s+)?(\d{1,2}:\d{2})\s*-\s*(\d{1,2}:\d{2})", re.IGNORECASE)
_LEVELS = {
    "any": vm_pb2.CONSISTENCY_LEVEL_UNSPECIFIED,
    "crash": vm_pb2.CONSISTENCY_LEVEL_CRASH,
    "filesystem": vm_pb2.CONSISTENCY_LEVEL_FILESYSTEM,
    "application": vm_pb2.CONSISTENCY_LEVEL_APPLICATION,
}
_SOURCES = {
    "best": backup_logic_pb2.CHANGE_SOURCE_UNSPECIFIED,
    "full": backup_logic_pb2.CHANGE_SOURCE_FULL_READ,
    "supplied": backup_logic_pb2.CHANGE_SOURCE_SUPPLIED,
}
_KEEPS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def _text(flag: str, metavar: str, help: str = "") -> Any:
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=help)]


def _texts(flag: str, metavar: str, help: str = "") -> Any:
    return Annotated[list[str] | None, typer.Option(flag, metavar=metavar, help=help)]


def _count(flag: str, metavar: str = "N", help: str = "") -> Any:
    return Annotated[int | None, typer.Option(flag, metavar=metavar, help=help, min=0)]


def _flag(flag: str, help: str) -> Any:
    return Annotated[bool | None, typer.Option(flag, help=help)]


Vms = _texts("--vm", "VM", "Name or id; may be repeated.")
Tags = _texts("--tag", "KEY[=VALUE]", "VMs with that tag.")
Hosts = _texts("--host", "HOST", "VMs on that host.")
Every = _flag("--all/--not-all", "Every VM.")
Exclude = _texts("--exclude", "VM", "Not these; * and ? fit.")
ExcludeTags = _texts("--exclude-tag", "KEY[=VALUE]", "Not those with that tag.")
ExcludeDisks = _texts("--exclude-disk", "DISK", "Not these disks; * and ? fit.")
Cron = _texts("--cron", "LINE", "minute hour day month weekday.")
TimeZone = _text("--time-zone", "ZONE", "IANA, e.g. Europe/Berlin. [default: UTC]")
Jitter = _text("--jitter", "DURATION", "Spread the starts over it.")
Windows = _texts("--window", "WINDOW", 'Start only then: "fri,sat 22:00-06:00".')
To = _text("--to", "TARGET", "Registered name. [default: the only one]")
Consistency = _text("--consistency", "LEVEL", "At least: any, crash, filesystem or application.")
Changes = _text("--changes", "SOURCE", "best, full or supplied (by the VMM).")
Rate = _text("--rate", "RATE", "Bytes read a second of each disk; 0: no limit.")
FullEvery = _count("--full-every", "DAYS", "Then read everything; 0: never.")
LockDays = _count("--lock-days", "DAYS", "Lock each backup for so long; 0: not.")
Retries = _count("--retries", help="Start a job that failed by what may pass again, so often; at most 10.")
KeepLast = _count("--keep-last", help="The newest.")
KeepHourly = _count("--keep-hourly", help="The newest of each of so many hours,")
KeepDaily = _count("--keep-daily", help="days,")
KeepWeekly = _count("--keep-weekly", help="weeks,")
KeepMonthly = _count("--keep-monthly", help="months,")
KeepYearly = _count("--keep-yearly", help="years.")
KeepWithin = _text("--keep-within", "DURATION", "All of so long before the newest.")
Disabled = _flag("--disable/--enable", "Let nothing of it run by itself.")
Comment = _text("--comment", "TEXT")

Said = Sequence[str] | None
"""A list that was said; None: nothing, and an empty text in it ends it."""


def choose(
    policy: pb.Policy,
    vms: Said,
    tags: Said,
    hosts: Said,
    every: bool | None,
    exclude: Said,
    exclude_tags: Said,
    exclude_disks: Said,
) -> None:
    """Which VMs and disks. What is None stays, here and below."""
    _fill(policy.selection.vms, vms)
    _fill(policy.selection.tags, tags)
    _fill(policy.selection.hosts, hosts)
    _set(policy.selection, "all", every, bool)
    _fill(policy.selection.exclude_vms, exclude)
    _fill(policy.selection.exclude_tags, exclude_tags)
    _fill(policy.exclude_disks, exclude_disks)


def time(
    policy: pb.Policy,
    cron: Said,
    time_zone: str | None,
    jitter: str | None,
    windows: Said,
    disabled: bool | None,
) -> None:
    """When. Raises InvalidRequest."""
    _fill(policy.schedule.cron, cron)
    _set(policy.schedule, "time_zone", time_zone, str)
    _set(policy.schedule, "jitter_seconds", jitter, duration_seconds)
    if windows is not None:
        del policy.windows[:]
        policy.windows.extend(window(text) for text in windows if text)
    _set(policy, "disabled", disabled, bool)


def treat(
    policy: pb.Policy,
    target: str | None,
    consistency: str | None,
    changes: str | None,
    rate: str | None,
    full_every: int | None,
    lock_days: int | None,
    retries: int | None,
    comment: str | None,
) -> None:
    """Whereto and how. Raises InvalidRequest."""
    _set(policy, "target", target, str)
    _set(policy, "level_min", consistency, lambda text: _choice(_LEVELS, text, "level of consistency"))
    _set(policy, "change_source", changes, lambda text: _choice(_SOURCES, text, "source of changes"))
    _set(policy, "bytes_per_second_max", rate, size_bytes)
    _set(policy, "full_every_days", full_every, int)
    _set(policy, "lock_days", lock_days, int)
    _set(policy, "retries_max", retries, int)
    _set(policy, "comment", comment, str)


def keep(policy: pb.Policy, *keeps: int | str | None) -> None:
    """How long: last, hourly, daily, weekly, monthly, yearly, within. Raises InvalidRequest."""
    for rule, count in zip(_KEEPS, keeps[:-1], strict=True):
        _set(policy.retention, f"keep_{rule}", count, int)
    _set(policy.retention, "keep_within_seconds", keeps[-1], duration_seconds)


def _fill(field: MutableSequence[str], values: Sequence[str] | None) -> None:
    if values is not None:
        field[:] = [value for value in values if value]


def _set(message: Message, field: str, said: Any, meaning: Callable[[Any], Any]) -> None:
    if said is not None:
        setattr(message, field, meaning(said))


def _choice(known: Mapping[str, int], text: str, what: str) -> int:
    if text.lower() not in known:
        raise InvalidRequest(f"{text!r} is no {what}", next_step=f"write {', '.join(known)}")
    return known[text.lower()]


def window(text: str) -> pb.BackupWindow:
    """Return "fri,sat 22:00-06:00" as a window. Raises InvalidRequest; the server judges days and times."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(
            f"{text!r} is no window", next_step='write "22:00-06:00", or "fri,sat 22:00-06:00"'
        )
    days = [day for day in (found[1] or "").lower().split(",") if day]
    return pb.BackupWindow(weekdays=days, from_time=found[2], to_time=found[3])


# -- for people ---------------------------------------------------------------------------------


def selection_text(chosen: pb.VmSelection) -> str:
    """Which VMs, in a few words."""
    parts = ["all"] if chosen.all else []
    parts += [*chosen.vms, *(f"tag {tag}" for tag in chosen.tags), *(f"host {host}" for host in chosen.hosts)]
    out = [*chosen.exclude_vms, *(f"tag {tag}" for tag in chosen.exclude_tags)]
    return ", ".join(parts) + (f"; not {', '.join(out)}" if out else "")


def rows(state: pb.PolicyState) -> list[tuple[str, object]]:
    """A policy for ``pairs``."""
    policy = state.policy
    keeps = [f"{count} {rule}" for rule in _KEEPS if (count := getattr(policy.retention, f"keep_{rule}"))]
    if policy.retention.keep_within_seconds:
        keeps.append(f"all of {policy.retention.keep_within_seconds / 86_400:g} days before the newest")
    windows = [f"{','.join(one.weekdays)} {one.from_time}-{one.to_time}".strip() for one in policy.windows]
    rate = f"{human(policy.bytes_per_second_max)}/s a disk" if policy.bytes_per_second_max else "no limit"
    source = next((name for name, value in _SOURCES.items() if value == policy.change_source), "?")
    found: list[tuple[str, object]] = [
        ("policy", policy.name),
        ("VMs", selection_text(policy.selection)),
        ("schedule", ", ".join(policy.schedule.cron) or "when asked for"),
        ("time zone", policy.schedule.time_zone or "UTC"),
        ("spread over", f"{policy.schedule.jitter_seconds} s"),
        ("starts", ", ".join(windows) or "at any time"),
        ("target", policy.target or "the only one"),
        ("excluded disks", ", ".join(policy.exclude_disks) or "none"),
        ("consistency", short_name(vm_pb2.ConsistencyLevel, policy.level_min) or "any"),
        ("changes", source),
        ("rate", rate),
        ("full reads", f"every {policy.full_every_days} days" if policy.full_every_days else "when needed"),
        ("keeps", ", ".join(keeps) or "everything"),
        ("locks", f"{policy.lock_days} days" if policy.lock_days else "nothing"),
        ("retries", policy.retries_max),
        ("last run", moment(state.last_run_at_ns) or "never"),
        ("next run", "disabled" if policy.disabled else moment(state.next_run_at_ns) or "when asked for"),
        ("problem", state.problem or "none"),
    ]
    return [*found, ("comment", policy.comment)] if policy.comment else found
