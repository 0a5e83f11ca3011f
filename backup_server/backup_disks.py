"""The disks of a backup, opened to be read at random: what looking for files and reading them begins with.

Callers: edges and jobs, any thread; what is opened belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from arraylift.errors import NotFound
from arraylift.ids import check_id, check_name
from backup_server.backups import Backups
from backup_server.catalog.entry import Disk, DiskSet
from backup_server.image_access import RemoteImage
from backup_server.model import Backup
from backup_server.ports import Peers
from backup_server.registry import Registry


class BackupDisks:
    """For one server."""

    def __init__(self, backups: Backups, registry: Registry, peers: Peers) -> None:
        self._backups, self._registry, self._peers = backups, registry, peers

    @contextmanager
    def opened(self, backup_id: str, disk_name: str = "") -> Iterator[DiskSet]:
        """All disks of a backup in the VM's order, or the one that is named; the backup stays meanwhile.

        Raises NotFound, InvalidRequest.
        """
        with self._backups.reading(check_id(backup_id, "backup id")) as backup:
            names = [disk.disk_name for disk in backup.disks]
            if disk_name and check_name(disk_name, "disk name") not in names:
                raise NotFound(
                    f"backup {backup_id} has no disk {disk_name}",
                    subject=f"disk {disk_name}",
                    next_step=f"name one of {', '.join(names)}",
                )
            yield [disk for disk in self.of(backup) if disk_name in {"", disk.name}]

    def of(self, backup: Backup) -> list[Disk]:
        """All disks of a backup that somebody may delete meanwhile: reads then fail."""
        target = self._peers.target(self._registry.target(backup.target))
        return [
            Disk(disk.disk_name, RemoteImage(target, disk.image_id, disk.size_bytes)) for disk in backup.disks
        ]
