"""What is asked of libvirt for one export of a guest's disks, and how its parts are named. Pure.

Names tell whose they are, so that they are found after any crash without a record of ours:
checkpoint ``arraylift-<VM snapshot id>``, export ``<VM snapshot id>-<target>``, files
``<VM id>-<VM snapshot id>-<target>.<kind>``.
Invariants:
  W1 a state is named by its VM snapshot and its disk: pool = VM snapshot id, lineage = digest of guest and
     target. So the checkpoint that was made at a state follows from it, and no other's matches.
Source: https://libvirt.org/formatbackup.html, https://libvirt.org/formatcheckpoint.html
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from arraylift.ids import LineageId, PoolId, SourceState, VmId, VmSnapshotId
from hostagent.libvirt.limited_xml import parse

BITMAP = "arraylift"
"""Name of the bitmap beside an export."""

_CHECKPOINT = re.compile(r"arraylift-([0-9a-f]{32})")
_EXPORT = re.compile(r"([0-9a-f]{32})-.+")
_FILE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-.+\.scratch")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an export is served: ``socket_path``, or host and port, by TLS."""

    socket_path: str = ""
    host: str = ""
    port: int = 0

    def uri(self, export: str) -> str:
        """As a gateway is told."""
        if self.socket_path:
            return f"nbd+unix:///{export}?socket={self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbds://{host}:{self.port}/{export}"


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """``since``: the checkpoint from which its bitmap counts, or "". ``tracked``: the new one has it."""

    target: str
    export: str
    scratch: str
    since: str = ""
    tracked: bool = False


def checkpoint_name(vm_snapshot_id: VmSnapshotId) -> str:
    return f"arraylift-{vm_snapshot_id}"


def checkpoint_owner(name: str) -> VmSnapshotId | None:
    """The VM snapshot that made a checkpoint; None: it is not ours."""
    found = _CHECKPOINT.fullmatch(name)
    return VmSnapshotId(found[1]) if found else None


def export_name(vm_snapshot_id: VmSnapshotId, target: str) -> str:
    return f"{vm_snapshot_id}-{target}"


def file_name(vm_id: VmId, vm_snapshot_id: VmSnapshotId, target: str, kind: str) -> str:
    return f"{vm_id}-{vm_snapshot_id}-{target}.{kind}"


def file_owner(name: str) -> tuple[VmId, VmSnapshotId] | None:
    """VM and VM snapshot of a file in the folder of exports; None: it is not ours."""
    found = _FILE.fullmatch(name)
    return (VmId(found[1]), VmSnapshotId(found[2])) if found else None


def state_of(vm_snapshot_id: VmSnapshotId, uuid: str, target: str) -> SourceState:
    """W1."""
    lineage = hashlib.sha256(f"{uuid}\0{target}".encode()).hexdigest()[:32]
    return SourceState(PoolId(vm_snapshot_id), LineageId(lineage), 1)


def checkpoint_of(state: SourceState, uuid: str, target: str) -> str | None:
    """The checkpoint made at a state of this disk; None: the state is no state of it (W1)."""
    if state != state_of(VmSnapshotId(state.pool_id), uuid, target):
        return None
    return checkpoint_name(VmSnapshotId(state.pool_id))


def backup_xml(endpoint: Endpoint, disks: Sequence[ExportedDisk]) -> str:
    """A backup job that exports these disks and no others."""
    root = ET.Element("domainbackup", mode="pull")
    if endpoint.socket_path:
        ET.SubElement(root, "server", transport="unix", socket=endpoint.socket_path)
    else:
        ET.SubElement(root, "server", transport="tcp", tls="yes", name=endpoint.host, port=str(endpoint.port))
    wanted = ET.SubElement(root, "disks")
    for disk in disks:
        about = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.export}
        if disk.since:
            about |= {"backupmode": "incremental", "incremental": disk.since, "exportbitmap": BITMAP}
        else:
            about["backupmode"] = "full"
        element = ET.SubElement(wanted, "disk", about)
        ET.SubElement(element, "scratch", file=disk.scratch)
    return ET.tostring(root, encoding="unicode")


def checkpoint_xml(vm_snapshot_id: VmSnapshotId, tracked: Sequence[str], targets: Sequence[str]) -> str:
    """A checkpoint of the ``tracked`` ones of all ``targets``; "" without any."""
    if not tracked:
        return ""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = checkpoint_name(vm_snapshot_id)
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap" if target in tracked else "no")
    return ET.tostring(root, encoding="unicode")


def checkpointed(xml: str) -> frozenset[str]:
    """The disks that a checkpoint has bitmaps of. Raises Corruption."""
    root = parse(xml, what="a checkpoint")
    found = root.iterfind("disks/disk")
    return frozenset(disk.get("name", "") for disk in found if disk.get("checkpoint") == "bitmap")


def backup_owner(xml: str) -> VmSnapshotId | None:
    """The VM snapshot that a backup job belongs to; None: somebody else's. Raises Corruption."""
    for disk in parse(xml, what="a backup job").iterfind("disks/disk"):
        found = _EXPORT.fullmatch(disk.get("exportname", ""))
        if found:
            return VmSnapshotId(found[1])
    return None
