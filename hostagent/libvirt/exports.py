"""The folder in which a guest's VMM and qemu-nbd make sockets and scratch files, and the room in it.

Owns: every file below the folder whose name ``backup_xml.file_owner`` knows; libvirt and QEMU make them.
Invariants:
  E1 a full scratch file would break the guest's writes, so an export ends before its disk is full:
     ``crowded`` says so while there are still FREE_BYTES_MIN.
Callers: foreign, reaper; any thread.
"""

from __future__ import annotations

import contextlib
import os
import socket

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, InvalidRequest, OutOfSpace, Overloaded
from arraylift.ids import VmId, VmSnapshotId
from arraylift.sizes import GIB
from hostagent.libvirt.backup_xml import Endpoint, file_name, file_owner

FREE_BYTES_MIN = GIB
SOCKET_BYTES_MAX = 107


class ExportPlaces:
    """``listen``: ``host:first-last`` for TLS over TCP; empty: Unix sockets, for an array on this machine."""

    def __init__(
        self, files: Files, folder: str, listen: str = "", *, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        """Raises InvalidRequest."""
        self._files, self.folder, self.free_bytes_min = files, folder, free_bytes_min
        self._host, self._ports = _parsed(listen) if listen else ("", range(0))
        if len(self._socket("s").encode()) > SOCKET_BYTES_MAX:
            raise InvalidRequest(
                f"sockets cannot be made below {folder}: the path is too long",
                next_step="name a shorter folder in libvirt_exports",
            )

    def endpoint(self, vm_snapshot_id: VmSnapshotId, which: str = "") -> Endpoint:
        """A place that nobody uses now. Raises Overloaded: every port is taken."""
        if not self._host:
            return Endpoint(socket_path=self._socket(f"{vm_snapshot_id[:16]}{which}"))
        for port in self._ports:
            if _is_free(self._host, port):
                return Endpoint(host=self._host, port=port)
        raise Overloaded(
            f"every port of {self._host}:{self._ports[0]}-{self._ports[-1]} is in use",
            next_step="wait for backups that are running, or widen libvirt_listen",
        )

    def scratch(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId, target: str) -> str:
        """Path of the file that takes what the guest overwrites."""
        return os.path.join(self.folder, file_name(vm_id, vm_snapshot_id, target, "scratch"))

    def check_room(self) -> None:
        """Raises OutOfSpace: an export would soon have to end (E1)."""
        if self._free() < 2 * self.free_bytes_min:
            raise OutOfSpace(
                f"{self.folder} has too little room for what guests overwrite during a backup",
                subject=self.folder,
                next_step=f"free {2 * self.free_bytes_min >> 20} MiB there, or name another libvirt_exports",
            )

    def crowded(self) -> list[tuple[VmId, VmSnapshotId]]:
        """Exports that must end now (E1)."""
        if self._free() >= self.free_bytes_min:
            return []
        return sorted({owner for name in self._names(".scratch") if (owner := file_owner(name))})

    def clean(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId) -> None:
        """Remove what an ended export has left."""
        for name in self._names(".scratch"):
            if file_owner(name) == (vm_id, vm_snapshot_id):
                self._remove(os.path.join(self.folder, name))
        for name in self._names(".sock"):
            if name.startswith(vm_snapshot_id[:16]):
                self._remove(os.path.join(self.folder, name))

    def _socket(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.sock")

    def _free(self) -> int:
        facts = os.statvfs(self.folder)
        return facts.f_bavail * facts.f_frsize

    def _names(self, suffix: str) -> list[str]:
        return [name for name in os.listdir(self.folder) if name.endswith(suffix)]

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError, ArrayliftError):  # what is not ours to remove is in nobody's way
            self._files.remove(path, label="export", missing_ok=True)


def _parsed(listen: str) -> tuple[str, range]:
    host, _, ports = listen.rpartition(":")
    first, _, last = ports.partition("-")
    if not host or not first.isdigit() or not (last or first).isdigit():
        raise InvalidRequest(f"{listen!r} is no place to listen at", next_step="write host:first-last")
    found = range(int(first), int(last or first) + 1)
    if not found or found[0] < 1 or found[-1] > 65535:
        raise InvalidRequest(f"{listen!r} names no ports", next_step="write host:first-last")
    return host.strip("[]"), found


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
