"""What a VM may look like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arraylift.errors import InvalidRequest
from arraylift.vm.types import Disk, NetworkInterface
from hostagent import vm_rules
from tests.unit.hostagent.material import CONFIG

DISK, NETWORK = CONFIG.disks[0], CONFIG.networks[0]


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "../etc"},
        {"name": "a\0b"},
        {"name": "x" * 256},
        {"cpus": 0},
        {"cpus": 257},
        {"memory_bytes": 1},
        {"memory_bytes": 1 << 60},
        {"uuid": "no"},
        {"uuid": CONFIG.uuid.upper() + "A"},
        {"firmware": "coreboot"},
        {"disks": (DISK, DISK)},
        {"disks": (DISK, replace(DISK, name="other"))},
        {"disks": (replace(DISK, array_address="nowhere"),)},
        {"disks": (replace(DISK, array_address="a b:1"),)},
        {"disks": (replace(DISK, volume_name="", size_bytes=513),)},
        {"disks": (replace(DISK, volume_name="", size_bytes=0),)},
        {"disks": (replace(DISK, volume_name="a/b"),)},
        {"disks": tuple(replace(DISK, name=f"d{i}", volume_name=f"v{i}") for i in range(65))},
        {"disks": tuple(Disk(f"d{i}", "a", f"host:{7000 + i}", "", 512) for i in range(17))},
        {"networks": (replace(NETWORK, mac="53:54:00:00:00:01"),)},
        {"networks": (replace(NETWORK, mac="52:54:00:00:00"),)},
        {"networks": (NETWORK, NETWORK)},
        {"networks": (NetworkInterface("", ""),)},
        {"networks": tuple(NetworkInterface("", f"n{i}") for i in range(17))},
        {"tags": (("k", "v" * 2000),)},
        {"tags": tuple((f"k{i}", "") for i in range(65))},
    ],
)
def test_what_no_vm_can_be_is_refused(change: dict[str, object]) -> None:
    vm_rules.check_config(CONFIG)
    with pytest.raises(InvalidRequest):
        vm_rules.check_config(replace(CONFIG, **change))  # type: ignore[arg-type]


def test_what_is_left_empty_is_filled_in_and_the_rest_is_kept() -> None:
    empty = replace(
        CONFIG,
        uuid="",
        firmware="",
        disks=(replace(DISK, volume_name=""), replace(DISK, name="kept", volume_name="mine")),
        networks=(NetworkInterface("", "lan"), NETWORK),
    )
    vm_rules.check_config(empty)
    filled = vm_rules.complete_config(empty, lambda count: bytes(range(count)))
    assert filled.uuid == "00010203-0405-4607-8809-0a0b0c0d0e0f"
    assert [network.mac for network in filled.networks] == ["52:54:00:00:01:02", NETWORK.mac]
    assert [disk.volume_name for disk in filled.disks] == ["web1-root-000102030405", "mine"]
    vm_rules.check_config(filled)
    assert vm_rules.complete_config(filled, bytes) == filled


def test_made_volume_names_are_bounded_and_valid() -> None:
    name = vm_rules.made_volume_name("é" * 127, "d" * 255, b"123456")
    assert len(name.encode()) <= 255
    assert name.endswith("-313233343536")


@pytest.mark.parametrize(
    "path",
    ["", "a", "//..", "/./a", '/"', "/a\tb", "/a\0b", "/a\nb", "/" + "x" * 256, "/x" * 2049, "/\ud800"],
)
def test_guest_paths_that_could_be_anything_but_a_name_are_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        vm_rules.check_guest_path(path)


def test_guest_paths_are_normalized() -> None:
    assert vm_rules.check_guest_path("//a//b c/<3>/") == "/a/b c/<3>"
    assert vm_rules.check_guest_path("/") == "/"
