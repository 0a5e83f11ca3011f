"""Tasks come round, alone each, whatever became of their last round; closing waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from arraylift.errors import OutOfSpace
from dedup_target.housekeeping import Housekeeping


@pytest.fixture
def house() -> Iterator[Housekeeping]:
    made = Housekeeping()
    yield made
    made.close()


def test_a_task_comes_round_although_it_fails(house: Housekeeping) -> None:
    rounds = threading.Semaphore(0)

    def fail(_: threading.Event) -> None:
        rounds.release()
        raise OutOfSpace("the disk is full")

    house.add("fails", 0.01, fail)
    house.start()
    for _ in range(3):
        assert rounds.acquire(timeout=10)


def test_a_defect_of_ours_ends_no_task(house: Housekeeping, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = threading.Semaphore(0)

    def break_down(_: threading.Event) -> None:
        rounds.release()
        raise ZeroDivisionError

    house.add("breaks", 0.01, break_down)
    house.start()
    for _ in range(2):
        assert rounds.acquire(timeout=10)


def test_without_an_interval_a_task_waits_until_it_is_asked_for(house: Housekeeping) -> None:
    ran = threading.Event()
    house.add("rare", 0, lambda _: ran.set())
    house.start()
    assert not ran.wait(0.05)
    house.run_soon("rare")
    assert ran.wait(10)


def test_what_is_asked_for_while_a_task_runs_runs_once_more(house: Housekeeping) -> None:
    entered, go_on = threading.Semaphore(0), threading.Semaphore(0)
    running = threading.Lock()

    def work(_: threading.Event) -> None:
        assert running.acquire(blocking=False), "P1"
        entered.release()
        go_on.acquire(timeout=10)
        running.release()

    house.add("slow", 0, work)
    house.start()
    house.run_soon("slow")
    assert entered.acquire(timeout=10)
    house.run_soon("slow")
    go_on.release()
    assert entered.acquire(timeout=10)
    go_on.release()


def test_closing_waits_for_the_round_and_starts_no_other() -> None:
    house = Housekeeping()
    entered, ended = threading.Event(), threading.Event()

    def work(stopping: threading.Event) -> None:
        entered.set()
        assert stopping.wait(10)
        ended.set()

    house.add("long", 0, work)
    house.add("never", 3600, lambda _: pytest.fail("it was not due"))
    house.start()
    house.run_soon("long")
    assert entered.wait(10)
    house.close()
    assert ended.is_set()
