"""Read ext2, ext3 and ext4: names, inodes and extents, through The Sleuth Kit and over the journal.

Runs in the parser's process only: everything it reads is hostile, and the library may hang or crash.
What the library does not say (times after 2038 and nanoseconds, inode flags, directories in their
inode) is read here.
Invariants: E1 a feature that is unknown, or that hides content, is refused. E2 a file whose extents the
library does not give whole is refused, never filled with zeros.
Layout: the kernel's documentation, "ext4 data structures and algorithms".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytsk3

from arraylift.errors import InvalidRequest, NotFound, WrongState
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.journal import MAGIC_BYTES, JournalCopy, replay
from backup_server.catalog.pieces import LITERAL_BYTES_MAX, Overlay, Piece, Run, literal_pieces, pieces_of

ENTRIES_MAX = 100_000
NAME_BYTES_MAX = 255
LINK_BYTES_MAX = 4096
FILE_BYTES_MAX = 1 << 60
ROOT_INODE = 2

_MAGIC_OFFSET, _SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES = 1024 + 56, 1024, 1024
_RECOVER, _JOURNAL_DEVICE, _META_BG, _64BIT = 0x4, 0x8, 0x10, 0x80
_INCOMPATIBLE_KNOWN = 0x2 | _RECOVER | _META_BG | 0x40 | _64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000
_INCOMPATIBLE_KNOWN |= 0x8000 | 0x10000 | 0x20000  # inline data, encryption (by file), casefolding
_SPARSE_SUPER, _BIGALLOC = 0x1, 0x200
_FLAG_ENCRYPTED, _FLAG_INLINE = 0x800, 0x10000000
_TYPES = {
    int(pytsk3.TSK_FS_META_TYPE_REG): stat.S_IFREG,
    int(pytsk3.TSK_FS_META_TYPE_DIR): stat.S_IFDIR,
    int(pytsk3.TSK_FS_META_TYPE_LNK): stat.S_IFLNK,
    int(pytsk3.TSK_FS_META_TYPE_FIFO): stat.S_IFIFO,
    int(pytsk3.TSK_FS_META_TYPE_CHR): stat.S_IFCHR,
    int(pytsk3.TSK_FS_META_TYPE_BLK): stat.S_IFBLK,
    int(pytsk3.TSK_FS_META_TYPE_SOCK): stat.S_IFSOCK,
}
_HOLE = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE) | int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)
_INLINE_IN_INODE_BYTES = 60


class Source(Protocol):
    """The image, as the parser sees it."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class TskImage(pytsk3.Img_Info):  # type: ignore[misc]
    """What the library reads through."""

    def __init__(self, source: Source) -> None:
        self.source = source
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.source.size_bytes - offset))
        return self.source.read(offset, length) if length else b""

    def get_size(self) -> int:
        return self.source.size_bytes

    def close(self) -> None:
        """The source outlives the library's handle."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the superblock says; offsets are bytes from the start of the file system."""

    block_bytes: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_bytes: int
    descriptor_bytes: int
    meta_group_first: int
    incompatible: int
    read_only_compatible: int
    journal_inode: int


@dataclass(frozen=True, slots=True)
class _Inode:
    mode: int
    uid: int
    gid: int
    size_bytes: int
    flags: int
    modified_at_ns: int


class _JournalOverlay:
    """A source whose replaced blocks are read from the journal instead."""

    def __init__(self, source: Source, offset: int, block_bytes: int, journal: Any) -> None:
        self.size_bytes = source.size_bytes
        self._source, self._offset, self._block_bytes, self._journal = source, offset, block_bytes, journal
        self._copies: dict[int, JournalCopy] = replay(
            self._read_journal, block_bytes=block_bytes, block_count=journal.info.meta.size // block_bytes
        )
        self.overlay = Overlay(offset, block_bytes, sorted(self._copies), self.read)

    def read(self, offset: int, length: int) -> bytes:
        content = self._source.read(offset, length)
        first = (offset - self._offset) // self._block_bytes
        last = (offset - self._offset + length - 1) // self._block_bytes
        hits = [block for block in range(first, last + 1) if block in self._copies]
        if not hits:
            return content
        patched = bytearray(content)
        for block in hits:
            start = self._offset + block * self._block_bytes
            low, high = max(offset, start), min(offset + length, start + self._block_bytes)
            patched[low - offset : high - offset] = self._read_copy(block)[low - start : high - start]
        return bytes(patched)

    def _read_copy(self, block: int) -> bytes:
        copy = self._copies[block]
        content = self._read_journal(copy.journal_block)
        return MAGIC_BYTES + content[4:] if copy.escaped else content

    def _read_journal(self, block: int) -> bytes:
        content: bytes = self._journal.read_random(block * self._block_bytes, self._block_bytes)
        if len(content) != self._block_bytes:
            raise WrongState("the file system's journal is cut short")
        return content


