"""The guest's machine, as QEMU's command line says it. Pure.

A machine of kind ``pc``: what a guest sees of it follows from the VM's configuration and the places of its
disks, so that two hosts build the same. Its PCI slots:

| Slot | Device |
|---|---|
| 2, 3, 4 | display, virtio-serial (guest agent), random numbers |
| 5, 6, 7 | bridges, for disks of place 8 and above |
| 8 .. 23 | network interfaces, in their order |
| 24 .. 31 | disks of place 0 .. 7 |

Invariants:
  C1 nothing that people chose (names, tags) can be read as an option: it goes in as JSON, or with its
     commas doubled.
  C2 QEMU is given descriptors, not paths, for everything that it may write.
Callers: launch, any thread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from arraylift.nbd.uri import NbdUri
from arraylift.sizes import MIB
from arraylift.vm.types import DISKS_MAX, NETWORKS_MAX, NetworkInterface, VmConfig
from hostagent.qemu.accelerator import SANDBOX, Accelerator
from hostagent.qemu.exports import TLS_OBJECT, TLS_SERVER_OBJECT, block_node, node_name
from hostagent.qemu.run_record import PlacedDisk

NETWORK_SLOT, DISK_SLOT, BRIDGE_SLOT = 8, 24, 5
ROOT_DISKS = 8
BRIDGES, BRIDGE_DISKS = 3, 19
SERIAL_CHARS_MAX = 20
AGENT_PORT = "org.qemu.guest_agent.0"

assert NETWORK_SLOT + NETWORKS_MAX <= DISK_SLOT
assert ROOT_DISKS + BRIDGES * BRIDGE_DISKS >= DISKS_MAX


@dataclass(frozen=True, slots=True)
class Firmware:
    """OVMF: its code, by path, and the descriptor of its variables."""

    code_path: str
    variables: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that QEMU is told at its start. Numbers are descriptors that it inherits (C2).

    ``backends``: of each network interface, as ``-netdev`` takes it, without the id.
    """

    program: str
    accelerator: Accelerator
    cpu: str
    config: VmConfig
    disks: Sequence[tuple[PlacedDisk, NbdUri]]
    backends: Sequence[str]
    monitor: int
    agent: int
    console: int
    tls_path: str
    firmware: Firmware | None = None
    incoming: bool = False


def command_line(machine: Machine) -> list[str]:
    """Return the whole of it. The guest stands still until it is told to run (``-S``)."""
    config = machine.config
    argv = [machine.program, "-no-user-config", "-nodefaults", "-S"]
    argv += ["-name", f"guest={_escaped(config.name)},debug-threads=on", "-uuid", config.uuid]
    argv += ["-machine", _kind(machine), "-cpu", machine.cpu]
    argv += ["-m", f"{max(1, -(-config.memory_bytes // MIB))}M", "-smp", str(config.cpus)]
    argv += [
        "-rtc",
        "base=utc",
        "-boot",
        "menu=off",
        "-display",
        "none",
        "-vga",
        "none",
        "-msg",
        "timestamp=on",
    ]
    if machine.accelerator.sandbox:
        argv += ["-sandbox", SANDBOX]
    argv += ["-chardev", f"socket,id=monitor,fd={machine.monitor},server=on,wait=off"]
    argv += ["-mon", "chardev=monitor,mode=control"]
    argv += ["-add-fd", f"set=1,fd={machine.console}"]
    argv += ["-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console"]
    argv += ["-object", json.dumps(tls_object(TLS_OBJECT, machine.tls_path, server=False))]
    if machine.incoming:
        argv += ["-object", json.dumps(tls_object(TLS_SERVER_OBJECT, machine.tls_path, server=True))]
    argv += ["-device", "VGA,id=display,addr=2"]
    argv += ["-device", "virtio-serial-pci,id=serial,addr=3"]
    argv += ["-chardev", f"socket,id=agent,fd={machine.agent},server=on,wait=off"]
    argv += ["-device", f"virtserialport,bus=serial.0,nr=1,chardev=agent,id=agent-port,name={AGENT_PORT}"]
    argv += ["-object", "rng-random,id=random,filename=/dev/urandom"]
    argv += ["-device", "virtio-rng-pci,rng=random,id=random-device,addr=4"]
    for index in range(BRIDGES):
        argv += ["-device", f"pci-bridge,id=bridge{index},chassis_nr={index + 1},addr={BRIDGE_SLOT + index}"]
    if machine.firmware is not None:
        argv += _firmware(machine.firmware)
    for index, (network, backend) in enumerate(zip(config.networks, machine.backends, strict=True)):
        argv += _network(index, network, backend)
    for disk, uri in machine.disks:
        argv += ["-blockdev", json.dumps(block_node(disk, uri))]
        argv += ["-device", json.dumps(disk_device(disk, boot_index=disk.place + 1))]
    return [*argv, "-incoming", "defer"] if machine.incoming else argv


