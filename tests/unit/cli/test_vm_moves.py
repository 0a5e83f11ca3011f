"""VMs that move, what they were, and hosts that are asked or forgotten, by the command line."""

from __future__ import annotations

from arraylift import errors
from arraylift.v1 import virtual_center_pb2 as pb
from arraylift.v1 import vm_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.test_vms import add_vm

MOVED = pb.MigrateVmResponse(
    phase="finish",
    bytes_sent=3 << 20,
    downtime_ns=123_000_000,
    vm=vm_pb2.Vm(config=vm_pb2.VmConfig(name="web")),
    host=pb.Host(name="h2"),
)


def test_a_vm_is_moved_and_its_way_is_told(arraylift: Arraylift, daemons: Daemons) -> None:
    vm_id = add_vm(daemons)
    waits = "host h1 has not reported"
    daemons.center.news = [
        pb.MigrateVmResponse(phase="place"),
        pb.MigrateVmResponse(phase="hand over", bytes_sent=1 << 20, bytes_left=2 << 20),
        pb.MigrateVmResponse(phase="hand over", waits_for=waits),
        pb.MigrateVmResponse(phase="hand over", waits_for=waits),
        MOVED,
    ]
    ended = arraylift("vm", "migrate", "web", "h2", "--live", "--downtime", 200, "--time", 30)
    assert ended.code == 0
    assert "VM web is on host h2; its guest stood still for 123 ms, 3.0 MiB of memory were sent" in ended.out
    assert ended.err.count(f"hand over waits: {waits}") == 1
    (asked,) = daemons.center.moves
    assert (asked.vm_id, asked.host, asked.live) == (vm_id, "h2", True)
    assert (asked.downtime_ms_max, asked.seconds_max) == (200, 30)
    document = arraylift("vm", "migrate", "web", "--json").document
    assert (document["host"]["name"], document["downtime_ns"]) == ("h2", 123_000_000)
    assert daemons.center.moves[1].host == ""


def test_a_move_that_fails_or_is_cut_is_an_error(arraylift: Arraylift, daemons: Daemons) -> None:
    add_vm(daemons)
    daemons.center.fail_with = errors.WrongState("VM web runs", next_step="move it live, or stop it first")
    ended = arraylift("vm", "migrate", "web", "h2")
    assert ended.code == 5
    assert "move it live" in ended.err
    daemons.center.fail_with = None
    ended = arraylift("vm", "migrate", "web", "h2")
    assert ended.code != 0
    assert "vm migrations" in ended.err


def test_moves_that_wait_are_listed(arraylift: Arraylift, daemons: Daemons) -> None:
    vm_id = add_vm(daemons)
    one = pb.Migration(
        migration_id="c" * 32, vm_id=vm_id, vm_name="web", source="h1", destination="h2", phase="accept"
    )
    one.waits_for = "host h2 is away; whether it has the VM is not known"
    other = pb.Migration(vm_id="9" * 32, vm_name="db", phase="undo", undone_because="no room")
    daemons.center.migrations = [one, other]
    assert [each["vm_name"] for each in arraylift("vm", "migrations", "--json").document] == ["web", "db"]
    shown = arraylift("vm", "migrations", "web").out
    assert "accept" in shown
    assert "db" not in shown


def test_history_is_shown_newest_first(arraylift: Arraylift, daemons: Daemons) -> None:
    config = vm_pb2.VmConfig(name="web", cpus=2, memory_bytes=1 << 30, tags={"tier": "gold"})
    daemons.center.entries = [
        pb.VmHistoryEntry(at_ns=2 * 10**18, host="h2", config=config, removed=True),
        pb.VmHistoryEntry(at_ns=10**18, host="h2", config=config),
    ]
    shown = arraylift("vm", "history", "web").out
    assert shown.index("removed from h2") < shown.index("tier=gold")
    assert len(arraylift("vm", "history", "9" * 32, "--last", 1, "--json").document) == 1
    by_name, by_id = daemons.center.histories
    assert (by_name.name, by_name.vm_id, by_id.name, by_id.vm_id) == ("web", "", "", "9" * 32)


def test_hosts_are_asked_now_and_forgotten_on_an_operators_word(
    arraylift: Arraylift, daemons: Daemons
) -> None:
    daemons.center.host = pb.Host(name="h1", load_percent=37)
    assert "37%" in arraylift("host", "sync").out
    assert arraylift("host", "sync", "h1", "--json").document[0]["load_percent"] == 37
    assert daemons.center.synchronized == ["", "h1"]
    refused = arraylift("host", "forget", "h1")
    assert refused.code == 2
    assert "--gone-for-good" in refused.err
    assert daemons.center.forgotten == []
    assert arraylift("host", "forget", "h1", "--gone-for-good").code == 0
    assert daemons.center.forgotten == ["h1"]
