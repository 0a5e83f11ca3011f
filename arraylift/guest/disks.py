"""Disk images of the guest: file systems out of folders, and the disk that boots.

Layout of the boot disk: a master boot record; at 1 MiB a FAT file system, which is what both ways of
booting read (BIOS: the record's code, then syslinux; UEFI: systemd-boot); after it ext4, the root.
Callers: build, main thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arraylift.guest import programs
from arraylift.sizes import KIB, MIB

SECTOR_BYTES = 512
ESP_BYTES = 32 * MIB
ESP_START = MIB
ROOT_BYTES = 95 * MIB
ROOT_START = ESP_START + ESP_BYTES
BOOT_DISK_BYTES = ROOT_START + ROOT_BYTES
ROOT_LABEL = "guest-root"

_BOOT_CODE_BYTES = 440
_DISK_SIGNATURE = 0xA11F7001
_ACTIVE, _TYPE_ESP, _TYPE_LINUX = 0x80, 0xEF, 0x83
_NO_CYLINDERS = b"\xfe\xff\xff"  # as where sectors are counted instead
_COPY_BYTES = MIB
_ENTRY = "bootable"


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What the FAT file system holds, and the parameters for the kernel."""

    kernel: Path
    initramfs: bytes
    parameters: str


def make_ext4(image: Path, folder: Path, size_bytes: int, label: str) -> None:
    """Make an ext4 image of ``folder``'s content; the same bytes from the same content and folder times."""
    identity = f"{sum(label.encode()):08d}-0000-4000-8000-{label.encode().hex():0>12.12}"
    options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-L", label, "-U", identity]
    options += ["-E", f"hash_seed={identity},lazy_itable_init=0,root_owner=0:0", "-d", str(folder)]
    programs.run([programs.find("mke2fs", "e2fsprogs"), *options, image, f"{size_bytes // KIB}k"])


def make_boot_disk(image: Path, packages: Path, files: BootFiles, root: Path, scratch: Path) -> None:
    """Join boot record, FAT and the ext4 image ``root`` into one disk."""
    esp = scratch / "esp.img"
    _make_esp(esp, packages, files, scratch)
    code = (packages / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()
    with image.open("wb") as disk:
        disk.truncate(BOOT_DISK_BYTES)
        disk.write(_boot_record(code))
        for part, start in ((esp, ESP_START), (root, ROOT_START)):
            _copy_sparse(part, disk.fileno(), start)


def _make_esp(esp: Path, packages: Path, files: BootFiles, scratch: Path) -> None:
    """A FAT16 file system with both boot loaders and what they load."""
    tools = packages / "usr/bin"
    entry = (
        f"title {_ENTRY}\nlinux /vmlinuz\ninitrd /initrd\noptions {files.parameters}\n",
        f"default {_ENTRY}\nlabel {_ENTRY}\nlinux /vmlinuz\ninitrd /initrd\nappend {files.parameters}\n",
    )
    content: Mapping[str, bytes] = {
        "vmlinuz": files.kernel.read_bytes(),
        "initrd": files.initramfs,
        "ldlinux.c32": (packages / "usr/lib/syslinux/modules/bios/ldlinux.c32").read_bytes(),
        "syslinux.cfg": entry[1].encode(),
        "EFI/BOOT/BOOTX64.EFI": (packages / "usr/lib/systemd/boot/efi/systemd-bootx64.efi").read_bytes(),
        "loader/loader.conf": f"default {_ENTRY}.conf\ntimeout 0\n".encode(),
        f"loader/entries/{_ENTRY}.conf": entry[0].encode(),
    }
    folder = scratch / "esp"
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sectors, hidden = ESP_BYTES // SECTOR_BYTES, ESP_START // SECTOR_BYTES
    with esp.open("wb") as image:
        image.truncate(ESP_BYTES)
    shape = ["-T", str(sectors), "-h", "64", "-s", "32", "-H", str(hidden), "-v", "GUEST", "-N", "a11f7002"]
    programs.run([tools / "mformat", "-i", esp, *shape, "::"])
    programs.run([tools / "mcopy", "-s", "-Q", "-i", esp, *sorted(folder.iterdir()), "::"])
    programs.run([tools / "syslinux", "--install", esp], also_in=tools)


def _boot_record(code: bytes) -> bytes:
    """The first sector: code that starts the active partition's boot sector, and two partitions."""
    assert len(code) <= _BOOT_CODE_BYTES
    table = b""
    for flag, kind, start, size in (
        (_ACTIVE, _TYPE_ESP, ESP_START, ESP_BYTES),
        (0, _TYPE_LINUX, ROOT_START, ROOT_BYTES),
    ):
        table += struct.pack("<B3sB3s", flag, _NO_CYLINDERS, kind, _NO_CYLINDERS)
        table += struct.pack("<II", start // SECTOR_BYTES, size // SECTOR_BYTES)
    head = code.ljust(_BOOT_CODE_BYTES, b"\0") + struct.pack("<IH", _DISK_SIGNATURE, 0)
    return head + table.ljust(64, b"\0") + b"\x55\xaa"


def _copy_sparse(source: Path, to: int, start: int) -> None:
    with source.open("rb") as part:
        at = start
        while data := part.read(_COPY_BYTES):
            if data.count(0) != len(data):
                os.pwrite(to, data, at)
            at += len(data)