class ExtFileSystem:
    """One file system at ``offset`` of a source. WrongState: not readable, and why."""

    def __init__(self, source: Source, offset: int) -> None:
        self._offset = offset
        self._source = source
        self._layout = _layout(source, offset)
        self._overlay: Overlay | None = None
        self._tsk = self._open(source)
        if self._layout.incompatible & _RECOVER:
            if not self._layout.journal_inode:
                raise WrongState("the file system was in use, and its journal is on another disk")
            journal = self._tsk.open_meta(inode=self._layout.journal_inode)
            over = _JournalOverlay(source, offset, self._layout.block_bytes, journal)
            self._source, self._overlay = over, over.overlay
            self._layout = _layout(over, offset)
            self._tsk = self._open(over)

    def list_directory(self, path: bytes) -> Iterator[FileEntry]:
        """Yield the names in a directory, in no order. NotFound, InvalidRequest: no directory."""
        inode_number = self._find(path)
        inode = self._inode(inode_number)
        if not stat.S_ISDIR(inode.mode):
            raise InvalidRequest(_not_directory(path, self._link(inode_number, inode)))
        for count, (name, child) in enumerate(self._names(inode_number, inode)):
            if b"/" in name:
                raise WrongState(f"the directory {_shown(path)} is damaged")
            if count >= ENTRIES_MAX:
                raise WrongState(f"{_shown(path)} has more than {ENTRIES_MAX} names")
            yield self._entry(path.rstrip(b"/") + b"/" + name, child)

    def open_file(self, path: bytes) -> tuple[FileEntry, list[Piece]]:
        """Return a regular file and its pieces. NotFound, InvalidRequest: no regular file of this name."""
        number = self._find(path)
        entry = self._entry(path, number)
        if entry.is_link:
            raise InvalidRequest(
                f"{_shown(path)} is a symbolic link to {entry.link_target!r}", next_step="ask for its target"
            )
        if not entry.is_file:
            raise InvalidRequest(f"{_shown(path)} is not a regular file")
        inode = self._inode(number)
        if inode.flags & _FLAG_ENCRYPTED:
            raise WrongState(f"{_shown(path)} is encrypted by the guest")
        try:
            return entry, self._pieces(number, inode)
        except WrongState as error:
            raise WrongState(f"{_shown(path)} cannot be read from the image: {error.message}") from error

    def _open(self, source: Source) -> Any:
        try:
            return pytsk3.FS_Info(TskImage(source), offset=self._offset, type=pytsk3.TSK_FS_TYPE_EXT_DETECT)
        except OSError as error:
            raise WrongState(f"the ext file system cannot be opened: {_last_line(error)}") from error

    def _find(self, path: bytes) -> int:
        number = ROOT_INODE
        walked = b""
        for part in path.split(b"/"):
            if not part:
                continue
            inode = self._inode(number)
            if not stat.S_ISDIR(inode.mode):
                raise InvalidRequest(_not_directory(walked, self._link(number, inode)))
            found = next((child for name, child in self._names(number, inode) if name == part), None)
            walked += b"/" + part
            if found is None:
                raise NotFound(f"the image has no {_shown(walked)}")
            number = found
        return number

    def _names(self, number: int, inode: _Inode) -> Iterator[tuple[bytes, int]]:
        """Yield (name, inode number) of a directory without what was deleted from it, and without . and .."""
        if inode.flags & _FLAG_ENCRYPTED:
            raise WrongState("the names in this directory are encrypted by the guest")
        if inode.flags & _FLAG_INLINE:
            yield from _inline_names(self._inline(number, inode))
            return
        for file in self._tsk.open_dir(inode=number):
            name, meta = file.info.name, file.info.meta
            ghost = (
                meta is None
                or int(name.flags) & pytsk3.TSK_FS_NAME_FLAG_UNALLOC
                or int(meta.flags) & pytsk3.TSK_FS_META_FLAG_UNALLOC
                or int(meta.type) not in _TYPES  # the library's own, such as $OrphanFiles
            )
            if not ghost and name.name not in {b".", b".."}:
                yield name.name, int(meta.addr)

    def _entry(self, path: bytes, number: int) -> FileEntry:
        inode = self._inode(number)
        text = path.decode("utf-8", "surrogateescape")
        name = path.rpartition(b"/")[2]
        if (
            not 0 < len(name) <= NAME_BYTES_MAX
            or b"\0" in name
            or stat.S_IFMT(inode.mode) not in _TYPES.values()
        ):
            raise WrongState(f"the directory of {_shown(path)} is damaged")
        if inode.size_bytes > FILE_BYTES_MAX:
            raise WrongState(f"{_shown(path)} is damaged: it would have {inode.size_bytes} bytes")
        return FileEntry(
            path=text,
            name=text.rpartition("/")[2],
            size_bytes=inode.size_bytes,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            modified_at_ns=inode.modified_at_ns,
            link_target=self._link(number, inode).decode("utf-8", "surrogateescape"),
        )

    def _link(self, number: int, inode: _Inode) -> bytes:
        if not stat.S_ISLNK(inode.mode):
            return b""
        file = self._tsk.open_meta(inode=number)
        target = file.info.meta.link  # None above 59 bytes
        if target is None and 0 < inode.size_bytes <= LINK_BYTES_MAX:
            target = file.read_random(0, inode.size_bytes)
        if target is None or len(target) > LINK_BYTES_MAX:
            raise WrongState(f"the target of the symbolic link in inode {number} cannot be read")
        return bytes(target).partition(b"\0")[0]  # as a kernel reads it

    def _pieces(self, number: int, inode: _Inode) -> list[Piece]:
        if inode.flags & _FLAG_INLINE:
            return literal_pieces(self._inline(number, inode))
        if inode.size_bytes == 0:
            return []
        return pieces_of(self._runs(number), size_bytes=inode.size_bytes, overlay=self._overlay)

    def _runs(self, number: int) -> Iterator[Run]:
        block_bytes = self._layout.block_bytes
        for attribute in self._tsk.open_meta(inode=number):
            info = attribute.info
            if (
                info.type != pytsk3.TSK_FS_ATTR_TYPE_DEFAULT
                or not int(info.flags) & pytsk3.TSK_FS_ATTR_NONRES
            ):
                continue
            for run in attribute:
                hole = int(run.flags) & _HOLE or run.addr == 0
                start = None if hole else self._offset + run.addr * block_bytes
                length = run.len * block_bytes
                if start is not None and start + length > self._source.size_bytes:
                    raise WrongState("an extent ends outside the image")
                yield Run(run.offset * block_bytes, length, start)

    def _inline(self, number: int, inode: _Inode) -> bytes:
        """Return what the inode itself holds, and its extended attribute."""
        if inode.size_bytes == 0:
            return b""
        if inode.size_bytes > LITERAL_BYTES_MAX:
            raise WrongState(f"inline data of {inode.size_bytes} bytes is not possible")
        file = self._tsk.open_meta(inode=number)
        resident = any(int(attribute.info.flags) & pytsk3.TSK_FS_ATTR_RES for attribute in file)
        content: bytes = file.read_random(0, inode.size_bytes) if resident else b""
        if len(content) != inode.size_bytes:
            raise WrongState(f"{len(content)} of {inode.size_bytes} bytes of inline data are there")  # E2
        return content

    def _inode(self, number: int) -> _Inode:
        layout = self._layout
        group, index = divmod(number - 1, layout.inodes_per_group)
        descriptor = self._read(_descriptor_offset(layout, group), layout.descriptor_bytes)
        table = struct.unpack_from("<I", descriptor, 8)[0]
        if layout.descriptor_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        raw = self._read(table * layout.block_bytes + index * layout.inode_bytes, layout.inode_bytes)
        return _inode_of(raw)

    def _read(self, offset: int, length: int) -> bytes:
        start = self._offset + offset
        if offset < 0 or start + length > self._source.size_bytes:
            raise WrongState("the ext file system points outside the image")
        return self._source.read(start, length)


