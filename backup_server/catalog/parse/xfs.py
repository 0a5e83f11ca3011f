"""Read XFS, versions 4 and 5.

Invariants: X1 a feature that is unknown, or that hides content, is refused. X2 an inode counts only if it is
in use and, in version 5, says that it is itself. X3 what is in a realtime device is refused. A dirty log is
not replayed: the volume's remark says so. Layout: "XFS Algorithms and Data Structures" of the kernel's
documentation project. All numbers big-endian.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from arraylift.errors import WrongState
from backup_server.catalog.entry import NO_TIME
from backup_server.catalog.parse.filesystem import (
    FAULTS,
    NS,
    RUNS_MAX,
    Label,
    Node,
    clamped,
    text_of,
    uuid_of,
    with_holes,
)
from backup_server.catalog.parse.space import Space
from backup_server.catalog.parse.xfs_attributes import AttributeFork
from backup_server.catalog.parse.xfs_log import is_log_dirty
from backup_server.catalog.pieces import Run

MAGIC = b"XFSB"
SUPERBLOCK_BYTES = 512
LINK_BYTES_MAX = 1024
_FTYPE, _BIGTIME, _NEEDSREPAIR = 0x1, 0x8, 0x10
_INCOMPATIBLE_KNOWN = _FTYPE | 0x2 | 0x4 | _BIGTIME | 0x20 | 0x40 | 0x80
"""Also sparse inodes, a second UUID, large counts of extents, exchange of ranges, parent pointers."""
_FEATURES2_FTYPE = 0x200
_DEVICE, _LOCAL, _EXTENTS, _BTREE = 0, 1, 2, 3
_FLAG_REALTIME, _FLAGS2_BIGTIME, _FLAGS2_MANY_EXTENTS = 0x1, 0x8, 0x10
_DIRECTORY_DATA_BYTES = 1 << 35
"""Above this offset of a directory are its indexes."""
_BTREE_LEVELS_MAX = 9
_REMOTE_HEADER = 56


@dataclass(frozen=True, slots=True)
class Layout:
    """What the superblock says."""

    version: int
    block_bytes: int
    blocks: int
    root: int
    group_blocks: int
    groups: int
    inode_bytes: int
    inodes_per_block_log: int
    group_blocks_log: int
    directory_block_bytes: int
    has_types: bool
    log_start: int
    log_blocks: int


@dataclass(slots=True)
class Inode:
    """One inode; the forks are what is inside it of data and attributes."""

    number: int
    raw: bytes
    mode: int
    format: int
    attribute_format: int
    extents: int
    attribute_extents: int
    size_bytes: int
    data_fork: bytes
    attribute_fork: bytes


class XfsFileSystem:
    """One file system that fills a space. WrongState: not readable, and why."""

    kind = "xfs"

    def __init__(self, space: Space) -> None:
        self.space = space
        self._layout = layout = _layout(space)
        self.root = layout.root
        self.remark = ""
        if layout.log_start and is_log_dirty(
            space, self._byte(layout.log_start), layout.log_blocks * layout.block_bytes
        ):
            self.remark = "it was in use, and its log is not replayed: the newest changes may be missing"

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        inode = self._inode(number)
        if inode.format == _LOCAL:
            yield from _short_names(inode.data_fork[: inode.size_bytes], self._layout.has_types)
            return
        size = self._layout.directory_block_bytes
        pending = b""
        for run in sorted(self._runs(inode)):
            if run.file_offset >= _DIRECTORY_DATA_BYTES or run.offset is None:
                continue
            for at in range(0, run.length, size):
                pending += self.space.read(run.offset + at, min(size, run.length - at))
                while len(pending) >= size:  # a directory's block may lie in several extents
                    yield from _block_names(pending[:size], self._layout.has_types)
                    pending = pending[size:]
        if pending:
            raise WrongState("its last block is cut short")

    def node(self, number: int) -> Node:
        inode = self._inode(number)
        raw = inode.raw
        uid, gid, links = struct.unpack_from(">III", raw, 8)
        old_links = struct.unpack_from(">H", raw, 6)[0]
        big = self._has_big_times(raw)
        accessed, modified, changed = (_time(raw, at, big=big) for at in (32, 40, 48))
        node = Node(
            number, inode.mode, inode.size_bytes, uid, gid, links if raw[4] >= 2 else old_links,
            modified, changed, accessed, _time(raw, 144, big=big) if raw[4] >= 3 else NO_TIME,
        )  # fmt: skip
        if inode.format == _DEVICE and (stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)):
            device = int.from_bytes(inode.data_fork[:4], "big")
            node.device = (device >> 18, device & 0x3FFFF)
        if not stat.S_ISREG(inode.mode) and not stat.S_ISLNK(inode.mode) and not stat.S_ISDIR(inode.mode):
            node.size_bytes = 0
        try:
            if inode.attribute_fork:
                node.attributes = self._attributes(inode)
        except FAULTS as error:
            node.flaw = f"its extended attributes cannot be read: {str(error)[:100]}"
        if stat.S_ISLNK(inode.mode):
            node.target = self._target(inode)
        return node

    def content(self, node: Node) -> bytes | Iterable[Run]:
        inode = self._inode(node.number)
        if struct.unpack_from(">H", inode.raw, 90)[0] & _FLAG_REALTIME:
            raise WrongState("it lies on a realtime device")  # X3
        return with_holes(self._runs(inode), inode.size_bytes)

    def _has_big_times(self, raw: bytes) -> bool:
        return raw[4] >= 3 and bool(struct.unpack_from(">Q", raw, 120)[0] & _FLAGS2_BIGTIME)

    def _inode(self, number: int) -> Inode:
        layout = self._layout
        shift = layout.inodes_per_block_log
        group, rest = divmod(number, 1 << layout.group_blocks_log + shift)
        block, index = divmod(rest, 1 << shift)
        if number < 0 or group >= layout.groups or block >= layout.group_blocks:
            raise WrongState(f"there is no inode {number}")
        at = (group * layout.group_blocks + block) * layout.block_bytes + index * layout.inode_bytes
        raw = self.space.read(at, layout.inode_bytes)
        magic, mode, version, form, _ = struct.unpack_from(">HHBBH", raw)
        core = 176 if version >= 3 else 100
        if magic != 0x494E or not mode or version != (3 if layout.version == 5 else version) or version > 3:
            raise WrongState(f"inode {number} is not in use")  # X2
        if version >= 3 and struct.unpack_from(">Q", raw, 152)[0] != number:
            raise WrongState(f"inode {number} says that it is another")
        size, _, _, extents, attribute_extents = struct.unpack_from(">QQIIH", raw, 56)
        if version >= 3 and struct.unpack_from(">Q", raw, 120)[0] & _FLAGS2_MANY_EXTENTS:
            extents, attribute_extents = struct.unpack_from(">Q", raw, 24)[0], extents
        split = core + raw[82] * 8 if raw[82] else len(raw)
        if split > len(raw):
            raise WrongState(f"inode {number} contradicts itself")
        return Inode(
            number, raw, mode, form, raw[83], extents, attribute_extents, size, raw[core:split], raw[split:]
        )

    def _runs(self, inode: Inode) -> list[Run]:
        return self._fork_runs(inode.format, inode.data_fork, inode.extents)

    def _fork_runs(self, form: int, fork: bytes, extents: int) -> list[Run]:
        runs: list[Run] = []
        if form == _EXTENTS:
            if extents * 16 > len(fork):
                raise WrongState("it has more extents than its inode holds")
            self._records(fork, extents, runs)
        elif form == _BTREE:
            level, count = struct.unpack_from(">HH", fork)
            if not 0 < level <= _BTREE_LEVELS_MAX:
                raise WrongState(f"its tree of extents is {level} levels deep")
            most = (len(fork) - 4) // 16
            self._pointers(fork, 4, most, count, level, runs)
        else:
            raise WrongState(f"its extents have the unknown format {form}")
        return runs

    def _pointers(self, block: bytes, at: int, most: int, count: int, level: int, runs: list[Run]) -> None:
        if count > most:
            raise WrongState("its tree of extents is damaged")
        for pointer in struct.unpack_from(f">{count}Q", block, at + 8 * most):
            self._tree_block(pointer, level - 1, runs)

    def _tree_block(self, number: int, level: int, runs: list[Run]) -> None:
        size = self._layout.block_bytes
        block = self.space.read(self._byte(number), size)
        header = {b"BMAP": 24, b"BMA3": 72}.get(block[:4], 0)
        own_level, count = struct.unpack_from(">HH", block, 4)
        if not header or own_level != level:
            raise WrongState("its tree of extents is damaged")
        if level:
            self._pointers(block, header, (size - header) // 16, count, level, runs)
        else:
            if header + 16 * count > size:
                raise WrongState("its tree of extents is damaged")
            self._records(block[header:], count, runs)

    def _records(self, packed: bytes, count: int, runs: list[Run]) -> None:
        """Append packed extents: 1 bit for preallocated, 54 of file offset, 52 of block, 21 of length."""
        size = self._layout.block_bytes
        if len(runs) + count > RUNS_MAX:
            raise WrongState(f"it has more than {RUNS_MAX} extents")
        for high, low in struct.iter_unpack(">QQ", packed[: 16 * count]):
            start: int | None = None
            if not high >> 63:
                start = self._byte((high & 0x1FF) << 43 | low >> 21)
            length = (low & 0x1FFFFF) * size
            if length:
                runs.append(Run((high >> 9 & (1 << 54) - 1) * size, length, start))

    def _byte(self, block: int) -> int:
        """Return where a block is: its number has the allocation group in its upper bits."""
        layout = self._layout
        group, index = divmod(block, 1 << layout.group_blocks_log)
        if group >= layout.groups or index >= layout.group_blocks:
            raise WrongState(f"there is no block {block:#x}")
        return (group * layout.group_blocks + index) * layout.block_bytes

    def _target(self, inode: Inode) -> bytes:
        if not 0 < inode.size_bytes <= LINK_BYTES_MAX:
            raise WrongState("it is a symbolic link without a target")
        if inode.format == _LOCAL:
            return inode.data_fork[: inode.size_bytes]
        return self._remote(self._runs(inode), inode.size_bytes, b"XSLM")

    def _remote(self, runs: list[Run], length: int, magic: bytes) -> bytes:
        """Return a link's target or an attribute's value in blocks, which bear a header in version 5."""
        size = self._layout.block_bytes
        content = b""
        for run in sorted(runs):
            if run.offset is None:
                raise WrongState("a hole where a value should be")
            for at in range(0, run.length, size):
                if len(content) >= length:
                    break
                block = self.space.read(run.offset + at, size)
                if self._layout.version == 5:
                    if block[:4] != magic:
                        raise WrongState("a block of a value is damaged")
                    block = block[_REMOTE_HEADER:]
                content += block
        if len(content) < length:
            raise WrongState("a value is cut short")
        return content[:length]

    def _attributes(self, inode: Inode) -> list[tuple[bytes, bytes]]:
        size = self._layout.block_bytes
        if inode.attribute_format == _LOCAL:
            return AttributeFork.short(inode.attribute_fork)
        if inode.attribute_format == _EXTENTS and not inode.attribute_extents:
            return []
        runs = sorted(self._fork_runs(inode.attribute_format, inode.attribute_fork, inode.attribute_extents))

        def cut(block: int) -> list[Run]:
            """The runs of the fork from a block on."""
            start = block * size
            return [
                Run(max(run.file_offset, start), run.length - max(0, start - run.file_offset),
                    None if run.offset is None else run.offset + max(0, start - run.file_offset))
                for run in runs
                if run.file_offset + run.length > start
            ]  # fmt: skip

        def read_block(block: int) -> bytes:
            for run in cut(block)[:1]:
                if run.offset is not None and run.file_offset == block * size:
                    return self.space.read(run.offset, size)
            raise WrongState("a block of attributes is not there")

        def read_value(block: int, length: int) -> bytes:
            return self._remote(cut(block), length, b"XARM")

        return AttributeFork(read_block, read_value).all()


def probe(space: Space) -> Label | None:
    """Return the label of an XFS, if one seems to be there."""
    if space.size_bytes < SUPERBLOCK_BYTES:
        return None
    block = space.read(0, SUPERBLOCK_BYTES)
    if block[:4] != MAGIC:
        return None
    return Label("xfs", text_of(block[108:120]), uuid_of(block[32:48]))


def _layout(space: Space) -> Layout:
    block = space.read(0, SUPERBLOCK_BYTES)
    block_bytes, blocks = struct.unpack_from(">IQ", block, 4)
    log_start, root = struct.unpack_from(">QQ", block, 48)
    group_blocks, groups, _, log_blocks, version, _, inode_bytes, _ = struct.unpack_from(
        ">IIIIHHHH", block, 84
    )
    block_log, _, inode_log, per_block_log, group_log = block[120:125]
    directory_log = block[192]
    features2 = struct.unpack_from(">I", block, 200)[0]
    number = version & 0xF
    if number not in {4, 5}:
        raise WrongState(f"XFS of the unknown version {number}")
    has_types = bool(version & 0x8000 and features2 & _FEATURES2_FTYPE)
    if number == 5:
        incompatible = struct.unpack_from(">I", block, 216)[0]
        if incompatible & _NEEDSREPAIR:
            raise WrongState("the XFS says of itself that it needs repair")
        if unknown := incompatible & ~_INCOMPATIBLE_KNOWN:  # X1
            raise WrongState(f"the XFS has features unknown here: {unknown:#x}")
        has_types = bool(incompatible & _FTYPE)
    sound = 9 <= block_log <= 16 and block_bytes == 1 << block_log and inode_bytes == 1 << inode_log
    sound = sound and 8 <= inode_log <= 11 and per_block_log == block_log - inode_log >= 0
    sound = sound and 0 < group_blocks <= 1 << group_log <= 1 << 31 and 0 < groups <= 1 << 24
    if not sound or directory_log + block_log > 16 or blocks > groups * group_blocks:
        raise WrongState("the superblock of the XFS contradicts itself")
    return Layout(
        number, block_bytes, blocks, root, group_blocks, groups, inode_bytes, per_block_log, group_log,
        block_bytes << directory_log, has_types, log_start, log_blocks,
    )  # fmt: skip


def _time(raw: bytes, at: int, *, big: bool) -> int:
    if big:
        return clamped(struct.unpack_from(">Q", raw, at)[0] - (NS << 31))
    seconds, nanoseconds = struct.unpack_from(">iI", raw, at)
    return clamped(seconds * NS + min(nanoseconds, NS - 1))


def _short_names(fork: bytes, has_types: bool) -> Iterator[tuple[bytes, int]]:
    """Yield the names of a directory that lies in its inode."""
    count, wide = fork[0], 8 if fork[1] else 4
    at = 2 + wide
    for _ in range(count):
        length = fork[at]
        name_at = at + 3
        number_at = name_at + length + has_types
        if number_at + wide > len(fork):
            raise WrongState("a directory in its inode contradicts itself")
        yield fork[name_at : name_at + length], int.from_bytes(fork[number_at : number_at + wide], "big")
        at = number_at + wide


def _block_names(block: bytes, has_types: bool) -> Iterator[tuple[bytes, int]]:
    magic = block[:4]
    if magic not in {b"XD2B", b"XD2D", b"XDB3", b"XDD3"}:
        raise WrongState("a block of this directory is damaged")
    at, end = 64 if magic.endswith(b"3") else 16, len(block)
    if magic in {b"XD2B", b"XDB3"}:  # the index is at the block's end
        (leaves,) = struct.unpack_from(">I", block, end - 8)
        end -= 8 + 8 * leaves
    while at + 8 <= end:
        if block[at : at + 2] == b"\xff\xff":
            length = int.from_bytes(block[at + 2 : at + 4], "big")
        else:
            name_bytes = block[at + 8]
            length = (8 + 1 + name_bytes + has_types + 2 + 7) & ~7
            name = block[at + 9 : at + 9 + name_bytes]
            if at + length <= end and name not in {b".", b".."}:
                yield name, int.from_bytes(block[at : at + 8], "big")
        if length < 8 or at + length > end:
            raise WrongState("a block of this directory contradicts itself")
        at += length
