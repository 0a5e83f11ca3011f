"""The pure inventory: claims, names, lost hosts, revisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arraylift.errors import NotFound, Overloaded, WrongState
from arraylift.vm.types import PowerState
from tests.unit.vcenter.material import make_vm, report, vm_id_of
from vcenter import inventory as core
from vcenter.inventory import Change, Hold, Holds, Inventory
from vcenter.model import HOSTS_MAX, Report

ON, OFF, UNKNOWN = PowerState.ON, PowerState.OFF, PowerState.UNKNOWN
ONE = vm_id_of(1)


def hosts(*names: str) -> Inventory:
    inventory = Inventory()
    for name in names:
        inventory = core.register_host(
            inventory, name=name, address="127.0.0.1:1", driver="emulated"
        ).inventory
    return inventory


def told(inventory: Inventory, told: Report, holds: Holds | None = None) -> Change:
    change = core.apply_report(inventory, told, holds or {})
    assert change is not None
    return change


def test_a_report_makes_changes_and_removes_vms() -> None:
    first = told(hosts("h1"), report("h1", 1, make_vm(1), make_vm(2)))
    assert [vm.vm_id for vm in first.shown] == [vm_id_of(1), vm_id_of(2)]
    second = told(first.inventory, report("h1", 2, make_vm(2, power=ON, revision=2), make_vm(3)))
    assert set(second.gone) == {ONE}
    assert {vm.vm_id for vm in second.shown} == {vm_id_of(2), vm_id_of(3)}
    assert [vm.vm_id for vm in second.noted] == [vm_id_of(3)]  # power is no configuration
    assert second.inventory.vm_named("vm3").vm_id == vm_id_of(3)
    with pytest.raises(NotFound):
        second.inventory.vm(ONE)
    # What was published before has not moved.
    assert first.inventory.vm(ONE).config.name == "vm1"


def test_a_heartbeat_costs_no_write_and_no_revision() -> None:
    base = told(hosts("h1"), report("h1", 1, make_vm(1))).inventory
    beat = told(base, report("h1", 2, make_vm(1), free=5))
    assert not beat.must_be_stored
    assert beat.inventory.revision == base.revision
    assert beat.inventory.host("h1").sequence == 2
    assert beat.inventory.host("h1").memory_free_bytes == 5


def test_older_and_repeated_reports_are_ignored() -> None:
    base = told(hosts("h1"), report("h1", 5, make_vm(1))).inventory
    for sequence in (1, 4, 5):
        assert core.apply_report(base, report("h1", sequence), {}) is None
    assert core.apply_report(base, report("h1", 6), {}) is not None


def test_a_report_of_an_unknown_host_is_not_found() -> None:
    with pytest.raises(NotFound):
        core.apply_report(hosts("h1"), report("h2", 1), {})


@pytest.mark.parametrize(
    ("first", "second", "shown_on"),
    [(OFF, ON, "h2"), (ON, ON, "h2"), (ON, OFF, "h1"), (OFF, OFF, "h2")],
)
def test_of_two_claims_the_newest_that_runs_is_shown(
    first: PowerState, second: PowerState, shown_on: str
) -> None:
    inventory = told(hosts("h1", "h2"), report("h1", 1, make_vm(1, "h1", power=first))).inventory
    inventory = told(inventory, report("h2", 1, make_vm(1, "h2", power=second))).inventory
    assert inventory.vm(ONE).host == shown_on
    # Heartbeats of either do not make them take turns.
    for sequence in (2, 3):
        for host, power in (("h1", first), ("h2", second)):
            inventory = told(inventory, report(host, sequence, make_vm(1, host, power=power))).inventory
            assert inventory.vm(ONE).host == shown_on


def test_when_the_shown_claim_goes_the_other_is_shown() -> None:
    inventory = told(hosts("h1", "h2"), report("h1", 1, make_vm(1, "h1"))).inventory
    inventory = told(inventory, report("h2", 1, make_vm(1, "h2", power=ON))).inventory
    change = told(inventory, report("h2", 2))
    assert change.gone == ()
    assert [vm.host for vm in change.shown] == ["h1"]
    assert [vm.host for vm in change.noted] == ["h1"]


def test_two_vms_of_one_name_are_found_by_id_only() -> None:
    inventory = told(hosts("h1", "h2"), report("h1", 1, make_vm(1, name="web"))).inventory
    inventory = told(inventory, report("h2", 1, make_vm(2, "h2", name="web"))).inventory
    assert {inventory.vm(vm_id_of(one)).host for one in (1, 2)} == {"h1", "h2"}
    with pytest.raises(WrongState, match=f"2 VMs are named web: {ONE} on h1") as caught:
        inventory.vm_named("web")
    assert "by id" in caught.value.next_step
    renamed = told(inventory, report("h2", 2, make_vm(2, "h2", name="db", revision=2))).inventory
    assert renamed.vm_named("web").vm_id == ONE
    assert renamed.vm_named("db").vm_id == vm_id_of(2)


def test_vms_of_a_lost_host_are_kept_and_marked_until_it_reports() -> None:
    base = told(hosts("h1"), report("h1", 1, make_vm(1, power=ON))).inventory
    lost = core.mark_lost(base, "h1")
    assert [vm.power for vm in lost.shown] == [UNKNOWN]
    assert lost.noted == ()
    assert lost.inventory.is_lost(lost.inventory.vm(ONE))
    assert not core.mark_lost(lost.inventory, "h1").must_be_stored
    found = told(lost.inventory, report("h1", 2, make_vm(1, power=ON)))
    assert [vm.power for vm in found.shown] == [ON]
    assert found.inventory.revision == base.revision + 2


def test_a_lost_host_keeps_a_vm_that_ran_from_one_that_only_knows_it() -> None:
    base = told(hosts("h1", "h2"), report("h1", 1, make_vm(1, power=ON))).inventory
    base = core.mark_lost(base, "h1").inventory
    known = told(base, report("h2", 1, make_vm(1, "h2", power=OFF))).inventory
    assert known.vm(ONE).host == "h1"  # it may still run there
    runs = told(known, report("h2", 2, make_vm(1, "h2", power=ON, revision=2))).inventory
    assert runs.vm(ONE).host == "h2"


def test_removing_a_host_forgets_its_vms() -> None:
    inventory = told(hosts("h1", "h2"), report("h1", 1, make_vm(1), make_vm(2))).inventory
    inventory = told(inventory, report("h2", 1, make_vm(2, "h2"))).inventory
    change = core.remove_host(inventory, "h1")
    assert change.gone == (ONE,)
    assert set(change.inventory.shown) == {vm_id_of(2)}
    assert change.removed_hosts == ("h1",)
    assert not change.hosts
    with pytest.raises(NotFound):
        core.remove_host(change.inventory, "h1")


def test_a_held_answer_outlives_an_older_report() -> None:
    base = told(hosts("h1"), report("h1", 1, make_vm(1))).inventory
    newer = make_vm(1, power=ON, revision=2)
    base = core.apply_vm(base, newer).inventory
    holds = {(ONE, "h1"): Hold(newer)}
    assert told(base, report("h1", 2, make_vm(1)), holds).inventory.vm(ONE).power is ON
    assert told(base, report("h1", 2), holds).inventory.vm(ONE).power is ON
    assert told(base, report("h1", 2), {}).gone == (ONE,)
    after = told(base, report("h1", 2, make_vm(1, revision=3)), holds).inventory
    assert after.vm(ONE).power is OFF
    gone = core.remove_vm(base, "h1", ONE).inventory
    stale = told(gone, report("h1", 2, make_vm(1)), {(ONE, "h1"): Hold(None)})
    assert ONE not in stale.inventory.shown
    # A hold on one host says nothing about another.
    other = core.register_host(gone, name="h2", address="127.0.0.1:1", driver="").inventory
    elsewhere = told(other, report("h2", 1, make_vm(1, "h2")), {(ONE, "h1"): Hold(None)}).inventory
    assert elsewhere.vm(ONE).host == "h2"


def test_registering_again_changes_the_address_only() -> None:
    base = told(hosts("h1"), report("h1", 7, make_vm(1))).inventory
    again = core.register_host(base, name="h1", address="127.0.0.1:1", driver="emulated")
    assert not again.must_be_stored
    moved = core.register_host(base, name="h1", address="127.0.0.1:2", driver="emulated").inventory
    assert replace(moved.host("h1"), address="127.0.0.1:1") == base.host("h1")
    assert moved.vm(ONE) == base.vm(ONE)


def test_hosts_are_limited() -> None:
    full = Inventory(hosts={f"h{index}": hosts("h").host("h") for index in range(HOSTS_MAX)})
    with pytest.raises(Overloaded):
        core.register_host(full, name="one-more", address="127.0.0.1:1", driver="")
