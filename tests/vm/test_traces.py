"""The judge of copies can tell them apart: made-up disks with known faults."""

from __future__ import annotations

import pytest

from tests.vm.traces import Traces

CLEAN, DIRTY = (True, True, True), (True, False, True)


@pytest.mark.parametrize(
    ("traces", "one_instant", "frozen", "quiesced"),
    [
        (Traces((7, 7, 7), (7, 7, 7), CLEAN), True, True, True),
        (Traces((8, 8, 7), (8, 7, 7), CLEAN), True, True, False),
        (Traces((8, 7, 7), (7, 3, 7), CLEAN), True, False, False),
        (Traces((8, 7, 7), (8, 7, 7), DIRTY), True, False, False),
        (Traces((7, 8, 8), (7, 8, 8), CLEAN), False, True, False),
        (Traces((9, 9, 7), (9, 9, 7), CLEAN), False, True, False),
    ],
)
def test_copies_are_told_apart(traces: Traces, one_instant: bool, frozen: bool, quiesced: bool) -> None:
    assert (traces.of_one_instant, traces.frozen, traces.quiesced) == (one_instant, frozen, quiesced)
