"""Reports to a virtual center that may be away or forgetful."""

from __future__ import annotations

from collections.abc import Callable

from arraylift.errors import NotFound, PeerUnavailable
from arraylift.sizes import GIB
from hostagent.reporter import HostFacts, HostUse, Reporter
from hostagent.vm_types import VmRecord
from tests.e2e.daemon import wait_until
from tests.unit.hostagent.material import VM

FACTS = HostFacts("host1", "127.0.0.1:7402", "fake", 4 * GIB, 8)


class FakeCenter:
    def __init__(self) -> None:
        self.away = False
        self.known = False
        self.reports: list[tuple[int, int, int]] = []
        self.calls = 0
        self.load_percent = 0

    def register(self, facts: HostFacts) -> None:
        self.calls += 1
        if self.away:
            raise PeerUnavailable("away")
        self.known = True

    def report(self, facts: HostFacts, sequence: int, vms: list[VmRecord], use: HostUse) -> None:
        self.calls += 1
        if self.away:
            raise PeerUnavailable("away")
        if not self.known:
            raise NotFound("register first")
        self.reports.append((sequence, len(vms), use.memory_free_bytes))
        self.load_percent = use.load_percent


def run(
    center: FakeCenter, vms: list[VmRecord], script: Callable[[Reporter], None], *, token: int = 1
) -> None:
    reporter = Reporter(center, FACTS, lambda: vms, token=token, load=lambda: 42, seconds=0.02)
    reporter.start()
    try:
        script(reporter)
    finally:
        reporter.close()


def test_the_whole_inventory_goes_out_again_and_again_with_growing_sequences() -> None:
    center = FakeCenter()
    run(center, [VM], lambda _: wait_until(lambda: len(center.reports) > 3, "four reports"))
    sequences = [sequence for sequence, _, _ in center.reports]
    assert sequences == sorted(set(sequences))
    assert center.reports[0][1:] == (1, 3 * GIB)
    assert center.load_percent == 42
    last = sequences[-1]
    run(center, [], lambda _: wait_until(lambda: center.reports[-1][1] == 0, "a report"), token=2)
    assert center.reports[-1][0] > last + 1000, "over restarts as well"


def test_a_center_that_is_away_or_forgets_is_found_again() -> None:
    center = FakeCenter()
    center.away = True

    def script(reporter: Reporter) -> None:
        wait_until(lambda: center.calls > 2, "attempts")
        assert center.reports == []
        center.away = False
        wait_until(lambda: bool(center.reports), "a report")
        center.known = False
        count = len(center.reports)
        reporter.changed()
        wait_until(lambda: len(center.reports) > count + 1, "it registers again")

    run(center, [VM], script)
    assert center.known


def test_a_change_is_reported_at_once() -> None:
    center = FakeCenter()
    vms: list[VmRecord] = []
    reporter = Reporter(center, FACTS, lambda: list(vms), token=1, seconds=600)
    reporter.start()
    try:
        wait_until(lambda: bool(center.reports), "the first report")
        vms.append(VM)
        reporter.changed()
        wait_until(lambda: center.reports[-1][1] == 1, "the change", seconds=5)
    finally:
        reporter.close()
