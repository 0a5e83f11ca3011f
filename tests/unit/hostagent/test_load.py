"""The load of the processors: over a minute, of everything but idling and waiting for disks."""

from __future__ import annotations

from hostagent.load import SECONDS, LoadMeter
from tests.unit.hostagent.stage import ManualClock


class Stat:
    """A machine of which a test says what it does."""

    def __init__(self) -> None:
        self.busy, self.idle, self.waiting = 1000, 5000, 10

    def read(self) -> str:
        return f"cpu  {self.busy} 0 0 {self.idle} {self.waiting} 0 0 0 0 0\ncpu0 1 2 3\n"


def test_load_is_what_was_not_idle_in_the_last_minute() -> None:
    clock, stat = ManualClock(), Stat()
    meter = LoadMeter(clock, stat.read)
    assert meter.percent() == 0
    for _ in range(int(SECONDS / 5)):
        clock.now += 5
        stat.busy, stat.idle, stat.waiting = stat.busy + 300, stat.idle + 600, stat.waiting + 100
        assert meter.percent() == 30
    for _ in range(int(SECONDS / 5)):
        clock.now += 5
        stat.idle += 1000
        assert meter.percent() < 30
    assert meter.percent() == 0


def test_a_system_that_tells_nothing_has_no_load() -> None:
    def missing() -> str:
        raise FileNotFoundError("/proc/stat")

    assert LoadMeter(ManualClock(), missing).percent() == 0
    assert LoadMeter(ManualClock(), lambda: "cpu x y").percent() == 0
    assert 0 <= LoadMeter(ManualClock()).percent() <= 100
