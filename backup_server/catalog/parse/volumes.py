"""Find the volumes of a set of disks, and open one.

Invariants: U1 a volume's key depends on tables, names and numbers only, never on what else is there. U2 what
cannot be read is listed with the reason.
Used in the parser's process only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from arraylift.errors import NotFound, WrongState
from backup_server.catalog.entry import Volume
from backup_server.catalog.parse import ext, fat, lvm, ntfs, xfs
from backup_server.catalog.parse.filesystem import FAULTS, FileSystem, Label
from backup_server.catalog.parse.partitions import Partition, partitions
from backup_server.catalog.parse.signatures import signature
from backup_server.catalog.parse.space import Slice, Space
from backup_server.catalog.parse.tree import reason

Probe = Callable[[Space], Label | None]
Open = Callable[[Space], FileSystem]

READERS: tuple[tuple[Probe, Open], ...] = (
    (xfs.probe, xfs.XfsFileSystem),
    (ntfs.probe, ntfs.NtfsFileSystem),
    (ext.probe, ext.ExtFileSystem),
    (fat.probe, fat.FatFileSystem),
)
"""In the order in which they are tried: signatures that are checked best come first."""

_SYSTEM_ROOTS = {b"etc", b"windows"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a volume is; no space: ``reason`` says why."""

    key: str
    size_bytes: int
    space: Space | None
    reason: str = ""


def survey(
    disks: Sequence[tuple[str, Space]], *, only: str = ""
) -> Iterator[tuple[Volume, FileSystem | None]]:
    """Yield every volume and, where it is readable, its file system; ``only``: open none but this one."""
    members: list[lvm.PhysicalVolume] = []
    for place in _places(disks):
        yield _look(place, members, opens=only in {"", place.key})
    for logical in lvm.logical_volumes(members):
        key = f"lvm/{logical.group}/{logical.name}"
        place = Place(key, logical.size_bytes, logical.space, logical.reason)
        yield _look(place, None, opens=only in {"", key})


def open_volume(disks: Sequence[tuple[str, Space]], key: str) -> tuple[Volume, FileSystem]:
    """Return the volume of this key, or the one to take where none is named. NotFound, WrongState."""
    found = list(survey(disks, only=key))
    if key:
        for volume, system in found:
            if volume.key == key:
                if system is None:
                    raise WrongState(f"volume {key} cannot be read: {volume.remark}")
                return volume, system
        raise NotFound(f"there is no volume {key}; there are {', '.join(volume.key for volume, _ in found)}")
    readable = [(volume, system) for volume, system in found if system is not None]
    for volume, system in readable:
        if _is_system(system):
            return volume, system
    if readable:
        return max(readable, key=lambda pair: pair[0].size_bytes)
    told = "; ".join(f"{volume.key}: {volume.remark}" for volume, _ in found)
    raise WrongState(f"no file system that can be read here ({told})")


def _places(disks: Sequence[tuple[str, Space]]) -> Iterator[Place]:
    for name, space in disks:
        try:
            parts = partitions(space)
        except FAULTS as error:
            yield Place(name, space.size_bytes, None, f"its partition table cannot be read: {error}")
            continue
        if parts is None:
            yield Place(name, space.size_bytes, space)
        else:
            yield from (_part(name, space, part) for part in parts)


def _part(name: str, disk: Space, part: Partition) -> Place:
    key = f"{name}/p{part.number}"
    if part.start + part.size_bytes > disk.size_bytes:
        return Place(key, part.size_bytes, None, "it ends behind the end of its disk")
    return Place(key, part.size_bytes, Slice(disk, part.start, part.size_bytes))


def _look(
    place: Place, members: list[lvm.PhysicalVolume] | None, *, opens: bool
) -> tuple[Volume, FileSystem | None]:
    """Say what lies at a place; physical volumes of LVM are collected where they may be."""

    def listed(label: Label, remark: str) -> tuple[Volume, None]:
        kind, name, uuid = label.kind, label.label, label.uuid
        return Volume(place.key, kind, name, uuid, place.size_bytes, readable=False, remark=remark), None

    if place.space is None:
        return listed(Label(""), place.reason)
    label = Label("")
    try:
        member = lvm.physical_volume(place.space)
        if member is not None:
            if members is not None:
                members.append(member)
            return listed(
                Label(lvm.KIND, uuid=member.uuid), member.remark or "a part of a volume group: see lvm/"
            )
        for probe, opened in READERS:
            found = probe(place.space)
            if found is not None:
                label = found
                if not opens:  # a dirty journal is not read for nothing
                    return listed(label, "")
                system = opened(place.space)
                volume = Volume(
                    place.key, found.kind, found.label, found.uuid, place.size_bytes, True, system.remark
                )
                return volume, system
        other, why = signature(place.space)
        return listed(other, why)
    except FAULTS as error:
        return listed(label, reason(error))


def _is_system(system: FileSystem) -> bool:
    """Say whether an operating system seems to lie there."""
    try:
        for name, number in system.names(system.root):
            if name.lower() in _SYSTEM_ROOTS and stat.S_ISDIR(system.node(number).mode):
                return True
    except FAULTS:
        pass
    return False
