"""Retention against a model that goes rule by rule, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from backup_server.policies.retention import NS, Candidate, Retention, digest, plan

ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]
).map(ZoneInfo)
COUNTS = st.integers(0, 6)
RULES = st.builds(
    Retention,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.sampled_from([0, 1, 3600, 90_000, 40 * 86_400]),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """Backups of two VMs: dense and sparse, over clock changes, some damaged, some held."""
    steps = st.sampled_from([60, 1800, 3600, 7200, 86_400, 7 * 86_400, 31 * 86_400, 300 * 86_400])
    found = []
    for vm in ("a", "b")[: draw(st.integers(1, 2))]:
        at = int(datetime(2025, 10, 20, draw(st.integers(0, 23)), tzinfo=UTC).timestamp())
        for number in range(draw(st.integers(0, 30))):
            at += draw(steps)
            damaged, held = draw(st.booleans()), draw(st.sampled_from(["", "", "locked"]))
            found.append(Candidate(f"{vm}{number}", vm, vm, at * NS, damaged, held))
    return draw(st.permutations(found))


def model(backups: list[Candidate], rules: Retention, zone: ZoneInfo) -> set[str]:
    """Ids that stay, of one VM."""
    if rules == Retention():
        return {one.backup_id for one in backups}
    newest_first = sorted(backups, key=lambda one: -one.taken_at_ns)
    kept = {one.backup_id for one in newest_first[: rules.keep_last]}
    kept |= {one.backup_id for one in newest_first if one.held}
    kept |= {one.backup_id for one in newest_first if not one.damaged and one is _first_good(newest_first)}
    if rules.keep_within_seconds:
        limit = newest_first[0].taken_at_ns - rules.keep_within_seconds * NS
        kept |= {one.backup_id for one in newest_first if one.taken_at_ns >= limit}
    periods: list[tuple[int, Callable[[datetime], object]]] = [
        (rules.keep_hourly, lambda at: (at.date(), at.hour, at.utcoffset())),
        (rules.keep_daily, lambda at: at.date()),
        (rules.keep_weekly, lambda at: at.isocalendar()[:2]),
        (rules.keep_monthly, lambda at: (at.year, at.month)),
        (rules.keep_yearly, lambda at: at.year),
    ]
    for count, period in periods:
        buckets: dict[object, list[Candidate]] = {}
        for one in newest_first:
            buckets.setdefault(period(datetime.fromtimestamp(one.taken_at_ns / NS, zone)), []).append(one)
        kept |= {bucket[0].backup_id for bucket in list(buckets.values())[:count]}
    return kept


def _first_good(newest_first: list[Candidate]) -> Candidate | None:
    return next((one for one in newest_first if not one.damaged), None)


@given(histories(), RULES, ZONES)
def test_a_plan_is_what_the_rules_say(backups: list[Candidate], rules: Retention, zone: ZoneInfo) -> None:
    decisions = plan(backups, rules, zone=zone)
    assert sorted(one.candidate.backup_id for one in decisions) == sorted(one.backup_id for one in backups)
    for vm in ("a", "b"):
        own = [one for one in backups if one.vm_id == vm]
        kept = {one.candidate.backup_id for one in decisions if one.candidate.vm_id == vm and one.kept}
        assert kept == (model(own, rules, zone) if own else set())
        told = [one.candidate.taken_at_ns for one in decisions if one.candidate.vm_id == vm]
        assert told == sorted(told, reverse=True)
    assert all(one.reasons for one in decisions)


@given(histories(), RULES, ZONES)
def test_what_was_kept_is_kept_again_and_more_rules_keep_no_less(
    backups: list[Candidate], rules: Retention, zone: ZoneInfo
) -> None:
    kept = [one.candidate for one in plan(backups, rules, zone=zone) if one.kept]
    assert all(one.kept for one in plan(kept, rules, zone=zone)), "nothing goes twice"
    if not rules.keeps_all:
        more = replace(
            rules, keep_daily=rules.keep_daily + 1, keep_within_seconds=rules.keep_within_seconds * 2
        )
        kept_then = {one.candidate for one in plan(backups, more, zone=zone) if one.kept}
        assert kept_then >= set(kept)


@given(histories(), RULES)
def test_a_digest_names_one_plan(backups: list[Candidate], rules: Retention) -> None:
    zone = ZoneInfo("UTC")
    decisions = plan(backups, rules, zone=zone)
    assert digest(decisions) == digest(plan(list(reversed(backups)), rules, zone=zone))
    for index, one in enumerate(decisions):
        turned = [*decisions[:index], replace(one, kept=not one.kept), *decisions[index + 1 :]]
        assert digest(turned) != digest(decisions)