def _kind(machine: Machine) -> str:
    kind = f"pc,accel={machine.accelerator.name},usb=off,dump-guest-core=off"
    return kind + (",pflash0=firmware-code,pflash1=firmware-variables" if machine.firmware else "")


def _firmware(firmware: Firmware) -> list[str]:
    code = {"driver": "file", "filename": firmware.code_path, "node-name": "firmware-code", "read-only": True}
    variables = {
        "driver": "file",
        "filename": "/dev/fdset/2",
        "node-name": "firmware-variables",
        "locking": "off",  # the VM's own lock is held
    }
    return [
        *("-add-fd", f"set=2,fd={firmware.variables}"),
        *("-blockdev", json.dumps(code)),
        *("-blockdev", json.dumps(variables)),
    ]


def _network(index: int, network: NetworkInterface, backend: str) -> list[str]:
    device = {
        "driver": "virtio-net-pci",
        "id": f"card{index}",
        "netdev": f"network{index}",
        "mac": network.mac,
        "addr": hex(NETWORK_SLOT + index),
        "romfile": "",  # guests start from their disks
    }
    return ["-netdev", f"{backend},id=network{index}", "-device", json.dumps(device)]


def tls_object(name: str, folder: str, *, server: bool) -> dict[str, object]:
    """Credentials as ``object-add`` takes them; the other side is to show a certificate of our CA."""
    return {
        "qom-type": "tls-creds-x509",
        "id": name,
        "dir": folder,
        "endpoint": "server" if server else "client",
        "verify-peer": True,
    }


def device_id(export: str) -> str:
    """QEMU's name for the device of a disk."""
    return f"{node_name(export)}-device"


def disk_device(disk: PlacedDisk, *, boot_index: int = 0) -> dict[str, object]:
    """The device as ``device_add`` takes it. A request that fails stops the guest: it sees no error, and
    goes on when the array is back."""
    bus, slot = bus_and_slot(disk.place)
    device: dict[str, object] = {
        "driver": "virtio-blk-pci",
        "id": device_id(disk.export),
        "drive": node_name(disk.export),
        "serial": disk_serial(disk.name),
        "bus": bus,
        "addr": hex(slot),
        "werror": "stop",
        "rerror": "stop",
    }
    return device | {"bootindex": boot_index} if boot_index else device


def disk_serial(name: str) -> str:
    """The serial number that the guest sees: the disk's name, or its beginning and a digest where that
    does not fit or is not ASCII. Guests find disks by it, also in /dev/disk/by-id."""
    if len(name) <= SERIAL_CHARS_MAX and name.isascii():
        return name
    plain = "".join(char if char.isascii() else "_" for char in name)
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: SERIAL_CHARS_MAX - 9]}-{digest}"


def bus_and_slot(place: int) -> tuple[str, int]:
    """Where in the guest's machine the disk of a place sits."""
    assert 0 <= place < DISKS_MAX
    if place < ROOT_DISKS:
        return "pci.0", DISK_SLOT + place
    bridge, slot = divmod(place - ROOT_DISKS, BRIDGE_DISKS)
    return f"bridge{bridge}", slot + 1


def _escaped(text: str) -> str:
    return text.replace(",", ",,")
