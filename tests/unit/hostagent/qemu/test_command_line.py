"""The guest's machine on a command line: what people chose is never an option, places follow from the VM."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.ids import VmId
from arraylift.nbd.uri import parse_uri
from arraylift.sizes import MIB
from arraylift.vm.types import DISKS_MAX, Disk, NetworkInterface, VmConfig
from hostagent.qemu.accelerator import Accelerator
from hostagent.qemu.command_line import (
    SERIAL_CHARS_MAX,
    Firmware,
    Machine,
    bus_and_slot,
    command_line,
    disk_device,
    disk_serial,
)
from hostagent.qemu.exports import block_node, export_name, node_name, placed
from hostagent.qemu.run_record import PlacedDisk

VM = VmId("0" * 31 + "1")
URI = replace(parse_uri("nbds://array.example:10809/e"), tls_name="example.at.array.arraylift.internal")
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


def machine(config: VmConfig, **changes: object) -> Machine:
    disks = [(placed("host1", VM, disk, place), URI) for place, disk in enumerate(config.disks)]
    base = Machine(
        program="qemu",
        accelerator=Accelerator("tcg", sandbox=True),
        cpu="qemu64",
        config=config,
        disks=disks,
        backends=["user,restrict=on"] * len(config.networks),
        monitor=5,
        agent=6,
        console=7,
        tls_path="/proc/self/fd/8",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def config(*disks: str, name: str = "web1", networks: int = 1) -> VmConfig:
    return VmConfig(
        name=name,
        uuid="00000000-0000-4000-8000-000000000001",
        cpus=2,
        memory_bytes=256 * MIB,
        disks=tuple(Disk(disk, "a1", "a:1", f"volume of {disk}", MIB) for disk in disks),
        networks=tuple(NetworkInterface(f"52:54:00:00:00:{n:02x}", "lan") for n in range(networks)),
        firmware="bios",
    )


def options(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


@given(name=texts, disk=texts)
def test_names_are_values_and_never_options(name: str, disk: str) -> None:
    plain = command_line(machine(config("root")))
    argv = command_line(machine(config(disk, name=name)))
    assert len(argv) == len(plain)
    [shown] = options(argv, "-name")
    # QEMU ends a value at a comma that stands alone.
    assert shown.replace(",,", "\0").split(",")[0].replace("\0", ",") == f"guest={name}"
    assert shown.replace(",,", "\0").count(",") == 1
    differing = [(one, other) for one, other in zip(argv, plain, strict=True) if one != other]
    for one, _ in differing:
        assert one == shown or json.loads(one)["driver"] in {"nbd", "virtio-blk-pci"}


def test_every_place_has_an_address_of_its_own() -> None:
    seen = {bus_and_slot(place) for place in range(DISKS_MAX)}
    assert len(seen) == DISKS_MAX
    assert all(1 <= slot <= 31 for _, slot in seen)
    argv = command_line(machine(config(*map(str, range(DISKS_MAX)), networks=16)))
    root = [
        json.loads(one)["addr"] for one in options(argv, "-device") if one.startswith("{") and "netdev" in one
    ]
    root += [f"{slot:#x}" for bus, slot in seen if bus == "pci.0"]
    assert len(root) == len(set(root)) == 16 + 8
    buses = {bus for bus, _ in seen} - {"pci.0"}
    assert all(any(f"id={bus}," in one for one in options(argv, "-device")) for bus in buses)


def test_a_disk_is_a_node_of_its_array_and_a_failure_of_it_stops_the_guest() -> None:
    disk = placed("host1", VM, Disk("root", "a1", "a:1", "v", MIB), 0)
    node = block_node(disk, URI)
    assert node["server"] == {"type": "inet", "host": "array.example", "port": "10809"}
    assert node["tls-hostname"] == URI.tls_name
    assert node["reconnect-delay"]
    assert len(str(node["node-name"])) <= 31
    device = disk_device(disk, boot_index=1)
    assert device["werror"] == device["rerror"] == "stop"
    assert "bootindex" not in disk_device(disk)
    unix = block_node(disk, parse_uri("nbd+unix:///e?socket=/run/a.sock"))
    assert unix["server"] == {"type": "unix", "path": "/run/a.sock"}
    assert "tls-creds" not in unix


def test_firmware_and_what_comes_in() -> None:
    argv = command_line(machine(config("root"), firmware=Firmware("/ovmf/code.fd", 9), incoming=True))
    assert "pflash0=firmware-code,pflash1=firmware-variables" in options(argv, "-machine")[0]
    assert "set=2,fd=9" in options(argv, "-add-fd")
    assert options(argv, "-incoming") == ["defer"]
    assert "-S" in argv
    plain = command_line(machine(config("root"), accelerator=Accelerator("kvm", sandbox=False)))
    assert "-sandbox" not in plain
    assert "-incoming" not in plain
    assert "pflash" not in options(plain, "-machine")[0]


@given(st.lists(texts, min_size=2, max_size=2, unique=True))
def test_serials_fit_and_tell_disks_apart(names: list[str]) -> None:
    one, other = map(disk_serial, names)
    assert one != other
    assert len(one) <= SERIAL_CHARS_MAX
    assert one.isascii()


def test_exports_are_a_hosts_own() -> None:
    names = {export_name(host, VM, volume) for host in ("h1", "h2") for volume in ("a", "b")}
    assert len(names) == len({node_name(name) for name in names}) == 4
    assert len(export_name("h" * 63, VM, "v" * 255)) <= 255


@pytest.mark.parametrize("size", [1, 256 * MIB, 256 * MIB + 1])
def test_a_guest_has_no_less_memory_than_it_was_given(size: int) -> None:
    argv = command_line(machine(replace(config("root"), memory_bytes=size)))
    [told] = options(argv, "-m")
    assert int(told.removesuffix("M")) * MIB >= size


def test_placed_disks_know_their_disk() -> None:
    disk = Disk("root", "a1", "a:1", "v", MIB)
    made = placed("host1", VM, disk, 3)
    assert made == PlacedDisk("root", "a:1", "v", export_name("host1", VM, "v"), 3)
    assert made.serves(disk)
    assert not made.serves(replace(disk, volume_name="w"))
