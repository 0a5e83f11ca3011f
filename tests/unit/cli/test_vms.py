"""VMs, their files and the registry by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from arraylift import errors
from arraylift.sizes import MIB
from arraylift.v1 import backup_pb2, virtual_center_pb2, vm_pb2
from tests.unit.cli.conftest import Arraylift, Daemons
from tests.unit.cli.fakes import hex_id


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * MIB)
    return path


def add_vm(daemons: Daemons, name: str = "web") -> str:
    vm_id = hex_id(len(daemons.center.vms) + 1)
    daemons.center.vms[name] = vm_pb2.Vm(vm_id=vm_id, config=vm_pb2.VmConfig(name=name))
    return vm_id


def test_a_vm_is_made_of_disk_files(arraylift: Arraylift, daemons: Daemons, disk: Path) -> None:
    words = ("--memory", "2G", "--cpus", 3, "--tag", "tier=gold", "--tag", "a=b=c", "--host", "h7", "--start")
    more = ("--firmware", "uefi", "--network", "lan", "--network", "dmz")
    made = arraylift("vm", "create", "web", "--disk", disk, "--disk", disk, *words, *more, "--json").document
    asked = daemons.center.provisioned[0]
    assert (asked.vm_id, asked.host) == (made["vm_id"], "h7")
    assert (asked.config.memory_bytes, asked.config.cpus) == (2 << 30, 3)
    assert dict(asked.config.tags) == {"tier": "gold", "a": "b=c"}
    assert asked.config.firmware == "uefi"
    assert [each.network for each in asked.config.networks] == ["lan", "dmz"]
    assert [each.name for each in asked.config.disks] == ["disk0", "disk1"]
    for each in asked.config.disks:
        assert (each.array, each.array_address, each.size_bytes) == ("a7", daemons.array_address, MIB)
        assert daemons.volumes.volumes[each.volume_name] == b"d" * MIB
    assert set(daemons.volumes.volumes) == {"web-disk0", "web-disk1"}
    assert [each.power for each in daemons.center.powered] == [vm_pb2.POWER_STATE_ON]
    assert made["power"] == "power_state_on"


def test_another_array_is_named_as_it_is_registered(
    arraylift: Arraylift, bare: Arraylift, daemons: Daemons, disk: Path
) -> None:
    where = ["--pki", daemons.pki, "--vcenter", daemons.vcenter_address, "--server", daemons.server_address]
    daemons.server.peers[backup_pb2.PEER_KIND_ARRAY, "second"] = daemons.array_address
    assert bare("vm", "create", "one", "--disk", disk, *where, "--array", "second").code == 0
    assert bare("vm", "create", "two", "--disk", disk, *where, "--array", daemons.array_address).code == 0
    assert [each.config.disks[0].array for each in daemons.center.provisioned] == ["a7", "a7"]
    ended = bare("vm", "create", "three", "--disk", disk, *where, "--array", "third")
    assert ended.code == 3
    assert "knows no array third; add it: `arraylift array add third ADDRESS`" in ended.err


def test_a_vm_that_cannot_be_made_leaves_no_volume(
    arraylift: Arraylift, daemons: Daemons, disk: Path
) -> None:
    daemons.volumes.volumes["other"] = bytearray(512)
    daemons.center.fail_with = errors.Overloaded("no host has room")
    assert arraylift("vm", "create", "web", "--disk", disk, "--disk", disk).code == 7
    assert set(daemons.volumes.volumes) == {"other"}
    gone = daemons.center.removed[0]
    assert (gone.vm_id, gone.keep_volumes, gone.missing_ok) == (
        daemons.center.provisioned[0].vm_id,
        True,
        True,
    )


def test_a_volume_in_the_way_is_not_removed(arraylift: Arraylift, daemons: Daemons, disk: Path) -> None:
    daemons.volumes.volumes["web-disk1"] = bytearray(b"precious")
    assert arraylift("vm", "create", "web", "--disk", disk, "--disk", disk).code == 4
    assert daemons.volumes.volumes == {"web-disk1": b"precious"}
    assert daemons.center.provisioned == daemons.center.removed == []


def test_volumes_stay_where_a_vm_may_have_them(arraylift: Arraylift, daemons: Daemons, disk: Path) -> None:
    daemons.center.fail_with = errors.PeerUnavailable("the host went away")
    daemons.center.fail_removal_with = errors.PeerUnavailable("it is still away")
    ended = arraylift("vm", "create", "web", "--disk", disk)
    assert ended.code == 8
    assert "the host went away; these volumes are left on array" in ended.err
    assert "web-disk0" in ended.err
    assert set(daemons.volumes.volumes) == {"web-disk0"}


def test_a_taken_name_is_seen_before_anything_is_read(
    arraylift: Arraylift, daemons: Daemons, disk: Path
) -> None:
    add_vm(daemons)
    assert arraylift("vm", "create", "web", "--disk", disk).code == 4
    assert daemons.volumes.received == []


@pytest.mark.parametrize("words", [["--tag", "gold"], ["--memory", "much"], ["--cpus", "0"]])
def test_wrong_words_are_2_and_make_nothing(
    arraylift: Arraylift, daemons: Daemons, disk: Path, words: list[str]
) -> None:
    assert arraylift("vm", "create", "web", "--disk", disk, *words).code == 2
    assert daemons.volumes.volumes == {}


def test_vms_are_found_by_name_and_id(arraylift: Arraylift, daemons: Daemons) -> None:
    vm_id = add_vm(daemons)
    assert "web" in arraylift("vm", "ls").out
    for reference in ("web", vm_id):
        assert arraylift("vm", "show", reference, "--json").document["vm"]["vm_id"] == vm_id
    ended = arraylift("vm", "show", "nobody")
    assert (ended.code, ended.err) == (3, "arraylift: error: there is no VM nobody; see `arraylift vm ls`\n")
    assert arraylift("vm", "start", "web").code == 0
    assert arraylift("vm", "stop", "web", "--grace", 7, "--force").code == 0
    stop = daemons.center.powered[-1]
    assert (stop.power, stop.grace_seconds, stop.force) == (vm_pb2.POWER_STATE_OFF, 7, True)
    assert arraylift("vm", "rm", "web", "--keep-volumes").code == 0
    assert daemons.center.removed[0].keep_volumes
    assert arraylift("vm", "rm", "web").code == 3
    assert arraylift("vm", "rm", "web", "--missing-ok").code == 0


def test_a_name_may_look_like_an_id(arraylift: Arraylift, daemons: Daemons) -> None:
    vm_id = add_vm(daemons, hex_id(99))
    assert arraylift("vm", "show", hex_id(99), "--json").document["vm"]["vm_id"] == vm_id


def test_hosts_are_listed_as_the_virtual_center_says(arraylift: Arraylift, daemons: Daemons) -> None:
    daemons.center.host.state = virtual_center_pb2.HOST_STATE_LOST
    assert arraylift("host", "ls", "--json").document[0]["state"] == "host_state_lost"
    assert "lost" in arraylift("host", "ls").out


def test_guest_files_go_in_and_come_out(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    add_vm(daemons)
    source = tmp_path / "hosts"
    source.write_bytes(b"x" * 3_000_001)
    source.chmod(0o640)
    assert arraylift("vm", "files", "put", "web", source, "/etc/hosts", "--disk", "disk1").code == 0
    assert daemons.host.files["disk1", "/etc/hosts"] == (0o640, b"x" * 3_000_001)
    back = tmp_path / "back"
    words = ("vm", "files", "get", "web", "/etc/hosts", back, "--disk", "disk1")
    assert arraylift(*words).code == 0
    assert back.read_bytes() == source.read_bytes()
    assert (back.stat().st_mode & 0o7777, back.stat().st_mtime_ns) == (0o640, 10**18)
    assert arraylift(*words).code == 4
    assert arraylift(*words, "--force").code == 0
    listed = arraylift("vm", "files", "ls", "web", "/etc", "--disk", "disk1")
    assert "-rw-r-----" in listed.out
    assert arraylift("vm", "files", "rm", "web", "/etc/hosts", "--disk", "disk1").code == 0
    assert arraylift("vm", "files", "rm", "web", "/etc/hosts", "--disk", "disk1").code == 3


def test_an_empty_file_is_a_file(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    add_vm(daemons)
    (tmp_path / "empty").touch()
    assert arraylift("vm", "files", "put", "web", tmp_path / "empty", "/empty").code == 0
    assert daemons.host.files["", "/empty"][1] == b""
    into = tmp_path / "into"
    into.mkdir()
    assert arraylift("vm", "files", "get", "web", "/empty", into).code == 0
    assert (into / "empty").read_bytes() == b""


def test_a_cut_file_does_not_appear(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    add_vm(daemons)
    daemons.host.files["", "/f"] = (0o644, b"x" * 5000)
    daemons.host.cut_reads = True
    ended = arraylift("vm", "files", "get", "web", "/f", tmp_path / "f")
    assert ended.code == 10
    assert "answered 1,000 of 5,000 bytes" in ended.err
    assert list(tmp_path.glob("*f*")) == []


def test_what_is_no_file_is_not_put(arraylift: Arraylift, daemons: Daemons, tmp_path: Path) -> None:
    assert arraylift("vm", "files", "put", "web", tmp_path, "/d").code == 2
    assert arraylift("vm", "files", "put", "web", tmp_path / "nothing", "/d").code == 3


@pytest.mark.parametrize("noun", ["array", "target"])
def test_the_registry(arraylift: Arraylift, daemons: Daemons, noun: str) -> None:
    kind = backup_pb2.PeerKind.Value(f"PEER_KIND_{noun.upper()}")
    assert arraylift(noun, "add", "n2", "n2.example.org:7400").code == 0
    assert daemons.server.peers == {(kind, "n2"): "n2.example.org:7400"}
    assert "n2.example.org:7400" in arraylift(noun, "ls").out
    assert "asleep" in arraylift(noun, "ls", "--probe").out
    assert arraylift(noun, "ls", "--json").document[0]["name"] == "n2"
    assert arraylift(noun, "add", "n3", "nowhere").code == 2
    assert arraylift(noun, "rm", "n2").code == 0
    assert arraylift(noun, "rm", "n2").code == 3
    assert daemons.server.peers == {}


def test_a_host_is_registered_for_direct_mode(arraylift: Arraylift, daemons: Daemons) -> None:
    assert arraylift("host", "add", "h8", "h8.example.org:7402").code == 0
    assert daemons.server.peers == {(backup_pb2.PEER_KIND_HOST, "h8"): "h8.example.org:7402"}


def test_a_volume_that_is_a_disk_of_a_vm_is_not_removed_by_mistake(
    arraylift: Arraylift, bare: Arraylift, daemons: Daemons, disk: Path, tmp_path: Path
) -> None:
    arraylift("vm", "create", "web", "--disk", disk)
    ended = arraylift("array", "volumes", "rm", "web-disk0")
    assert ended.code == 5
    assert "volume web-disk0 is disk0 of VM web; `arraylift vm rm web` removes both" in ended.err
    assert "web-disk0" in daemons.volumes.volumes
    words = ["array", "volumes", "rm", "web-disk0", "--pki", daemons.pki, "--array", daemons.array_address]
    away = bare(*words, "--vcenter", "127.0.0.1:1")
    assert away.code == 5
    assert "whether a VM has volume web-disk0 cannot be said" in away.err
    assert "--force" in away.err
    assert "web-disk0" in daemons.volumes.volumes
    assert arraylift("array", "volumes", "rm", "web-disk0", "--force").code == 0
    assert "web-disk0" not in daemons.volumes.volumes
    arraylift("vm", "create", "db", "--disk", disk)
    words[3] = "db-disk0"
    assert bare(*words).code == 0, "without a virtual center there are no VMs to ask for"


def test_what_a_running_vm_has_is_not_changed_under_it(
    arraylift: Arraylift, daemons: Daemons, disk: Path, tmp_path: Path
) -> None:
    """Not even where the array cannot see it: a VM whose connection is cut just now, or that has none."""
    arraylift("vm", "create", "web", "--disk", disk, "--start")
    assert [vm.power for vm in daemons.center.vms.values()] == [vm_pb2.POWER_STATE_ON]
    other = tmp_path / "other.img"
    other.write_bytes(b"o" * MIB)
    volumes, name = ("array", "volumes"), "web-disk0"
    for words in (
        ("write", name, other),
        ("rollback", name, f"{name}@monday"),
        ("resize", name, "512K", "--shrink"),
    ):
        ended = arraylift(*volumes, *words)
        assert ended.code == 5
        assert f"volume {name} is disk0 of VM web, which is not off; `arraylift vm stop web`" in ended.err
    assert daemons.volumes.volumes[name] == b"d" * MIB
    assert arraylift(*volumes, "write", name, other, "--force").code == 0
    daemons.center.vms["web"].power = vm_pb2.POWER_STATE_OFF
    assert arraylift(*volumes, "write", name, disk).code == 0
    assert daemons.volumes.volumes[name] == b"d" * MIB


def test_names_are_told_as_what_they_are(arraylift: Arraylift, daemons: Daemons, disk: Path) -> None:
    ended = arraylift("vm", "create", "a/b", "--disk", disk)
    assert ended.code == 2
    assert "a VM name 'a/b'" in ended.err
    assert daemons.volumes.volumes == {}
