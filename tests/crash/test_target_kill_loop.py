"""kill -9 of a target daemon under backups, deletions, collection, scrub and rebuilds, again and again.

Each cycle starts the daemon with one failpoint armed, holds it to everything that was acknowledged before,
then lets clients work until it dies there, or kills it at a random moment. The failpoint is the one that the
ledger saw least. The ledger adds up over runs (``tests/campaign.py`` says where).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from arraylift import pki
from arraylift.errors import (
    ArrayliftError,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    LeaseLost,
    NotFound,
    Overloaded,
    PeerUnavailable,
)
from tests import campaign
from tests.crash.target_mix import Clients, Notes
from tests.e2e.daemon import Daemon

NAME = "target kills"
CYCLES, FEW = 1000, 3
MIX_SECONDS_MAX = 1.5
LIVES_OF_A_STORE = 50
"""Then it is begun anew: what happens once in a store's life is to be met, too."""

TOLERATED = (Cancelled, Conflict, DeadlineExceeded, LeaseLost, NotFound, Overloaded)
"""What clients do to each other. Corruption, refusals of the disk and surprises are none of these."""

_SIDES = ("before", "after")
_PUBLISH = ("create", "write", "fsync", "rename", "fsync_dir")
_REMOVE = ("remove", "fsync_dir")
_STEPS: dict[str, tuple[str, ...]] = {
    "container": _PUBLISH,
    "manifest": _PUBLISH,
    "high-water": _PUBLISH,
    "backup-manifest": _PUBLISH,
    "gc-state": _PUBLISH,
    "index-place": _PUBLISH,
    "lock-clock": _PUBLISH,
    "scrub": _PUBLISH,
    "doubt": (*_PUBLISH, "remove"),
    "container-remove": _REMOVE,
    "manifest-remove": _REMOVE,
    "backup-manifest-remove": _REMOVE,
    "transfer-remove": _REMOVE,
    "transfer-create": _PUBLISH,
    "transfer-log": ("append", "sync"),
    "key": _PUBLISH,
    "superblock": _PUBLISH,
    "wrapping-key": _PUBLISH,
    "ballast": ("create", "write", "fsync"),
}
POINTS = [f"{label}.{step}.{side}" for label, steps in _STEPS.items() for step in steps for side in _SIDES]
ONCE = ("key.", "superblock.", "wrapping-key.", "ballast.")
"""Only a new store comes by there."""


