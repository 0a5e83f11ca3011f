"""Read ext2, ext3 and ext4, over their journal if it is dirty.

Invariants: E1 a feature that is unknown, or that hides content, is refused. E2 what a file's inode and
extents do not give whole is refused, never filled with zeros.
Layout: the kernel's documentation, "ext4 data structures and algorithms".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import WrongState
from backup_server.catalog.parse.ext_inode import (
    BLOCK_BYTES,
    FLAG_EA_INODE,
    FLAG_ENCRYPTED,
    FLAG_EXTENTS,
    FLAG_INLINE,
    Inode,
    attributes_of,
    device_of,
    has_attributes_inside,
    inode_of,
    times_of,
)
from backup_server.catalog.parse.ext_runs import extent_runs, pointer_runs
from backup_server.catalog.parse.fast_commit import FastCommits
from backup_server.catalog.parse.filesystem import FAULTS, Label, Node, Recent, text_of, uuid_of, with_holes
from backup_server.catalog.parse.journal import replay_in
from backup_server.catalog.parse.space import Overlaid, Space
from backup_server.catalog.pieces import Run

ROOT_INODE = 2
LINK_BYTES_MAX = 4096
DIRECTORY_BYTES_MAX = 1 << 32

_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES = 1024, 1024
_RECOVER, _JOURNAL_DEVICE, _META_BG, _64BIT = 0x4, 0x8, 0x10, 0x80
_EXTENTS = 0x40
_INCOMPATIBLE_KNOWN = 0x2 | _RECOVER | _META_BG | _EXTENTS | _64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000
_INCOMPATIBLE_KNOWN |= 0x8000 | 0x10000 | 0x20000  # inline data, encryption (by file), casefolding
_HAS_JOURNAL, _SPARSE_SUPER = 0x4, 0x1
_EXT4_ONLY = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400 | 0x8000
_INODES_PER_READ = 64
_BLOCKS_PER_READ = 16
_GROUPS_MAX = 1 << 25


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the superblock says; offsets are bytes from the start of the file system."""

    block_bytes: int
    blocks: int
    first_data_block: int
    blocks_per_group: int
    inodes_per_group: int
    inodes: int
    inode_bytes: int
    descriptor_bytes: int
    meta_group_first: int
    incompatible: int
    read_only_compatible: int
    journal_inode: int