def is_ext(source: Source, offset: int) -> bool:
    """Say whether something like a superblock of ext lies behind ``offset``."""
    if offset + _SUPERBLOCK_OFFSET + _SUPERBLOCK_BYTES > source.size_bytes:
        return False
    return source.read(offset + _MAGIC_OFFSET, 2) == b"\x53\xef"


def _layout(source: Source, offset: int) -> _Layout:
    block = source.read(offset + _SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES)
    first_data_block, log_block = struct.unpack_from("<II", block, 20)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", block, 32)
    revision = struct.unpack_from("<I", block, 76)[0]
    incompatible, read_only = struct.unpack_from("<II", block, 96) if revision else (0, 0)
    inode_bytes = struct.unpack_from("<H", block, 88)[0] if revision else 128
    descriptor_bytes = struct.unpack_from("<H", block, 254)[0] if incompatible & _64BIT else 32
    if unknown := incompatible & ~_INCOMPATIBLE_KNOWN:  # E1
        raise WrongState(f"the ext file system has features unknown here: {unknown:#x}")
    if read_only & _BIGALLOC:
        raise WrongState("the ext file system allocates in clusters (bigalloc), which cannot be read here")
    sound = log_block <= 6 and blocks_per_group and inodes_per_group
    if not sound or not 128 <= inode_bytes <= 1024 << log_block or not 32 <= descriptor_bytes <= 1024:
        raise WrongState("the superblock of the ext file system contradicts itself")
    return _Layout(
        block_bytes=1024 << log_block,
        first_data_block=first_data_block,
        blocks_per_group=blocks_per_group,
        inodes_per_group=inodes_per_group,
        inode_bytes=inode_bytes,
        descriptor_bytes=descriptor_bytes,
        meta_group_first=struct.unpack_from("<I", block, 260)[0] if incompatible & _META_BG else 1 << 32,
        incompatible=incompatible,
        read_only_compatible=read_only,
        journal_inode=struct.unpack_from("<I", block, 224)[0],
    )