class Loop:
    """One store, its daemon, its clients."""

    def __init__(self, home: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.seed = seed
        self.home = home
        directory = home / "pki"
        directory.mkdir()
        pki.init_ca(str(directory))
        for role, name in (("array", "array1"), ("target", "target1"), ("operator", "admin")):
            pki.issue(str(directory), role, name)
        self.daemon = Daemon(
            "dedup_target", "target1", home=home, pki=directory, settings={"log_level": "warning"}
        )
        self.notes = Notes()
        self._pki = str(directory)
        self.hits: Counter[str] = Counter()
        self.kills = self.checks = 0
        self._by_us = False
        for entry in campaign.entries("target-kills"):
            if entry.get("hit"):
                self.hits[str(entry["point"])] += 1
        self.surprises: list[BaseException] = []

    def close(self) -> None:
        self.daemon.close()

    @contextlib.contextmanager
    def _clients(self) -> Iterator[Clients]:
        """Clients of one life: a channel that met a dead daemon waits before it tries again."""
        clients = Clients(self.daemon.address, self._pki, self.notes)
        try:
            yield clients
        finally:
            clients.close()

    # -- one life -------------------------------------------------------------------------------

    def cycle(self, number: int) -> None:
        """Start with a failpoint, check, work until it is dead."""
        began = time.monotonic()
        new = number % LIVES_OF_A_STORE == 0
        if new:
            self._begin_anew()
        point, at = self._choose(new=new), self.draw.randrange(1, 5)
        if point.startswith(ONCE):
            at = 1
        self._by_us = False
        self.daemon.launch(failpoints=f"{point}=kill@{at}")
        if self.daemon.wait_started_or_dead():
            with self._clients() as clients:
                self._work(clients)
        if self.daemon.running:
            self._kill()
        self.daemon.wait_dead()
        if self.daemon.exit_code != -signal.SIGKILL:
            why = f"the daemon ended with {self.daemon.exit_code}: {self.daemon.log_tail(3)}"
            self.surprises.append(AssertionError(why))
        hit = not self._by_us
        self.hits[point] += hit
        self.kills += 1
        campaign.record(
            "target-kills", seed=self.seed, cycle=number, point=point, at=at, hit=hit,
            seconds=round(time.monotonic() - began, 2), images=len(self.notes.images),
        )  # fmt: skip
        assert not self.surprises, f"seed {self.seed}, cycle {number}, {point}@{at}: {self.surprises[0]!r}"

    def check(self) -> None:
        """Start without a failpoint and look once more."""
        self.daemon.start()
        with self._clients() as clients:
            clients.settle(self.draw)
        assert self.daemon.stop() == 0

    def _begin_anew(self) -> None:
        shutil.rmtree(self.daemon.state, ignore_errors=True)
        done = self.notes.done
        self.notes = Notes(done=done)

    def _choose(self, *, new: bool) -> str:
        once = [point for point in POINTS if point.startswith(ONCE)]
        points = once if new else [point for point in POINTS if point not in once]
        least = min(self.hits[point] for point in points)
        return self.draw.choice([point for point in points if self.hits[point] <= least + 1])

    def _work(self, clients: Clients) -> None:
        if not self._guarded(lambda: clients.settle(self.draw)):
            return
        self.checks += 1
        stop = time.monotonic() + self.draw.uniform(0.3, MIX_SECONDS_MAX)
        mixes = (
            [clients.back_up, clients.back_up, clients.back_up, clients.delete],
            [
                clients.delete,
                clients.collect,
                clients.collect,
                clients.publish,
                clients.withdraw,
                clients.scrub,
                clients.rebuild,
            ],
        )
        threads = [
            threading.Thread(target=self._mix, args=(mix, random.Random(self.draw.getrandbits(32)), stop))
            for mix in mixes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, stop - time.monotonic()))
        if self.daemon.running and self.draw.random() < 0.5:
            self._kill()  # in the middle of whatever it does
        for thread in threads:
            thread.join()

    def _kill(self) -> None:
        """kill -9, unless the failpoint comes first."""
        self._by_us = True
        try:
            self.daemon.kill()
        except ProcessLookupError:
            self._by_us = False

    def _mix(self, mix: list[Callable[[random.Random], None]], draw: random.Random, stop: float) -> None:
        while self.daemon.running and time.monotonic() < stop:
            if not self._guarded(partial(draw.choice(mix), draw)):
                return

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Do it; False when the daemon is gone. What must not happen is kept for the end of the cycle."""
        try:
            work()
        except PeerUnavailable:
            return False
        except TOLERATED:
            pass
        except (ArrayliftError, AssertionError) as error:
            self.surprises.append(error)
            return False
        return True


def _run(home: Path, cycles: int) -> None:
    seed = campaign.seed_of(NAME)
    loop, began = Loop(home, seed), time.monotonic()
    try:
        for number in range(cycles):
            loop.cycle(number)
        loop.check()
        assert 4 * loop.checks >= cycles, "many lives are long enough to be looked at"
    finally:
        loop.close()
        hours = (time.monotonic() - began) / 3600
        entries = campaign.entries("target-kills")
        hits = sum(1 for one in entries if one.get("hit"))
        campaign.report(
            NAME, seed=seed, cycles=loop.kills, checked=loop.checks, lost=len(loop.surprises),
            at_a_failpoint=hits, an_hour=round(loop.kills / hours), ledger_cycles=len(entries),
            points_met=f"{sum(loop.hits[point] > 0 for point in POINTS)} of {len(POINTS)}",
            least_hits=min(loop.hits[point] for point in POINTS),
            work=" ".join(f"{name} {count}" for name, count in sorted(loop.notes.done.items())),
        )  # fmt: skip


def test_a_few_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARRAYLIFT_CAMPAIGN_LEDGER", str(tmp_path))  # a default run adds to no ledger
    _run(tmp_path, FEW)


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_a_thousand_kills(tmp_path: Path) -> None:
    _run(tmp_path, campaign.scaled(CYCLES))
