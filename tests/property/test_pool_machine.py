"""A pool against plain lists, under any order of operations, kills and power cuts.

By hypothesis, which finds short counterexamples; along seeded histories, which are long; and along very
many that move births and crash, for the tracker's promise (TRACK, fault 12).
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests import campaign
from tests.property.pool_histories import run_history, tracker_operations_of
from tests.property.pool_machine import PoolMachine

NAME = "tracker histories"
HISTORIES, HISTORIES_IN_CAMPAIGN = 60, 10_000
HISTORY_STEPS = 30

TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, print_blob=True)


@pytest.mark.parametrize("seed", range(20))
def test_seeded_history(seed: int) -> None:
    run_history(seed, steps=120)


def _track(count: int, seed: int) -> None:
    """Crash-and-snapshot histories; a missed granule fails the first that misses one."""
    compared = 0
    for number in range(count):
        machine = run_history(seed * 100_000 + number, HISTORY_STEPS, tracker_operations_of, check_every=10)
        compared += machine.comparisons
    campaign.report(NAME, seed=seed, histories=count, comparisons=compared, missed_granules=0)


def test_tracker_misses_nothing() -> None:
    _track(HISTORIES, 7)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_campaign_of_tracker_histories() -> None:
    seed = campaign.seed_of(NAME)
    _track(campaign.scaled(HISTORIES_IN_CAMPAIGN), seed)
    campaign.record("tracker-histories", seed=seed, histories=campaign.scaled(HISTORIES_IN_CAMPAIGN))
