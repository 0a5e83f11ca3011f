"""A guest's domain XML as a VM of ours. Pure.

Invariants:
  Y1 a disk's format is the one that the domain names, never one that its content suggests.
  Y2 what cannot be backed up is left out and told of: ``left_out``, and the tag ``left-out``.
  Y3 names keep the contract (``arraylift.ids.check_name``) whatever libvirt allows.
Source: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from arraylift.sizes import KIB
from arraylift.vm.types import DISKS_MAX, FOREIGN_BYTES_MAX, NETWORKS_MAX, Disk, NetworkInterface, VmConfig
from hostagent.libvirt.limited_xml import attribute, parse, text_of

NAMESPACE = "https://arraylift.dev/libvirt/1"
"""Of the element that marks a domain as ours."""

NAME_BYTES_MAX = 255
NOTE_BYTES_MAX = 250
LEFT_OUT = "left-out"

_UNITS = {"b": 1, "bytes": 1, "k": KIB, "kib": KIB, "m": KIB**2, "mib": KIB**2, "g": KIB**3, "gib": KIB**3}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "t": KIB**4, "tib": KIB**4}
_LOCAL = {"file": "file", "block": "dev"}


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """``path``: of a file or device of this host, else "". ``where``: for people. ``export``: of NBD."""

    target: str
    format: str
    path: str
    where: str
    export: str = ""
    serial: str = ""

    @property
    def tracks(self) -> bool:
        """Its format can keep dirty bitmaps."""
        return self.format == "qcow2"


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """``made_as``: the VM id under which this host defined it; "": the admin did.

    ``nvram``: file of its variables. ``targets``: of every drive, those that are left out too."""

    uuid: str
    name: str
    cpus: int
    memory_bytes: int
    firmware: str
    machine: str
    networks: tuple[NetworkInterface, ...]
    disks: tuple[DomainDisk, ...]
    left_out: tuple[str, ...]
    made_as: str
    nvram: str
    targets: tuple[str, ...]

    def config(self, name: str, disks: tuple[Disk, ...]) -> VmConfig:
        """As a VM of that name with these disks."""
        tags = {"machine": self.machine} if self.machine else {}
        if self.left_out:
            tags[LEFT_OUT] = _cut("; ".join(self.left_out), NOTE_BYTES_MAX)
        return VmConfig(
            name=name,
            uuid=self.uuid,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            disks=disks,
            networks=self.networks,
            tags=tuple(sorted(tags.items())),
            firmware=self.firmware,
        )


def facts(text: str, *, what: str) -> DomainFacts:
    """Read a domain. Raises Corruption."""
    root = parse(text, what=what)
    disks: list[DomainDisk] = []
    left_out: list[str] = []
    for element in root.iterfind("devices/disk"):
        target = attribute(element, "target", "dev")
        why = _unfit(element) if target and target == plain_name(target) else "odd target"
        if why is None and len(disks) < DISKS_MAX:
            disks.append(_disk(element, target))
        else:
            left_out.append(f"{plain_name(target or '?')}: {why or 'too many disks'}")
    for element in root.iterfind("devices/hostdev"):
        left_out.append(f"device of the host: {plain_name(element.get('type', ''))}")
    loader = attribute(root, "os/loader", "type")
    efi = attribute(root, "os", "firmware") == "efi" or loader == "pflash"
    return DomainFacts(
        uuid=text_of(root, "uuid").lower(),
        name=text_of(root, "name"),
        cpus=_number(text_of(root, "vcpu"), 1),
        memory_bytes=_memory(root),
        firmware="uefi" if efi else "bios",
        machine=plain_name(attribute(root, "os/type", "machine")),
        networks=_networks(root),
        disks=tuple(disks),
        left_out=tuple(left_out),
        made_as=attribute(root, f"metadata/{{{NAMESPACE}}}vm", "id"),
        nvram=text_of(root, "os/nvram"),
        targets=tuple(element.get("dev", "") for element in root.iterfind("devices/disk/target")),
    )


def plain_name(text: str) -> str:
    """``text`` as a name that the contract allows (Y3); "" stays empty."""
    kept = "".join(char if char.isprintable() and char != "/" else "_" for char in text)
    kept = kept.encode("utf-8", "replace").decode()
    plain = _cut(kept.strip(), NAME_BYTES_MAX).strip()  # a cut may end behind a space
    return "_" * len(plain) if plain in {".", ".."} else plain


def _unfit(element: ET.Element) -> str | None:
    """Why a disk is left out (Y2); None: it is not."""
    device = element.get("device", "disk")
    if device != "disk":
        return {"cdrom": "cdrom", "floppy": "floppy", "lun": "passed through"}.get(device, "no disk")
    if element.find("readonly") is not None:
        return "read-only"
    if element.find("shareable") is not None:
        return "shared with other guests"
    if element.find("transient") is not None:
        return "transient"
    source = element.find("source")
    if source is None or not _where(element.get("type", ""), source):
        return "empty drive"
    kind = element.get("type", "")
    if kind in {"nvme", "vhostuser", "vhostvdpa"}:
        return f"not read by QEMU ({kind})"
    if attribute(element, "driver", "type") not in {"raw", "qcow2"}:
        return f"format {plain_name(attribute(element, 'driver', 'type')) or 'not named'}"  # Y1
    return None


def _disk(element: ET.Element, target: str) -> DomainDisk:
    kind, source = element.get("type", ""), element.find("source")
    assert source is not None, "a disk without a source is left out"
    export = source.get("name", "") if kind == "network" and source.get("protocol") == "nbd" else ""
    return DomainDisk(
        target=target,
        format=attribute(element, "driver", "type"),
        path=source.get(_LOCAL[kind], "") if kind in _LOCAL else "",
        where=_cut(_where(kind, source), FOREIGN_BYTES_MAX),
        export=export,
        serial=text_of(element, "serial"),
    )


def _where(kind: str, source: ET.Element) -> str:
    if kind in _LOCAL:
        return source.get(_LOCAL[kind], "")
    if kind == "network":
        host = source.find("host")
        at = "" if host is None else host.get("socket") or f"{host.get('name', '')}:{host.get('port', '')}"
        return f"{source.get('protocol', '?')}://{at}/{source.get('name', '')}"
    if kind == "volume":
        return f"volume://{source.get('pool', '')}/{source.get('volume', '')}"
    return kind if kind in {"nvme", "vhostuser", "vhostvdpa"} else ""


def _networks(root: ET.Element) -> tuple[NetworkInterface, ...]:
    found = []
    for element in root.iterfind("devices/interface"):
        source = element.find("source")
        attributes = {} if source is None else source.attrib
        network = attributes.get("network", "") or element.get("type", "")
        if not attributes.get("network") and (bridge := attributes.get("bridge")):
            network = f"bridge:{bridge}"
        name = plain_name(network) or "unnamed"
        found.append(NetworkInterface(attribute(element, "mac", "address").lower(), name))
    return tuple(found[:NETWORKS_MAX])


def _memory(root: ET.Element) -> int:
    unit = attribute(root, "memory", "unit").lower() or "kib"
    return _number(text_of(root, "memory"), 1) * _UNITS.get(unit, KIB)


def _number(text: str, least: int) -> int:
    return max(least, int(text)) if text.isascii() and text.isdigit() and len(text) < 16 else least


def _cut(text: str, count_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:count_bytes].decode("utf-8", "ignore")
