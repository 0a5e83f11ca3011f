"""The reserve of a target, and the quotas of its tenants."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest, OutOfSpace
from arraylift.ids import TenantId
from arraylift.sizes import GIB, KIB, MIB, TIB
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind, SealedContainer
from dedup_target.quotas import Quotas
from dedup_target.reserve import BALLAST_BYTES_MAX, Reserve
from dedup_target.space import Space
from tests.fakes.disk import FakeFiles
from tests.unit.dedup_target.material import append, make_segments
from tests.unit.dedup_target.test_storage_unit import Stage

STATE = "/state"
BALLAST = f"{STATE}/ballast"


def disk(capacity_bytes: int) -> FakeFiles:
    files = FakeFiles(capacity_bytes=capacity_bytes)
    files.make_dirs(STATE)
    return files


def fill(files: FakeFiles, leave_bytes: int) -> None:
    """Leave that much room, or make it."""
    files.remove(f"{STATE}/filler", label="test", missing_ok=True)
    size = files.free_bytes(STATE) - leave_bytes
    files.publish(f"{STATE}/filler", [bytes(size)], label="test")


@pytest.mark.parametrize(
    ("whole", "mark"),
    [(64 * MIB, 8 * MIB), (16 * MIB, 4 * MIB), (100 * GIB, 4 * GIB), (1 * GIB, 64 * MIB), (9 * TIB, 4 * GIB)],
)
def test_the_mark_follows_the_size_of_the_disk(whole: int, mark: int) -> None:
    files = disk(whole)
    assert Reserve(files, STATE).low_water_bytes == mark
    assert Reserve(files, STATE).ballast_bytes == min(mark // 2, BALLAST_BYTES_MAX)
    assert Reserve(files, STATE, low_water_bytes=5).low_water_bytes == 5


def test_new_transfers_stop_at_the_mark_and_running_ones_at_half_of_it() -> None:
    files = disk(16 * MIB)
    reserve = Reserve(files, STATE)
    reserve.check_begin()
    fill(files, 4 * MIB)
    reserve.check_begin()
    fill(files, 4 * MIB - 4 * KIB)
    assert reserve.is_low()
    with pytest.raises(OutOfSpace, match=r"keeps 4\.0 MiB") as caught:
        reserve.check_begin()
    assert "collect garbage" in caught.value.next_step
    reserve.check_more(MIB)
    with pytest.raises(OutOfSpace):
        reserve.check_more(2 * MIB)


def test_the_ballast_is_laid_given_up_for_work_and_laid_again() -> None:
    files = disk(16 * MIB)
    reserve = Reserve(files, STATE)
    reserve.tend(size_bytes_max=MIB)
    assert not files.exists(BALLAST), "a start does not wait for a large one"
    reserve.tend()
    assert files.size(BALLAST) == 2 * MIB
    fill(files, 0)

    def work() -> str:
        files.publish(f"{STATE}/note", [b"x" * 100_000], label="test")
        return "done"

    with pytest.raises(OutOfSpace):
        work()
    assert reserve.with_room(work) == "done"
    assert not files.exists(BALLAST)
    fill(files, 0)
    with pytest.raises(OutOfSpace):
        reserve.with_room(lambda: files.publish(f"{STATE}/more", [b"x" * 100_000], label="test"))
    reserve.tend()
    assert not files.exists(BALLAST)
    files.remove(f"{STATE}/filler", label="test")
    reserve.tend()
    assert files.size(BALLAST) == 2 * MIB


def test_a_failure_that_room_does_not_help_keeps_the_ballast() -> None:
    files = disk(16 * MIB)
    reserve = Reserve(files, STATE)
    reserve.tend()

    def work() -> None:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        reserve.with_room(work)
    assert files.exists(BALLAST)


def test_quotas_are_kept_and_taken_away(tmp_path: Path) -> None:
    files = RealFiles()
    quotas = Quotas(files, str(tmp_path))
    quotas.set(TenantId(1), 100)
    quotas.set(TenantId(2), 200)
    quotas.set(TenantId(1), 0)
    for one in (quotas, Quotas(files, str(tmp_path))):
        assert (one.of(TenantId(1)), one.of(TenantId(2)), one.of(TenantId(3))) == (0, 200, 0)
    for absurd in (-1, 1 << 63):
        with pytest.raises(InvalidRequest):
            quotas.set(TenantId(1), absurd)


def test_damaged_quotas_bound_nobody_and_can_be_set_again() -> None:
    files = disk(16 * MIB)
    Quotas(files, STATE).set(TenantId(1), 100)
    files.corrupt(f"{STATE}/quotas.ald", 40)
    quotas = Quotas(files, STATE)
    assert quotas.of(TenantId(1)) == 0
    quotas.set(TenantId(1), 7)
    assert Quotas(files, STATE).of(TenantId(1)) == 7


def test_a_quota_bounds_its_tenant_alone() -> None:
    files = disk(64 * MIB)
    stored = {TenantId(1): 90, TenantId(2): 90}
    quotas = Quotas(files, STATE)
    space = Space(
        Reserve(files, STATE), quotas, stored_bytes=stored.__getitem__, name_of=lambda one: f"t{one}"
    )
    quotas.set(TenantId(1), 100)
    space.check_transfer(TenantId(1))
    space.check_container(TenantId(1), 10)
    with pytest.raises(OutOfSpace, match="tenant t1 has stored 90 B of its quota of 100 B"):
        space.check_container(TenantId(1), 11)
    space.check_container(TenantId(2), 11)
    stored[TenantId(1)] = 100
    with pytest.raises(OutOfSpace):
        space.check_transfer(TenantId(1))


def test_two_threads_together_pass_no_quota(tmp_path: Path) -> None:
    """Each alone would fit: commits write their nodes beside the thread that writes containers."""
    stage = Stage(tmp_path / "state")
    store, containers, tenant = stage.target, stage.unit.containers, stage.key.tenant
    one, other = (containers.acquire(tenant=tenant, key_id=stage.key.key_id, kind=Kind.DATA) for _ in "ab")
    for seed, buffer in enumerate((one, other)):
        append(buffer, make_segments(20, seed=seed))
    store.space.quotas.set(tenant, one.file_bytes + other.file_bytes - 1)
    seal = containers.seal

    def meanwhile(buffer: ContainerBuffer) -> SealedContainer:
        if buffer is one:
            with pytest.raises(OutOfSpace, match="quota"):
                store.seal_queue.seal_now(other)
        return seal(buffer)

    containers.seal = meanwhile  # type: ignore[method-assign]
    store.seal_queue.seal_now(one)
    assert containers.containers() == [one.container_id]
    assert containers.stats().buffers_in_use == 0
    stage.close()
