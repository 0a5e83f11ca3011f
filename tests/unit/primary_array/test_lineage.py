"""The ancestor rule, along forks."""

from __future__ import annotations

import pytest

from arraylift.errors import Corruption
from arraylift.ids import LineageId, PoolId, SourceState
from primary_array.lineage import Lineage, LineageTable

POOL = PoolId("p")
ROOT, FORK, LEAF, OTHER = (LineageId(name) for name in ("root", "fork", "leaf", "other"))


def state(lineage: LineageId, birth: int, pool: PoolId = POOL) -> SourceState:
    return SourceState(pool, lineage, birth)


@pytest.fixture
def table() -> LineageTable:
    """root, forked at 5 to fork, which forked at 8 to leaf; other stands alone."""
    return LineageTable(POOL, [Lineage(ROOT), Lineage(FORK, ROOT, 5), Lineage(LEAF, FORK, 8), Lineage(OTHER)])


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        (state(ROOT, 3), state(ROOT, 3), True),
        (state(ROOT, 3), state(ROOT, 4), True),
        (state(ROOT, 4), state(ROOT, 3), False),
        (state(ROOT, 5), state(FORK, 6), True),
        (state(ROOT, 6), state(FORK, 9), False),  # root went on after the fork
        (state(FORK, 6), state(ROOT, 9), False),
        (state(ROOT, 5), state(LEAF, 20), True),
        (state(ROOT, 6), state(LEAF, 20), False),
        (state(FORK, 8), state(LEAF, 9), True),
        (state(FORK, 9), state(LEAF, 9), False),
        (state(ROOT, 4), state(LEAF, 3), False),  # a state below its own fork contains less
        (state(OTHER, 1), state(LEAF, 9), False),
        (state(LineageId("unknown"), 1), state(ROOT, 9), False),
        (state(ROOT, 1), state(LineageId("unknown"), 9), False),
        (state(ROOT, 1, PoolId("copy")), state(ROOT, 2), False),
        (state(ROOT, 1), state(ROOT, 2, PoolId("copy")), False),
    ],
)
def test_ancestors(table: LineageTable, older: SourceState, newer: SourceState, expected: bool) -> None:
    assert table.is_ancestor(older, newer) is expected


def test_prune_keeps_ancestors_of_what_is_in_use(table: LineageTable) -> None:
    table.prune([LEAF])
    assert {lineage.lineage_id for lineage in table} == {ROOT, FORK, LEAF}
    table.prune([FORK])
    assert LEAF not in table
    assert not table.is_ancestor(state(LEAF, 1), state(LEAF, 2))


def test_a_lineage_is_entered_once_and_after_its_parent(table: LineageTable) -> None:
    with pytest.raises(Corruption, match="twice"):
        table.add(Lineage(ROOT))
    with pytest.raises(Corruption, match="unknown parent"):
        table.add(Lineage(LineageId("new"), LineageId("nobody"), 1))
