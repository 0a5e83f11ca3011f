"""What is locked stays: over deletions of every kind, moves of the wall clock, kills, power cuts and replays.

A model keeps, for each image and backup, the end of its lock by a clock that is always right. The target's
own clock may be a day and an hour off it (``test_lock_clock`` shows that it is no more).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arraylift.errors import AlreadyExists, InvalidRequest, NotFound, OutOfSpace, WrongState
from arraylift.ids import ImageId
from dedup_target.backup_manifest_format import BackupId
from dedup_target.lock_clock import AGREEMENT_NS_MAX, DAY_NS, STEP_NS_MAX
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.hand_clock import HandClock
from tests.unit.dedup_target.material import backup, manifest
from tests.unit.dedup_target.test_backup_manifests import Rig

SLACK_NS = STEP_NS_MAX + AGREEMENT_NS_MAX
NUMBERS = st.integers(1, 4)


def image_id(number: int) -> ImageId:
    return ImageId(f"{number:032x}")


class LockMachine(RuleBasedStateMachine):
    """Four images; backup n names image n."""

    def __init__(self) -> None:
        super().__init__()
        self.files = FakeFiles()
        self.files.make_dirs("/state")
        self.clock = HandClock()
        self.images_locked: dict[int, int] = {}
        self.backups_locked: dict[int, int] = {}
        self.open()
        for number in range(1, 5):
            self.images.publish(manifest(number))

    def open(self) -> None:
        self.clock = self.clock.another_process()
        self.files.set_capacity(None)
        rig = Rig(Path("/state"), files=self.files, clock=self.clock)
        self.images, self.manifests = rig.images, rig.manifests
        self.backups, self.lock_clock = rig.backups, rig.lock_clock

    # -- what people and programs do --------------------------------------------------------

    @rule(number=NUMBERS, days=st.integers(-1, 400))
    def lock_an_image(self, number: int, days: int) -> None:
        until = self.clock.real_ns + days * DAY_NS
        with contextlib.suppress(NotFound, InvalidRequest, WrongState, OutOfSpace):
            self.backups.lock_image(image_id(number), until)
            assert until >= self.images_locked.get(number, 0), "a lock is never shortened"
            self.images_locked[number] = until

    @rule(number=NUMBERS, days=st.integers(-1, 400))
    def lock_a_backup(self, number: int, days: int) -> None:
        until = self.clock.real_ns + days * DAY_NS
        with contextlib.suppress(NotFound, InvalidRequest, WrongState, OutOfSpace):
            self.backups.lock_backup(BackupId(image_id(number)), until)
            self.backups_locked[number] = self.images_locked[number] = until

    @rule(number=NUMBERS)
    def publish_a_backup(self, number: int) -> None:
        with contextlib.suppress(NotFound, AlreadyExists, OutOfSpace):
            self.backups.publish(backup(number, images=(number,)))

    @rule(number=NUMBERS, other=NUMBERS)
    def publish_another_over_it(self, number: int, other: int) -> None:
        """A backup of another id over the same image must not be a way around its lock."""
        with contextlib.suppress(NotFound, AlreadyExists, OutOfSpace):
            self.backups.publish(backup(10 + other, images=(number,)))

    @rule(number=NUMBERS, other=st.booleans())
    def delete_a_backup(self, number: int, other: bool) -> None:
        with contextlib.suppress(NotFound, WrongState, OutOfSpace):
            self.backups.remove(BackupId(image_id(number + 10 * other)))

    @rule(number=NUMBERS)
    def delete_an_image(self, number: int) -> None:
        with contextlib.suppress(NotFound, WrongState, OutOfSpace):
            self.backups.delete_image(image_id(number))

    @precondition(lambda self: len(self.images.all()) < 4)
    @rule()
    def back_up_again(self) -> None:
        for number in range(1, 5):
            with contextlib.suppress(AlreadyExists, OutOfSpace):
                self.images.publish(manifest(number))
                self.images_locked.pop(number, None)
                self.backups_locked.pop(number, None)

    # -- what the world does ----------------------------------------------------------------

    @rule(days=st.integers(0, 500))
    def time_passes(self, days: int) -> None:
        self.clock.pass_seconds(days * 86_400)

    @rule(days=st.sampled_from([0, 3650, -3650, 1, -1, 2]))
    def the_wall_clock_is_set(self, days: int) -> None:
        self.clock.lie_ns = days * DAY_NS

    @rule()
    def a_daemon_confirms(self) -> None:
        """One whose clock is right; operators may not (the table of authorization)."""
        with contextlib.suppress(WrongState, OutOfSpace):
            self.lock_clock.confirm(self.clock.real_ns)

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.files = self.files.after_kill()
        self.open()

    @rule(state=st.integers(0, 3))
    def the_power_is_cut(self, state: int) -> None:
        found = list(self.files.post_crash_states(maximum=4))
        self.files = found[state % len(found)]
        self.open()

    @rule(full=st.booleans())
    def the_disk_fills_or_not(self, full: bool) -> None:
        self.files.set_capacity(self.files.kernel.used_bytes() if full else None)

    # -- what must hold ---------------------------------------------------------------------

    @invariant()
    def what_is_locked_is_there_with_its_lock(self) -> None:
        now = self.clock.real_ns
        for number, until in self.images_locked.items():
            if now < until - SLACK_NS:
                held = self.images.get(image_id(number))
                assert (held.lock_until_ns or 0) >= until
        for number, until in self.backups_locked.items():
            if now < until - SLACK_NS:
                assert (self.manifests.key(BackupId(image_id(number))).lock_until_ns or 0) >= until


TestLocks = LockMachine.TestCase
TestLocks.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
