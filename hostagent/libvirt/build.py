"""Put the libvirt driver together from the host's settings. Callers: the composition root."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from arraylift.clock import Clock
from arraylift.durable import Files
from arraylift.errors import InvalidRequest
from hostagent.libvirt.connection import LibvirtConnection
from hostagent.libvirt.driver import LibvirtDriver
from hostagent.libvirt.exports import ExportPlaces
from hostagent.libvirt.foreign import LibvirtForeignDisks
from hostagent.libvirt.inventory import LibvirtInventory
from hostagent.libvirt.off_exports import OffExports
from hostagent.libvirt.variables import Variables
from hostagent.vm_store import VmStore
from hostagent.volumes import Volumes

_CREDENTIALS = {"ca-cert.pem": "ca.pem", "server-cert.pem": "host-{}.pem", "server-key.pem": "host-{}.key"}


@dataclass(frozen=True, slots=True)
class LibvirtPlaces:
    """``uri`` of libvirt; ``exports``: folder for sockets and scratch files; ``listen`` as ExportPlaces."""

    host: str
    state: str
    pki: str
    uri: str
    exports: str
    listen: str


@dataclass(frozen=True, slots=True)
class LibvirtParts:
    driver: LibvirtDriver
    guests: LibvirtInventory
    connection: LibvirtConnection


def build(
    places: LibvirtPlaces,
    store: VmStore,
    volumes: Volumes,
    files: Files,
    *,
    clock: Clock,
    tls_name: Callable[[str], str],
) -> LibvirtParts:
    """Raises InvalidRequest (settings; no libvirt module)."""
    folder = places.exports or f"{places.state}/exports"
    files.make_dirs(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(f"{folder} cannot be written", next_step="name another libvirt_exports")
    connection = LibvirtConnection(places.uri)
    owner = hashlib.sha256(places.state.encode()).hexdigest()[:12]
    off = OffExports(_credentials(places) if places.listen else "", owner)
    foreign = LibvirtForeignDisks(
        connection,
        ExportPlaces(files, folder, places.listen),
        off,
        clock=clock,
        is_known=lambda vm_snapshot_id: store.snapshots.find(vm_snapshot_id) is not None,
    )

    driver = LibvirtDriver(
        connection,
        foreign,
        off,
        volumes,
        Variables(files, folder, store.firmware.get),
        host=places.host,
        uri=places.uri,
        tls_name=tls_name,
        record_of=store.vms.get,
        files=files,
    )
    return LibvirtParts(driver, LibvirtInventory(connection, driver.export_of, clock=clock), connection)


def _credentials(places: LibvirtPlaces) -> str:
    """A folder in which qemu-nbd finds this host's own certificate under the names that it expects."""
    folder = f"{places.state}/nbd-credentials"
    os.makedirs(folder, exist_ok=True)
    for name, ours in _CREDENTIALS.items():
        link = f"{folder}/{name}"
        if not os.path.islink(link):
            os.symlink(os.path.join(places.pki, ours.format(places.host)), link)
    return folder
