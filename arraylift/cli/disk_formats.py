"""Which format a disk file has, by its own bytes, and what in it names other files.

A hostile image may name any file of this machine as its backing or data: that is looked for here, before a
program that would open it gets to see the image.
Invariants:
  F1 an image that names another file is refused, by its header and by what qemu-img says of it.
Callers: disk_files, main thread. Sources: QEMU's docs/interop/qcow2.txt; VMware's Virtual Disk Format 5.0;
[MS-VHDX].
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

from arraylift.errors import InvalidRequest
from arraylift.sizes import IMAGE_BYTES_MAX, human

HEAD_BYTES = 512
SECTOR_BYTES = 512


class DiskFormat(Enum):
    """As QEMU calls them."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"


_MAGICS = {b"QFI\xfb": DiskFormat.QCOW2, b"KDMV": DiskFormat.VMDK, b"vhdxfile": DiskFormat.VHDX}
_REFUSED = {
    b"conectix": "a VHD image",
    b"# Disk DescriptorFile": "a VMDK description that names other files",
    b"COWD": "a VMDK image of the old sparse kind",
}
_QCOW2 = struct.Struct(">4sIQI")
"""Magic, version, offset and length of the backing file's name."""
_QCOW2_FEATURES = struct.Struct(">Q")
_QCOW2_FEATURES_AT = 72
_QCOW2_EXTERNAL_DATA = 1 << 2
_VMDK = struct.Struct("<4sIIQ")
"""Magic, version, flags, capacity in sectors."""


def format_of(head: bytes, path: object) -> DiskFormat:
    """Return the format that a file's first HEAD_BYTES say. Raises InvalidRequest (F1)."""
    for magic, what in _REFUSED.items():
        if head.startswith(magic):
            raise InvalidRequest(
                f"{path} is {what}",
                subject=str(path),
                next_step=f"convert it: qemu-img convert -O qcow2 {path} {path}.qcow2",
            )
    found = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), DiskFormat.RAW)
    if found is DiskFormat.QCOW2:
        _check_qcow2(head, path)
    elif found is DiskFormat.VMDK:
        _check_vmdk(head, path)
    return found


def check_info(info: Mapping[str, Any], wanted: DiskFormat, path: object) -> int:
    """Return the size of the disk in an image of which qemu-img said this. Raises InvalidRequest (F1)."""
    specific = info.get("format-specific") or {}
    data = specific.get("data") or {}
    if info.get("format") != wanted.value:
        raise InvalidRequest(f"{path} is no {wanted.value} image", subject=str(path))
    if any(key in info for key in ("backing-filename", "full-backing-filename")):
        raise _names_others(path, "a backing file")
    if "data-file" in data or data.get("data-file-raw"):
        raise _names_others(path, "an external data file")
    if len(data.get("extents", [])) > 1:
        raise _names_others(path, "further files of extents")
    if info.get("encrypted"):
        raise InvalidRequest(
            f"{path} is encrypted", subject=str(path), next_step="decrypt it: qemu-img convert with its key"
        )
    size = info.get("virtual-size")
    if not isinstance(size, int) or size % SECTOR_BYTES or not 0 < size <= IMAGE_BYTES_MAX:
        raise InvalidRequest(
            f"{path} holds a disk of {size} bytes, which is no disk's size",
            subject=str(path),
            next_step=f"a disk has a multiple of {SECTOR_BYTES}, at most {human(IMAGE_BYTES_MAX)}",
        )
    return size


def _check_qcow2(head: bytes, path: object) -> None:
    if len(head) < _QCOW2.size:
        raise InvalidRequest(f"{path} ends in its header", subject=str(path))
    _, version, backing_at, backing_length = _QCOW2.unpack_from(head)
    if backing_at or backing_length:
        raise _names_others(path, "a backing file")
    if version >= 3:
        if len(head) < _QCOW2_FEATURES_AT + _QCOW2_FEATURES.size:
            raise InvalidRequest(f"{path} ends in its header", subject=str(path))
        (features,) = _QCOW2_FEATURES.unpack_from(head, _QCOW2_FEATURES_AT)
        if features & _QCOW2_EXTERNAL_DATA:
            raise _names_others(path, "an external data file")


def _check_vmdk(head: bytes, path: object) -> None:
    if len(head) < _VMDK.size:
        raise InvalidRequest(f"{path} ends in its header", subject=str(path))
    if not _VMDK.unpack_from(head)[3]:
        raise _names_others(path, "files of extents")


def _names_others(path: object, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} has {what}, which could be any file of this machine",
        subject=str(path),
        next_step=f"if you trust it, make one file of it: qemu-img convert -O qcow2 {path} {path}.qcow2",
    )
