"""Who may touch an emulated guest's disks, and when."""

from __future__ import annotations

import threading

import pytest

from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import ArrayliftError, Cancelled, DeadlineExceeded, WrongState
from hostagent.guest_gate import GuestGate
from tests.e2e.daemon import wait_until


@pytest.fixture
def gate() -> GuestGate:
    one = GuestGate("VM web1", SYSTEM_CLOCK)
    one.start()
    return one


class Writer:
    """An operation in a thread, stopped where the test wants it."""

    def __init__(self, gate: GuestGate) -> None:
        self.reached: list[str] = []
        self.to_write, self.to_end = threading.Event(), threading.Event()
        self.error: ArrayliftError | None = None
        self._gate = gate
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._gate.operation():
                self.reached.append("copied")
                self.to_write.wait(10)
                with self._gate.writing():
                    self.reached.append("writing")
                    self.to_end.wait(10)
        except ArrayliftError as error:
            self.error = error

    def wait(self, place: str) -> None:
        wait_until(lambda: place in self.reached, place, seconds=10)

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_freeze_waits_for_the_write_under_way_and_holds_the_next_back(gate: GuestGate) -> None:
    writer = Writer(gate)
    writer.to_write.set()
    writer.wait("writing")
    with pytest.raises(DeadlineExceeded):
        gate.freeze(0.05)
    gate.thaw()
    writer.to_end.set()
    writer.join()
    gate.freeze(5)
    held = Writer(gate)
    assert not held.reached
    gate.thaw()
    held.wait("copied")
    held.to_write.set()
    held.to_end.set()
    held.join()
    assert held.error is None


def test_a_freeze_does_not_wait_for_a_copy_but_its_write_waits_for_the_thaw(gate: GuestGate) -> None:
    writer = Writer(gate)
    writer.wait("copied")
    gate.freeze(1)
    writer.to_write.set()
    writer.to_end.set()
    assert "writing" not in writer.reached
    gate.thaw()
    writer.join()
    assert "writing" in writer.reached


def test_a_thaw_from_elsewhere_ends_a_freeze_that_waits(gate: GuestGate) -> None:
    writer = Writer(gate)
    writer.to_write.set()
    writer.wait("writing")
    threading.Timer(0.05, gate.thaw).start()
    with pytest.raises(DeadlineExceeded):
        gate.freeze(30)
    writer.to_end.set()
    writer.join()


def test_power_off_refuses_new_operations_and_cuts_the_one_that_does_not_write(gate: GuestGate) -> None:
    writer = Writer(gate)
    writer.wait("copied")
    stopper = threading.Thread(target=lambda: gate.stop(grace_seconds=0.05))
    stopper.start()
    wait_until(lambda: not gate.running, "it is off")
    with pytest.raises(WrongState), gate.operation():
        pass
    wait_until(lambda: gate._cut, "the grace is over", seconds=10)
    writer.to_write.set()
    stopper.join(10)
    writer.join()
    assert isinstance(writer.error, Cancelled)
    gate.start()
    with gate.operation(), gate.writing():
        pass
