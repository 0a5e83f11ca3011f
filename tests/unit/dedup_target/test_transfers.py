"""The registry of transfers: grants that stay the same, leases that lapse, commits that a crash hid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arraylift.clock import Clock
from arraylift.errors import AlreadyExists, NotFound, Overloaded, WrongState
from arraylift.exchange.messages import Limits
from arraylift.ids import ImageId, TransferId
from dedup_target import transfers as transfers_module
from dedup_target.transfers import GrantRequest, Transfers
from tests.fakes.disk import FakeFiles
from tests.fakes.index import MemorySegmentIndex
from tests.property.test_commit_states import FIRST, PEER, SECOND, Backup, Target
from tests.property.test_target_storage_crash import IndexDisk

LEASE_SECONDS = 100
ASKED = GrantRequest(TransferId("1" * 32), PEER, "", "disk", None, no_base=True)


class HandClock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 1


@pytest.fixture
def files() -> FakeFiles:
    return FakeFiles()


@pytest.fixture
def index() -> IndexDisk:
    return IndexDisk(MemorySegmentIndex())


@pytest.fixture
def target(files: FakeFiles, index: IndexDisk) -> Iterator[Target]:
    made = Target(files, index)
    yield made
    made.end_threads()


def registry(target: Target, clock: Clock) -> Transfers:
    """A second registry over the same store, as the next start would make it."""
    made = Transfers(target.store, target.images, limits=Limits(), lease_seconds=LEASE_SECONDS, clock=clock)
    made._stop.set()  # the tests reap by hand
    made._reaper.join()
    return made


def test_a_grant_asked_for_twice_is_the_same(target: Target) -> None:
    transfers = registry(target, HandClock())
    grant = transfers.create_grant(ASKED)
    assert transfers.create_grant(ASKED) == grant
    assert transfers.create_grant(replace(ASKED, transfer_id=TransferId("2" * 32)))[0] != grant[0]
    assert registry(target, HandClock()).create_grant(ASKED) == grant, "also after a restart"
    for other in (
        replace(ASKED, peer="array2"),
        replace(ASKED, image_name="other"),
        replace(ASKED, tenant_name="other"),
        replace(ASKED, base_image_id=ImageId("9" * 32), no_base=False),
    ):
        with pytest.raises(AlreadyExists):
            transfers.create_grant(other)


def test_the_base_is_the_newest_image_of_the_name_and_the_tenant(target: Target) -> None:
    first, second = (target.send(Backup(number, disk, None)) for number, disk in ((1, FIRST), (2, SECOND)))
    transfers = registry(target, HandClock())
    asked = replace(ASKED, transfer_id=TransferId("3" * 32), no_base=False)
    assert transfers.create_grant(asked)[1] == second.image_id
    with pytest.raises(AlreadyExists):
        transfers.create_grant(replace(asked, no_base=True))
    named = replace(asked, transfer_id=TransferId("4" * 32), base_image_id=first.image_id)
    assert transfers.create_grant(named)[1] == first.image_id
    elsewhere = replace(named, transfer_id=TransferId("5" * 32), tenant_name="other")
    with pytest.raises(NotFound):
        transfers.create_grant(elsewhere)
    assert transfers.create_grant(replace(elsewhere, base_image_id=None))[1] is None


def test_a_transfer_that_nobody_continues_is_forgotten(target: Target) -> None:
    clock = HandClock()
    transfers = registry(target, clock)
    transfers.create_grant(ASKED)
    clock.now = LEASE_SECONDS - 1
    transfers.reap()
    assert transfers.open_count == 1
    again = registry(target, clock)
    clock.now = LEASE_SECONDS + 1
    again.reap()
    assert again.open_count == 1, "leases restart in full with the target"
    transfers.reap()
    assert transfers.open_count == 0
    assert target.store.transfers.list() == []
    with pytest.raises(NotFound):
        transfers.revoke(ASKED.transfer_id)


def test_a_revoked_transfer_is_gone_and_a_committed_one_stays(target: Target) -> None:
    transfers = registry(target, HandClock())
    transfers.create_grant(ASKED)
    transfers.revoke(ASKED.transfer_id)
    with pytest.raises(NotFound):
        transfers.revoke(ASKED.transfer_id)
    transfers.create_grant(ASKED)  # the id is free again
    done = Backup(7, FIRST, None)
    target.send(done)
    later = registry(target, HandClock())
    with pytest.raises(WrongState, match="committed"):
        later.revoke(done.transfer_id)
    assert later.open_count == 1


def test_more_transfers_than_the_limit(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers_module, "TRANSFERS_MAX", 2)
    transfers = registry(target, HandClock())
    for number in range(2):
        transfers.create_grant(replace(ASKED, transfer_id=TransferId(f"{number:032x}")))
    with pytest.raises(Overloaded):
        transfers.create_grant(ASKED)
    assert transfers.create_grant(replace(ASKED, transfer_id=TransferId(f"{1:032x}")))
    transfers.revoke(TransferId(f"{1:032x}"))
    transfers.create_grant(ASKED)


def test_spans_that_rest_on_a_container_that_is_gone_are_taken_back(target: Target) -> None:
    backup = Backup(1, FIRST, None)
    target.send(backup)
    assert target.transfers is not None
    transfer = target.transfers._transfers[backup.transfer_id]
    assert transfer.void_lost() == 0
    assert transfer.log.state.covered.all()
    for container in target.store.containers.containers():
        target.store.unit.remove_container(container)
    assert transfer.void_lost() == 3
    assert transfer.log.state.covered.tolist() == [True, False, False, False], "a hole needs no segment"
    assert transfer.void_lost() == 0
