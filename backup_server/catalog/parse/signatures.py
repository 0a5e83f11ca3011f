"""Name what cannot be read here, by its signature: swap, encrypted volumes, other file systems. Pure."""

from __future__ import annotations

from backup_server.catalog.parse.filesystem import Label, text_of, uuid_of
from backup_server.catalog.parse.space import Space

_HEAD_BYTES = 0x11000
_ENCRYPTED = "it is encrypted: only the guest can read it"
_UNKNOWN = "a file system that cannot be read here"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"LUKS\xba\xbe", "crypto_LUKS", _ENCRYPTED),
    (3, b"-FVE-FS-", "BitLocker", _ENCRYPTED),
    (0x10040, b"_BHRfS_M", "btrfs", _UNKNOWN),
    (3, b"EXFAT   ", "exfat", _UNKNOWN),
    (3, b"ReFS\0\0\0\0", "ReFS", _UNKNOWN),
    (1024, b"\x10\x20\xf5\xf2", "f2fs", _UNKNOWN),
    (0x10034, b"ReIsEr", "reiserfs", _UNKNOWN),
    (0x8000, b"JFS1", "jfs", _UNKNOWN),
    (0x8001, b"CD001", "iso9660", _UNKNOWN),
    (0, b"hsqs", "squashfs", _UNKNOWN),
    (1024, b"H+", "hfsplus", _UNKNOWN),
    (32, b"NXSB", "apfs", _UNKNOWN),
    (24, b"\x18\x00\x00\x00\x00\x00\x00\x00bcache", "bcache", "a part of a cache, which cannot be read here"),
)
_RAID, _RAID_REASON = b"\xfc\x4e\x2b\xa9", "a member of a software RAID, which cannot be read here"


def signature(space: Space) -> tuple[Label, str]:
    """Return kind, label and id, and why it cannot be read."""
    head = space.read(0, min(_HEAD_BYTES, space.size_bytes))
    for page in (4096, 8192, 16384, 65536):
        if head[page - 10 : page] in {b"SWAPSPACE2", b"SWAP-SPACE"}:
            return Label(
                "swap", text_of(head[1052:1068]), uuid_of(head[1036:1052])
            ), "swap space has no files"
    for at in (0, 4096):
        if head[at : at + 4] == _RAID:
            return Label("linux_raid_member", text_of(head[at + 32 : at + 64])), _RAID_REASON
    end = space.size_bytes // 65536 * 65536 - 65536
    if end > 0 and space.read(end, 4) in {_RAID, _RAID[::-1]}:
        return Label("linux_raid_member"), _RAID_REASON
    end = (space.size_bytes // 512 - 16) // 8 * 8 * 512
    if end > 0 and space.read(end, 4) == _RAID:
        return Label("linux_raid_member"), _RAID_REASON
    for at, magic, kind, why in _SIGNATURES:
        if head[at : at + len(magic)] == magic:
            return Label(kind), why
    return Label(""), "no file system that is known here" if any(head) else "its beginning is empty"