class ExtFileSystem:
    """One file system that fills a space. WrongState: not readable, and why."""

    root = ROOT_INODE

    def __init__(self, space: Space) -> None:
        self.space = space
        self.remark = ""
        self._layout = _layout(space)
        self.kind = probe(space).kind  # type: ignore[union-attr]  # the magic was just seen
        self._inode_pages = Recent(256, self._read_inodes)
        self._descriptors = Recent(64, self._read_descriptors)
        self._fast = FastCommits()
        if self._layout.incompatible & _RECOVER:
            self._replay()

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        return self._fast.names_of(number, self._names(number))

    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        inode = self._inode(number)
        if inode.flags & FLAG_ENCRYPTED:
            raise WrongState("its names are encrypted by the guest")
        if inode.flags & FLAG_INLINE:
            yield from _inline_names(self._inline(inode))
            return
        if inode.size_bytes > DIRECTORY_BYTES_MAX:
            raise WrongState(f"it is a directory of {inode.size_bytes} bytes")
        size = self._layout.block_bytes
        for run in self._runs(inode):
            if run.offset is None:
                continue  # a hole: htree directories may have some
            length = min(run.length, inode.size_bytes - run.file_offset)
            for at in range(0, length, size * _BLOCKS_PER_READ):
                content = self.space.read(run.offset + at, min(size * _BLOCKS_PER_READ, length - at))
                for start in range(0, len(content), size):
                    yield from _block_names(content[start : start + size])

    def node(self, number: int) -> Node:
        inode = self._inode(number)
        modified, changed, accessed, created = times_of(inode)
        node = Node(
            number, inode.mode, inode.size_bytes, inode.uid, inode.gid, inode.links,
            modified, changed, accessed, created, device_of(inode),
        )  # fmt: skip
        if inode.links == 0 or inode.flags & FLAG_EA_INODE:
            raise WrongState("it is not in use")
        try:
            if has_attributes_inside(inode) or inode.attribute_block:
                node.attributes = self._attributes(inode)[0]
        except FAULTS as error:
            node.flaw = f"its extended attributes cannot be read: {str(error)[:100]}"
        if stat.S_ISLNK(inode.mode):
            node.target = self._target(inode)
        return node

    def content(self, node: Node) -> bytes | Iterable[Run]:
        inode = self._inode(node.number)
        if inode.flags & FLAG_ENCRYPTED:
            raise WrongState("it is encrypted by the guest")
        return self._content(inode)

    def _content(self, inode: Inode) -> bytes | Iterable[Run]:
        if inode.flags & FLAG_INLINE:
            return self._inline(inode)
        return self._runs(inode)

    def _runs(self, inode: Inode) -> Iterable[Run]:
        size = self._layout.block_bytes
        if inode.flags & FLAG_EXTENTS:
            runs = self._fast.runs_of(inode.number, extent_runs(inode.block, size, self._block))
            return with_holes(runs, inode.size_bytes)
        return pointer_runs(inode.block, inode.size_bytes, size, self._block)

    def _target(self, inode: Inode) -> bytes:
        if not 0 < inode.size_bytes <= LINK_BYTES_MAX:
            raise WrongState("it is a symbolic link without a target")
        if inode.flags & FLAG_ENCRYPTED:
            raise WrongState("it is a symbolic link whose target is encrypted by the guest")
        if inode.size_bytes < BLOCK_BYTES and not inode.flags & (FLAG_EXTENTS | FLAG_INLINE):
            target = inode.block[: inode.size_bytes]
        else:
            target = self._read_whole(inode)
        return target.partition(b"\0")[0]  # as a kernel reads it

    def _read_whole(self, inode: Inode) -> bytes:
        """Return the content of a small inode of the file system's own."""
        content = self._content(inode)
        if not isinstance(content, bytes):
            content = b"".join(
                bytes(run.length) if run.offset is None else self.space.read(run.offset, run.length)
                for run in content
            )
        if len(content) < inode.size_bytes:
            raise WrongState("it is cut short")
        return content[: inode.size_bytes]

    def _attributes(self, inode: Inode) -> tuple[list[tuple[bytes, bytes]], bytes]:
        def large(number: int, size: int) -> bytes:
            value = self._inode(number)
            if not value.flags & FLAG_EA_INODE or value.size_bytes != size:
                raise WrongState("a large attribute's inode is none")
            return self._read_whole(value)

        return attributes_of(inode, self._block, large)

    def _inline(self, inode: Inode) -> bytes:
        """Return what the inode itself holds, and the attribute that continues it."""
        content = inode.block + (self._attributes(inode)[1] if inode.size_bytes > BLOCK_BYTES else b"")
        if len(content) < inode.size_bytes:
            raise WrongState(f"{len(content)} of {inode.size_bytes} bytes of inline data are there")  # E2
        return content[: inode.size_bytes]

    def _inode(self, number: int) -> Inode:
        if not 0 < number <= self._layout.inodes:
            raise WrongState(f"there is no inode {number}")
        page, index = divmod(number - 1, _INODES_PER_READ)
        size = self._layout.inode_bytes
        raw = self._inode_pages.get(page)[index * size : (index + 1) * size]
        return inode_of(number, self._fast.inode_of(number, raw))

    def _read_inodes(self, page: int) -> bytes:
        """Return _INODES_PER_READ inodes, which lie together: a group has a multiple of 8 of them."""
        layout = self._layout
        parts = []
        at, end = page * _INODES_PER_READ, min((page + 1) * _INODES_PER_READ, layout.inodes)
        while at < end:
            group, index = divmod(at, layout.inodes_per_group)
            count = min(end - at, layout.inodes_per_group - index)
            table = self._inode_table(group) * layout.block_bytes
            parts.append(self.space.read(table + index * layout.inode_bytes, count * layout.inode_bytes))
            at += count
        return b"".join(parts)

    def _inode_table(self, group: int) -> int:
        layout = self._layout
        per_block = layout.block_bytes // layout.descriptor_bytes
        block, index = divmod(group, per_block)
        at = index * layout.descriptor_bytes
        descriptors = self._descriptors.get(block)
        table: int = struct.unpack_from("<I", descriptors, at + 8)[0]
        if layout.descriptor_bytes >= 64:
            table |= struct.unpack_from("<I", descriptors, at + 0x28)[0] << 32
        return table

    def _read_descriptors(self, meta_group: int) -> bytes:
        layout = self._layout
        if meta_group < layout.meta_group_first:
            block = 1024 // layout.block_bytes + 1 + meta_group
        else:  # beside the group's own superblock, if it has one
            first = meta_group * (layout.block_bytes // layout.descriptor_bytes)
            has_superblock = not layout.read_only_compatible & _SPARSE_SUPER or _has_superblock(first)
            block = layout.first_data_block + first * layout.blocks_per_group + has_superblock
        return self._block(block)

    def _block(self, number: int) -> bytes:
        return self.space.read(number * self._layout.block_bytes, self._layout.block_bytes)

    def _replay(self) -> None:
        layout = self._layout
        if not layout.journal_inode:
            raise WrongState("the file system was in use, and its journal is on another disk")
        journal = self._inode(layout.journal_inode)
        replayed = replay_in(
            self.space,
            list(self._runs(journal)),
            layout.block_bytes,
            journal.size_bytes // layout.block_bytes,
        )
        self._fast = replayed.fast
        self.space = Overlaid(self.space, layout.block_bytes, replayed.blocks)
        self._layout = _layout(self.space)
        self._inode_pages = Recent(256, self._read_inodes)
        self._descriptors = Recent(64, self._read_descriptors)


def probe(space: Space) -> Label | None:
    """Return kind and label of an ext file system, if one seems to be there."""
    if space.size_bytes < _SUPERBLOCK_OFFSET + _SUPERBLOCK_BYTES:
        return None
    block = space.read(_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES)
    if block[56:58] != b"\x53\xef":
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", block, 92)
    kind = "ext3" if compatible & _HAS_JOURNAL else "ext2"
    if incompatible & ~(0x2 | _RECOVER | _META_BG) or read_only & _EXT4_ONLY:
        kind = "jbd" if incompatible & _JOURNAL_DEVICE else "ext4"
    return Label(kind, text_of(block[120:136]), uuid_of(block[104:120]))


def _layout(space: Space) -> _Layout:
    block = space.read(_SUPERBLOCK_OFFSET, _SUPERBLOCK_BYTES)
    inodes, blocks = struct.unpack_from("<II", block, 0)
    first_data_block, log_block = struct.unpack_from("<II", block, 20)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", block, 32)
    revision = struct.unpack_from("<I", block, 76)[0]
    incompatible, read_only = struct.unpack_from("<II", block, 96) if revision else (0, 0)
    inode_bytes = struct.unpack_from("<H", block, 88)[0] if revision else 128
    descriptor_bytes = struct.unpack_from("<H", block, 254)[0] if incompatible & _64BIT else 32
    if incompatible & _JOURNAL_DEVICE:
        raise WrongState("it is the journal of another file system")
    if unknown := incompatible & ~_INCOMPATIBLE_KNOWN:  # E1
        raise WrongState(f"the ext file system has features unknown here: {unknown:#x}")
    if incompatible & _64BIT:
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
    sound = log_block <= 6 and blocks_per_group and inodes_per_group and block[56:58] == b"\x53\xef"
    if not sound or not 128 <= inode_bytes <= 1024 << log_block or not 32 <= descriptor_bytes <= 1024:
        raise WrongState("the superblock of the ext file system contradicts itself")
    if inodes // inodes_per_group > _GROUPS_MAX or 1024 << log_block < descriptor_bytes:
        raise WrongState("the superblock of the ext file system contradicts itself")
    return _Layout(
        block_bytes=1024 << log_block,
        blocks=blocks,
        first_data_block=first_data_block,
        blocks_per_group=blocks_per_group,
        inodes_per_group=inodes_per_group,
        inodes=inodes,
        inode_bytes=inode_bytes,
        descriptor_bytes=descriptor_bytes,
        meta_group_first=struct.unpack_from("<I", block, 260)[0] if incompatible & _META_BG else 1 << 32,
        incompatible=incompatible,
        read_only_compatible=read_only,
        journal_inode=struct.unpack_from("<I", block, 224)[0],
    )


def _has_superblock(group: int) -> bool:
    """Say whether sparse_super keeps a superblock here: in groups 0, 1 and the powers of 3, 5 and 7."""
    return group <= 1 or any(group == base**power for base in (3, 5, 7) for power in range(1, 24))


def _block_names(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names of one block of a directory; those of an index have inode 0."""
    at, size = 0, len(block)
    unpack = struct.Struct("<IHB").unpack_from
    while at + 8 <= size:
        inode, record_bytes, name_bytes = unpack(block, at)
        if size >= 65536:
            record_bytes = (
                65536 if record_bytes in {0, 65535} else record_bytes & 65532 | (record_bytes & 3) << 16
            )
        if record_bytes < 8 or at + record_bytes > size or 8 + name_bytes > record_bytes:
            raise WrongState("a block of this directory contradicts itself")
        if inode and name_bytes:
            name = block[at + 8 : at + 8 + name_bytes]
            if name not in {b".", b".."}:
                yield name, inode
        at += record_bytes


def _inline_names(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names of a directory in its inode: the parent's number, then entries in two parts."""
    yield from _block_names(content[4:BLOCK_BYTES])
    yield from _block_names(content[BLOCK_BYTES:])
