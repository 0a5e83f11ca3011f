"""The domain XML of a VM of ours, and of one disk of it. Pure.

Source: https://libvirt.org/formatdomain.html
Why: docs/decisions/0096-who-owns-an-adopted-guest.md
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from arraylift.errors import InvalidRequest
from arraylift.ids import VmId
from arraylift.nbd.uri import NbdUri
from arraylift.vm.types import VmConfig
from hostagent.libvirt.domain_xml import NAMESPACE

RECONNECT_SECONDS = 60
"""How long a guest's requests wait for an array that is away."""

SERIAL_CHARS_MAX = 20
"""Of a virtio disk: QEMU cuts off the rest."""

AGENT_PORT = "org.qemu.guest_agent.0"

ET.register_namespace("arraylift", NAMESPACE)

_MACHINE = re.compile(r"pc|q35|pc-(i440fx|q35)-[0-9]{1,2}\.[0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk of ours as QEMU reaches it. ``tls_name``: what the array's certificate must say."""

    target: str
    serial: str
    uri: NbdUri
    tls_name: str = ""


def target_name(place: int) -> str:
    """vda, vdb, ..., vdz, vdaa."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"vd{letters}"


def disk_xml(disk: ServedDisk) -> str:
    """The device, as libvirt attaches it."""
    return ET.tostring(_disk(disk), encoding="unicode")


def detached_xml(target: str) -> str:
    """Enough of a device for libvirt to find it."""
    root = ET.Element("disk", type="network", device="disk")
    ET.SubElement(root, "source", protocol="nbd")
    ET.SubElement(root, "target", dev=target, bus="virtio")
    return ET.tostring(root, encoding="unicode")


def domain_xml(vm_id: VmId, config: VmConfig, disks: list[ServedDisk], *, kind: str, nvram: str) -> str:
    """The whole domain. ``kind``: kvm or qemu. ``nvram``: file of the firmware's variables, or "".

    Raises InvalidRequest: libvirt allows no such name.
    """
    root = ET.Element("domain", type=kind)
    if "\n" in config.name or config.name != config.name.strip():
        raise InvalidRequest(f"libvirt takes no guest of the name {config.name!r}")
    _text(root, "name", config.name)
    _text(root, "uuid", config.uuid)
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{NAMESPACE}}}vm", id=vm_id)
    _text(root, "memory", str(-(-config.memory_bytes // 1024))).set("unit", "KiB")
    _text(root, "vcpu", str(config.cpus))
    efi = config.firmware == "uefi"
    system = ET.SubElement(root, "os", {"firmware": "efi"} if efi else {})
    machine = dict(config.tags).get("machine", "")
    if not _MACHINE.fullmatch(machine):
        machine = "q35" if efi else "pc"
    _text(system, "type", "hvm").attrib.update(arch="x86_64", machine=machine)
    if efi:
        firmware = ET.SubElement(system, "firmware")
        ET.SubElement(firmware, "feature", enabled="no", name="secure-boot")
        if nvram:
            _text(system, "nvram", nvram)
    features = ET.SubElement(root, "features")
    for feature in ("acpi", "apic"):
        ET.SubElement(features, feature)
    ET.SubElement(root, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", action)
    devices = ET.SubElement(root, "devices")
    for disk in disks:
        devices.append(_disk(disk))
    for network in config.networks:
        devices.append(_interface(network.network, network.mac))
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=AGENT_PORT)
    ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(
        ET.SubElement(devices, "rng", model="virtio"), "backend", model="random"
    ).text = "/dev/urandom"
    return ET.tostring(root, encoding="unicode")


def _disk(disk: ServedDisk) -> ET.Element:
    root = ET.Element("disk", type="network", device="disk")
    ET.SubElement(root, "driver", name="qemu", type="raw", discard="unmap")
    uri = disk.uri
    source = ET.SubElement(root, "source", protocol="nbd", name=uri.export)
    if uri.tls:
        source.set("tls", "yes")
        source.set("tlsHostname", disk.tls_name or uri.tls_name)
    if uri.socket_path:
        ET.SubElement(source, "host", transport="unix", socket=uri.socket_path)
    else:
        ET.SubElement(source, "host", name=uri.host, port=str(uri.port))
    ET.SubElement(source, "reconnect", delay=str(RECONNECT_SECONDS))
    ET.SubElement(root, "target", dev=disk.target, bus="virtio")
    ET.SubElement(root, "serial").text = disk.serial
    return root


def _interface(network: str, mac: str) -> ET.Element:
    kind, _, name = network.rpartition(":")
    if kind == "bridge":
        root = ET.Element("interface", type="bridge")
        ET.SubElement(root, "source", bridge=name)
    elif network == "user":
        root = ET.Element("interface", type="user")
    else:
        root = ET.Element("interface", type="network")
        ET.SubElement(root, "source", network=network)
    if mac:
        ET.SubElement(root, "mac", address=mac)
    ET.SubElement(root, "model", type="virtio")
    return root


def _text(parent: ET.Element, tag: str, text: str) -> ET.Element:
    element = ET.SubElement(parent, tag)
    element.text = text
    return element
