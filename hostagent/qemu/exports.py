"""The NBD exports through which a guest reaches its disks.

Each host has an export of its own for a disk, so that two hosts between which a guest moves do not end each
other's connections. Their names follow from host, VM and volume: making one again makes the same.
Callers: qemu_driver and live_move, the thread that holds the guest's lock.
"""

from __future__ import annotations

import hashlib

from arraylift.errors import AlreadyExists
from arraylift.ids import VmId
from arraylift.nbd.uri import NbdUri
from arraylift.vm.types import Disk
from hostagent.qemu.run_record import PlacedDisk
from hostagent.volumes import Volumes

NBD_RECONNECT_SECONDS = 60
"""How long a guest's request waits for an array that is away; then the guest stands still."""

NBD_OPEN_SECONDS = 5
"""How long a new disk waits for its array."""

TLS_OBJECT, TLS_SERVER_OBJECT = "tls", "tls-server"


def export_name(host: str, vm_id: VmId, volume_name: str) -> str:
    """Names an export for that host alone; at most 255 bytes."""
    digest = hashlib.sha256(volume_name.encode()).hexdigest()[:12]
    return f"vm.{host}.{vm_id}.{digest}"


def placed(host: str, vm_id: VmId, disk: Disk, place: int) -> PlacedDisk:
    return PlacedDisk(
        disk.name, disk.array_address, disk.volume_name, export_name(host, vm_id, disk.volume_name), place
    )


def serve(volumes: Volumes, disk: PlacedDisk) -> NbdUri:
    """Have the array serve that disk. REQUIRES that no guest of this host uses its export, if it is there.

    Raises NotFound (volume), PeerUnavailable, DeadlineExceeded, Overloaded.
    """
    try:
        return volumes.create_export(disk.array_address, disk.export, disk.volume_name)
    except AlreadyExists:  # of a volume that had this name before
        volumes.delete_export(disk.array_address, disk.export)
        return volumes.create_export(disk.array_address, disk.export, disk.volume_name)


def node_name(export: str) -> str:
    """QEMU's name for the node of a disk; at most 31 characters."""
    return f"disk-{hashlib.sha256(export.encode()).hexdigest()[:16]}"


def block_node(disk: PlacedDisk, uri: NbdUri) -> dict[str, object]:
    """The node as ``blockdev-add`` takes it."""
    node: dict[str, object] = {
        "driver": "nbd",
        "node-name": node_name(disk.export),
        "export": uri.export,
        "reconnect-delay": NBD_RECONNECT_SECONDS,
        "open-timeout": NBD_OPEN_SECONDS,
        "discard": "unmap",
        "server": {"type": "unix", "path": uri.socket_path}
        if uri.socket_path
        else {"type": "inet", "host": uri.host, "port": str(uri.port)},
    }
    if uri.tls:
        node |= {"tls-creds": TLS_OBJECT, "tls-hostname": uri.tls_name}
    return node