def _descriptor_offset(layout: _Layout, group: int) -> int:
    per_block = layout.block_bytes // layout.descriptor_bytes
    meta_group, index = divmod(group, per_block)
    if meta_group < layout.meta_group_first:
        block = layout.first_data_block + 1 + meta_group
    else:  # beside the group's own superblock, if it has one
        first = meta_group * per_block
        has_superblock = not layout.read_only_compatible & _SPARSE_SUPER or _has_superblock(first)
        block = layout.first_data_block + first * layout.blocks_per_group + has_superblock
    return block * layout.block_bytes + index * layout.descriptor_bytes


def _has_superblock(group: int) -> bool:
    """Say whether sparse_super keeps a superblock here: in groups 0, 1 and the powers of 3, 5 and 7."""
    return group <= 1 or any(group == base**power for base in (3, 5, 7) for power in range(1, 24))


def _inode_of(raw: bytes) -> _Inode:
    mode, uid, size_low = struct.unpack_from("<HHI", raw, 0)
    seconds = struct.unpack_from("<i", raw, 16)[0]
    gid, flags = struct.unpack_from("<H6xI", raw, 24)[0], struct.unpack_from("<I", raw, 32)[0]
    size_high = struct.unpack_from("<I", raw, 108)[0] if stat.S_ISREG(mode) else 0
    uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
    nanoseconds = 0
    extra_bytes = struct.unpack_from("<H", raw, 128)[0] if len(raw) >= 140 else 0
    if extra_bytes >= 12:  # i_mtime_extra is there: two bits of epoch, then nanoseconds
        extra = struct.unpack_from("<I", raw, 136)[0]
        seconds += (extra & 3) << 32
        nanoseconds = min(extra >> 2, 999_999_999)
    return _Inode(
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size_bytes=size_low | size_high << 32,
        flags=flags,
        modified_at_ns=seconds * 1_000_000_000 + nanoseconds,
    )


def _inline_names(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names of a directory in its inode: the parent's number, then entries in two parts."""
    for start, end in ((4, _INLINE_IN_INODE_BYTES), (_INLINE_IN_INODE_BYTES, len(content))):
        at = start
        while at + 8 <= min(end, len(content)):
            inode, record_bytes, name_bytes = struct.unpack_from("<IHB", content, at)
            if record_bytes < 8 or at + record_bytes > end or 8 + name_bytes > record_bytes:
                raise WrongState("a directory in its inode contradicts itself")
            if inode and name_bytes:
                yield content[at + 8 : at + 8 + name_bytes], inode
            at += record_bytes


def _not_directory(path: bytes, target: bytes) -> str:
    """Say why a path cannot be walked through."""
    if target:
        return f"{_shown(path)} is a symbolic link to {_shown(target)}, and links are not followed"
    return f"{_shown(path)} is not a directory"


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _last_line(error: OSError) -> str:
    return str(error).strip().rpartition("\n")[2][:200]
