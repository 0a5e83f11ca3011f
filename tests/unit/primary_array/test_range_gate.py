"""Overlapping ranges wait, in order; others do not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from arraylift.errors import Overloaded
from primary_array import range_gate
from primary_array.range_gate import RangeGate

SECONDS_MAX = 10


class Waiter(threading.Thread):
    """Holds a range until told, and notes its turn."""

    def __init__(self, gate: RangeGate, order: list[str], name: str, first: int, end: int) -> None:
        super().__init__(name=name, daemon=True)
        self.gate, self.order, self.range = gate, order, (first, end)
        self.inside, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.gate.hold(*self.range):
            self.order.append(self.name)
            self.inside.set()
            assert self.leave.wait(SECONDS_MAX)

    def finish(self) -> None:
        self.leave.set()
        self.join(SECONDS_MAX)
        assert not self.is_alive()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; a pause between looks, no luck."""
    for _ in range(SECONDS_MAX * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came true")


def test_disjoint_ranges_hold_at_once_and_overlaps_wait_in_order() -> None:
    gate, order = RangeGate(), list[str]()
    low = Waiter(gate, order, "low", 0, 10)
    high = Waiter(gate, order, "high", 10, 20)
    assert low.inside.wait(SECONDS_MAX)
    assert high.inside.wait(SECONDS_MAX)
    everything = Waiter(gate, order, "everything", 0, range_gate.EVERYTHING)
    until(lambda: len(gate._queue) == 3)
    late = Waiter(gate, order, "late", 30, 31)  # free of the holders, but behind the one who waits
    until(lambda: len(gate._queue) == 4)
    low.finish()
    assert not everything.inside.is_set()
    high.finish()
    assert everything.inside.wait(SECONDS_MAX)
    assert not late.inside.is_set()
    everything.finish()
    assert late.inside.wait(SECONDS_MAX)
    late.finish()
    assert order[2:] == ["everything", "late"]
    assert gate._queue == []


def test_an_error_inside_lets_the_next_in() -> None:
    gate = RangeGate()
    with pytest.raises(KeyError), gate.hold(0, 5):
        raise KeyError
    with gate.hold(0, 5):
        assert len(gate._queue) == 1


def test_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_gate, "HOLDERS_MAX", 1)
    gate = RangeGate()
    with gate.hold(0, 1), pytest.raises(Overloaded), gate.hold(5, 6):
        pass
    with gate.hold(0, 1):
        pass
