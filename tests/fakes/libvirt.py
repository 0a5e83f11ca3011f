"""A libvirt without libvirt: guests are XML, exports and checkpoints are what was asked for."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field

from arraylift.errors import ArrayliftError, NotFound, WrongState
from hostagent.libvirt.backup_xml import checkpointed
from hostagent.libvirt.hypervisor import Domain


@dataclass
class FakeGuest:
    xml: str
    active: bool = True
    job: str | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Checkpoints whose bitmaps QEMU does not have any more."""
    internal_snapshots: int = 0
    bitmapless: bool = False
    """Its images keep no bitmaps: an old qcow2."""


class FakeHypervisor:
    """Keeps the contract of ``Hypervisor``; ``fail`` is raised by the next call."""

    def __init__(self) -> None:
        self.guests: dict[str, FakeGuest] = {}
        self.fail: ArrayliftError | None = None
        self.changed: Callable[[], None] = lambda: None
        self.begun: list[str] = []
        self.defined: list[str] = []

    def _guest(self, uuid: str) -> FakeGuest:
        if self.fail is not None:
            raise self.fail
        if uuid not in self.guests:
            raise NotFound("no such guest")
        return self.guests[uuid]

    def _domain(self, uuid: str) -> Domain:
        guest = self._guest(uuid)
        name = ET.fromstring(guest.xml).findtext("name") or ""
        return Domain(uuid, name, guest.active, True, guest.xml)

    def domains(self) -> list[Domain]:
        if self.fail is not None:
            raise self.fail
        return [self._domain(uuid) for uuid in self.guests]

    def domain(self, uuid: str) -> Domain:
        return self._domain(uuid)

    def is_active(self, uuid: str) -> bool:
        if self.fail is not None:
            raise self.fail
        return uuid in self.guests and self.guests[uuid].active

    def has_kvm(self) -> bool:
        return False

    def block_bytes(self, uuid: str, target: str) -> int:
        self._guest(uuid)
        return 64 << 20

    def internal_snapshots(self, uuid: str) -> int:
        return self._guest(uuid).internal_snapshots

    def define(self, xml: str) -> None:
        uuid = ET.fromstring(xml).findtext("uuid") or ""
        self.defined.append(uuid)
        known = self.guests.get(uuid)
        self.guests[uuid] = FakeGuest(xml, active=known is not None and known.active)

    def undefine(self, uuid: str) -> None:
        self.guests.pop(uuid, None)

    def start(self, uuid: str) -> None:
        self._guest(uuid).active = True

    def shut_down(self, uuid: str) -> None:
        self._guest(uuid).active = False

    def destroy(self, uuid: str) -> None:
        guest = self._guest(uuid)
        guest.active, guest.job = False, None

    def attach(self, uuid: str, device_xml: str) -> None:
        guest = self._guest(uuid)
        guest.xml = guest.xml.replace("</devices>", f"{device_xml}</devices>")

    def detach(self, uuid: str, device_xml: str) -> None:
        guest = self._guest(uuid)
        target = ET.fromstring(device_xml).find("target")
        assert target is not None
        root = ET.fromstring(guest.xml)
        devices = root.find("devices")
        assert devices is not None
        for disk in list(devices.iterfind("disk")):
            at = disk.find("target")
            if at is not None and at.get("dev") == target.get("dev"):
                devices.remove(disk)
        guest.xml = ET.tostring(root, encoding="unicode")

    def agent(self, uuid: str, command: str, *, seconds: float) -> str:
        raise WrongState("no agent")

    def begin_backup(self, uuid: str, backup_xml: str, checkpoint_xml: str, *, seconds: float) -> None:
        guest = self._guest(uuid)
        self.begun.append(backup_xml)
        assert guest.job is None, "libvirt would wait for 30 s"
        if not guest.active:
            raise WrongState("domain is not running")
        for disk in ET.fromstring(backup_xml).iterfind("disks/disk"):
            since = disk.get("incremental")
            if since is None:
                continue
            if since in guest.broken or disk.get("name") not in checkpointed(
                guest.checkpoints.get(since, "<x/>")
            ):
                raise WrongState(f"bitmap {since} is broken")
        if checkpoint_xml:
            if guest.bitmapless:
                raise WrongState("images of this version keep no bitmaps")
            name = ET.fromstring(checkpoint_xml).findtext("name") or ""
            assert name not in guest.checkpoints
            guest.checkpoints[name] = checkpoint_xml
        guest.job = backup_xml

    def backup(self, uuid: str) -> str | None:
        return self._guest(uuid).job

    def end_backup(self, uuid: str) -> None:
        self._guest(uuid).job = None

    def checkpoints(self, uuid: str) -> list[tuple[str, str]]:
        return list(self._guest(uuid).checkpoints.items())

    def delete_checkpoint(self, uuid: str, name: str) -> None:
        self._guest(uuid).checkpoints.pop(name, None)

    def watch(self, changed: Callable[[], None]) -> None:
        self.changed = changed
