"""Walks along the rules of ``pool_machine`` from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.property.pool_machine import NAMES, SIZES, UNIT_COUNT, PoolMachine
from tests.property.pool_model import UNITS_PER_GRANULE

Operations = dict[str, tuple[int, Callable[[], None]]]
"""Weight, and what to do."""


def operations_of(machine: PoolMachine, chance: random.Random) -> Operations:
    """Every rule, with random arguments."""

    def where() -> tuple[int, int]:
        first = chance.randrange(UNIT_COUNT)
        longest = chance.choice((1, UNITS_PER_GRANULE, UNIT_COUNT))
        return first, chance.randint(1, min(longest, UNIT_COUNT - first))

    def some() -> int:
        return chance.randrange(10_000)

    def name() -> str:
        return chance.choice(NAMES)

    return {
        "write": (20, lambda: machine.write(name=name(), where=where(), value=chance.randint(1, 255))),
        "trim": (8, lambda: machine.trim(name=name(), where=where())),
        "flush": (5, lambda: machine.flush(name=name())),
        "snapshot": (8, lambda: machine.snapshot(chosen=set(chance.sample(NAMES, chance.randint(1, 2))))),
        "delete_snapshot": (5, lambda: machine.delete_snapshot(pick=some(), pinned=chance.random() < 0.3)),
        "recreate": (1, lambda: machine.recreate(name=name())),
        "distrust": (3, lambda: machine.distrust(name=name())),
        "resize": (7, lambda: machine.resize(name=name(), units=chance.choice(SIZES))),
        "clone_over": (3, lambda: machine.clone_over(name=name(), pick=some())),
        "rollback": (4, lambda: machine.rollback(name=name(), pick=some(), safe=chance.random() < 0.5)),
        "begin_restore": (
            3,
            lambda: machine.begin_restore(name=name(), pick=some(), units=chance.choice(SIZES)),
        ),
        "write_restore": (
            4,
            lambda: machine.write_restore(pick=some(), where=where(), value=chance.choice((0, 8, 9))),
        ),
        "end_restore": (3, lambda: machine.end_restore(pick=some(), commit=chance.random() < 0.7)),
        "begin_draft": (5, machine.begin_draft),
        "write_draft": (
            16,
            lambda: machine.write_draft(pick=some(), where=where(), value=chance.choice((0, 0, 8, 9))),
        ),
        "save_draft": (6, lambda: machine.save_draft(pick=some(), tag=chance.randbytes(3))),
        "end_draft": (2, lambda: machine.end_draft(pick=some(), commit=chance.random() < 0.5)),
        "restart": (1, machine.restart),
        "kill": (2, machine.kill),
        "cut_power": (2, lambda: machine.cut_power(seed=some())),
        "cut_power_in_flush": (
            2,
            lambda: machine.cut_power_in_flush(name=name(), operations=chance.randrange(12), seed=some()),
        ),
        "cut_power_in_delete": (
            2,
            lambda: machine.cut_power_in_delete(pick=some(), operations=chance.randrange(12), seed=some()),
        ),
    }


def tracker_operations_of(machine: PoolMachine, chance: random.Random) -> Operations:
    """What moves births, and what may lose them."""
    weights = {"write": 30, "trim": 12, "flush": 4, "snapshot": 20, "kill": 8, "cut_power": 8}
    chosen = {
        name: (weights.get(name, weight), run)
        for name, (weight, run) in operations_of(machine, chance).items()
    }

    def cut() -> None:
        machine.cut_power_in_snapshot(operations=chance.randrange(14), seed=chance.randrange(10_000))

    return chosen | {"cut_power_in_snapshot": (8, cut)}


def run_history(
    seed: int,
    steps: int,
    operations: Callable[[PoolMachine, random.Random], Operations] = operations_of,
    *,
    check_every: int = 1,
) -> PoolMachine:
    """Walk one random path through the rules; the last step is checked in any case."""
    chance = random.Random(seed)
    machine = PoolMachine()
    choices = list(operations(machine, chance).values())
    weights = [weight for weight, _ in choices]
    for step in range(1, steps + 1):
        chance.choices([run for _, run in choices], weights)[0]()
        if step % check_every == 0 or step == steps:
            machine.content_agrees()
            machine.changes_agree()
    return machine
