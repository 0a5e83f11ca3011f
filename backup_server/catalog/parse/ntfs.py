"""Read NTFS.

Where other file systems have an owner and permissions, a file has its security descriptor
(``system.ntfs_acl``) and flags (``system.ntfs_attrib``), named as ntfs-3g does. Alternate streams are files
beside theirs, ``file:stream``. Invariants: T1 what is compressed or encrypted, or replaced by a filter of
Windows (reparse points other than links), is refused. T2 bytes behind a stream's initialized length are
zeros, whatever lies there. A dirty log is not replayed: the volume's remark says so.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator

from arraylift.errors import WrongState
from backup_server.catalog.entry import NO_TIME
from backup_server.catalog.parse import ntfs_records as form
from backup_server.catalog.parse.filesystem import FAULTS, Label, Node, Recent, clamped
from backup_server.catalog.parse.ntfs_records import Attribute, Geometry, Record, Table
from backup_server.catalog.parse.space import Space
from backup_server.catalog.pieces import Run

INDEX_BYTES_MAX = 1 << 30
DESCRIPTORS_BYTES_MAX = 64 << 20
DESCRIPTOR_BYTES_MAX = 1 << 16
STREAMS_MAX = 1024
_STREAM_SHIFT = 48
"""A stream's number is its file's and, above, its own among the streams."""
_NUMBER = (1 << _STREAM_SHIFT) - 1
_SYSTEM_FILES = 24
_DOS_NAME = 2
_READ_ONLY = 0x1
_SYMLINK, _MOUNT_POINT = 0xA000000C, 0xA0000003
_EPOCH = 11_644_473_600
_DESCRIPTORS_CHUNK = 1 << 18
_DIRTY = 0x1
_CLEAN = 0x2


class NtfsFileSystem:
    """One file system that fills a space. WrongState: not readable, and why."""

    kind = "ntfs"
    root = form.ROOT

    def __init__(self, space: Space) -> None:
        self.space = space
        self._table = Table(space, _geometry(space))
        self._descriptors: dict[int, tuple[int, int]] | None = None
        self._descriptor_stream: Attribute | None = None
        self._values = Recent(256, self._descriptor)
        self.remark = ""
        if self._is_dirty():
            self.remark = "it was in use, and its log is not replayed: the newest changes may be missing"

    def names(self, number: int) -> Iterator[tuple[bytes, int]]:
        directory = self._table.record(number)
        if not directory.is_directory:
            raise WrongState("it is no directory")
        seen: set[int] = set()
        for entries in self._index(directory):
            for reference, name in _index_names(entries):
                if reference < _SYSTEM_FILES and reference != number:
                    continue  # the file system's own
                if reference == number:
                    continue  # the root is in itself
                yield name, reference
                if reference not in seen:
                    seen.add(reference)
                    yield from self._stream_names(name, reference)

    def node(self, number: int) -> Node:
        record = self._table.record(number & _NUMBER)
        stream = number >> _STREAM_SHIFT
        standard = record.first(form.STANDARD)
        if standard is None or len(standard.value) < 36:
            raise WrongState("it has no times")
        created, modified, changed, accessed, flags = struct.unpack_from("<QQQQI", standard.value)
        is_directory = record.is_directory and not stream
        mode = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
        data = self._stream(record, stream)
        node = Node(
            number,
            mode & ~0o222 if flags & _READ_ONLY and not is_directory else mode,
            0 if data is None or is_directory else data.size_bytes,
            links=max(1, record.links),
            modified_ns=_time(modified),
            changed_ns=_time(changed),
            accessed_ns=_time(accessed),
            created_ns=_time(created),
            inode=record.number,
        )
        if stream:
            return node
        node.attributes.append((b"system.ntfs_attrib", struct.pack("<I", flags)))
        try:
            node.attributes += self._security(record, standard)
        except FAULTS as error:
            node.flaw = f"its security descriptor cannot be read: {str(error)[:100]}"
        reparse = record.first(form.REPARSE)
        if reparse is not None:
            self._linked(node, reparse)
        return node

    def content(self, node: Node) -> bytes | Iterable[Run]:
        record = self._table.record(node.number & _NUMBER)
        data = self._stream(record, node.number >> _STREAM_SHIFT)
        if not node.number >> _STREAM_SHIFT and (reparse := record.first(form.REPARSE)) is not None:
            raise WrongState(f"a filter of Windows keeps its content: {_tag(reparse):#x}")  # T1
        if data is None:
            raise WrongState("it has no content")
        if data.flags & form.ENCRYPTED:
            raise WrongState("it is encrypted by the guest")
        if data.is_resident:
            return data.value
        if data.flags & form.COMPRESSED:
            raise WrongState("it is compressed by NTFS, which cannot be read here")
        return _initialized(self._table.runs(data), data)

    def _stream(self, record: Record, index: int) -> Attribute | None:
        if not index:
            return record.first(form.DATA)
        return _streams(record)[index - 1]

    def _stream_names(self, name: bytes, reference: int) -> Iterator[tuple[bytes, int]]:
        try:
            streams = _streams(self._table.record(reference))
        except FAULTS:
            return  # the file's own entry says what is wrong
        for index, stream in enumerate(streams, 1):
            own = stream.name.encode("utf-8", "surrogatepass")
            if b"/" not in own and b"\0" not in own:
                yield name + b":" + own, reference | index << _STREAM_SHIFT

    def _index(self, directory: Record) -> Iterator[bytes]:
        """Yield the entries of each node of a directory's index that is in use."""
        root = directory.first(form.INDEX_ROOT, "$I30")
        if root is None or len(root.value) < 32:
            raise WrongState("the directory has no index")
        start, length = struct.unpack_from("<II", root.value, 16)
        yield root.value[16 + start : 16 + length]
        blocks = directory.first(form.INDEX_ALLOCATION, "$I30")
        if blocks is None:
            return
        used = directory.first(form.BITMAP, "$I30")
        size = int.from_bytes(root.value[8:12], "little")
        if used is None or size not in {512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}:
            raise WrongState("the index of the directory is damaged")
        if blocks.size_bytes > INDEX_BYTES_MAX:
            raise WrongState(f"an index of {blocks.size_bytes} bytes")
        bits = self._table.read(used, INDEX_BYTES_MAX // 4096)
        at, pending = 0, b""
        for run in self._table.runs(blocks):
            if run.offset is None:
                raise WrongState("the index of the directory has a hole")
            for skip in range(0, run.length, 65536):
                pending += self.space.read(run.offset + skip, min(65536, run.length - skip))
                while len(pending) >= size:
                    if at // 8 < len(bits) and bits[at // 8] >> at % 8 & 1 and at * size < blocks.size_bytes:
                        block = form.mended_index(pending[:size])
                        start, length = struct.unpack_from("<II", block, 24)
                        yield block[24 + start : 24 + length]
                    at, pending = at + 1, pending[size:]

    def _linked(self, node: Node, reparse: Attribute) -> None:
        tag = _tag(reparse)
        if tag in {_SYMLINK, _MOUNT_POINT}:
            offset, length, shown_at, shown_bytes = struct.unpack_from("<HHHH", reparse.value, 8)
            start = 20 if tag == _SYMLINK else 16
            if shown_bytes:
                offset, length = shown_at, shown_bytes
            target = reparse.value[start + offset : start + offset + length]
            text = target.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
            if not text or len(target) != length or b"\0" in text:
                raise WrongState("it is a link without a target")
            node.mode, node.size_bytes, node.target = stat.S_IFLNK | 0o777, len(text), text

    def _security(self, record: Record, standard: Attribute) -> list[tuple[bytes, bytes]]:
        own = record.first(form.DESCRIPTOR)
        if own is not None:
            return [(b"system.ntfs_acl", self._table.read(own, DESCRIPTOR_BYTES_MAX))]
        if len(standard.value) < 56:
            return []
        (number,) = struct.unpack_from("<I", standard.value, 52)
        return [(b"system.ntfs_acl", self._values.get(number))] if number else []

    def _descriptor(self, number: int) -> bytes:
        """Return one of the security descriptors that files share."""
        if self._descriptors is None:
            self._descriptors = dict(self._shared_descriptors())
        if number not in self._descriptors:
            raise WrongState(f"there is no security descriptor {number}")
        assert self._descriptor_stream is not None
        start, length = self._descriptors[number]
        for run in self._table.runs(self._descriptor_stream):
            skip = start - run.file_offset
            if skip >= 0 and skip + length <= run.length and run.offset is not None:
                return self.space.read(run.offset + skip, length)
        return self._table.read(self._descriptor_stream, DESCRIPTORS_BYTES_MAX)[start : start + length]

    def _shared_descriptors(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield (number, (place in the stream, length)); every second chunk of the stream is a copy."""
        stream = self._table.record(form.SECURE).first(form.DATA, "$SDS")
        if stream is None:
            return
        self._descriptor_stream = stream
        content = self._table.read(stream, DESCRIPTORS_BYTES_MAX)
        for chunk in range(0, len(content), 2 * _DESCRIPTORS_CHUNK):
            at, end = chunk, min(chunk + _DESCRIPTORS_CHUNK, len(content))
            while at + 20 <= end:
                _, number, place, length = struct.unpack_from("<IIQI", content, at)
                if place != at or not 20 < length <= DESCRIPTOR_BYTES_MAX or at + length > end:
                    break
                yield number, (at + 20, length - 20)
                at += (length + 15) & ~15

    def _is_dirty(self) -> bool:
        try:
            information = self._table.record(form.VOLUME).first(0x70)
            if information is not None and int.from_bytes(information.value[10:12], "little") & _DIRTY:
                return True
            log = self._table.record(2).first(form.DATA)
            if log is None or log.is_resident:
                return True
            first = self._table.runs(log)[0]
            if first.offset is None:
                return True
            page = self.space.read(first.offset, 4096)
            if page[:4] != b"RSTR":
                return page[:4] != b"\xff\xff\xff\xff"  # emptied
            at = int.from_bytes(page[24:26], "little")
            in_use, flags = struct.unpack_from("<HH", page, at + 12)
            return not (in_use == 0xFFFF or flags & _CLEAN)
        except FAULTS:
            return True


def probe(space: Space) -> Label | None:
    """Return the label of an NTFS, if one seems to be there."""
    if space.size_bytes < 512:
        return None
    sector = space.read(0, 512)
    if sector[3:11] != b"NTFS    ":
        return None
    serial = sector[72:80][::-1].hex().upper()
    label = ""
    try:
        name = Table(space, _geometry(space)).record(form.VOLUME).first(0x60)
        label = name.value.decode("utf-16-le", "replace") if name is not None else ""
    except FAULTS:
        pass  # opening it says what is wrong
    return Label("ntfs", label, serial)


def _geometry(space: Space) -> Geometry:
    sector = space.read(0, 512)
    sector_bytes, per_cluster = struct.unpack_from("<HB", sector, 11)
    sectors, mft = struct.unpack_from("<QQ", sector, 40)
    record_clusters, index_clusters = struct.unpack_from("<b3xb", sector, 64)
    if per_cluster > 0x80:
        per_cluster = 1 << 256 - per_cluster
    cluster = sector_bytes * per_cluster
    record = cluster * record_clusters if record_clusters > 0 else 1 << -record_clusters
    index = cluster * index_clusters if index_clusters > 0 else 1 << -index_clusters
    sound = (
        sector_bytes in {512, 1024, 2048, 4096} and 512 <= cluster <= 2 << 20 and not cluster & (cluster - 1)
    )
    if not sound or not 1024 <= record <= 65536 or record & (record - 1) or not sectors:
        raise WrongState("the boot sector of the NTFS contradicts itself")
    if sectors * sector_bytes > space.size_bytes:
        raise WrongState("the NTFS is larger than its volume")
    return Geometry(cluster, record, index, space.size_bytes // cluster, mft)


def _streams(record: Record) -> list[Attribute]:
    """Return the alternate streams in the order of their names."""
    found = sorted((one for one in record.all(form.DATA) if one.name), key=lambda one: one.name)
    return found[:STREAMS_MAX]


def _index_names(entries: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(entries):
        reference, length, key_bytes, flags = struct.unpack_from("<QHHH", entries, at)
        if flags & 2:
            return
        if length < 16 or at + length > len(entries) or key_bytes < 66:
            raise WrongState("the index of the directory is damaged")
        key = entries[at + 16 : at + 16 + key_bytes]
        if key[65] != _DOS_NAME:
            units = key[66 : 66 + 2 * key[64]]
            yield (
                reference & _NUMBER,
                units.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass"),
            )
        at += length


def _initialized(runs: list[Run], data: Attribute) -> Iterator[Run]:
    """Yield runs, with zeros behind what was ever written (T2)."""
    end = data.initialized_bytes
    for run in runs:
        if run.offset is None or run.file_offset + run.length <= end:
            yield run
            continue
        kept = max(0, end - run.file_offset)
        if kept:
            yield Run(run.file_offset, kept, run.offset)
        yield Run(run.file_offset + kept, run.length - kept, None)


def _tag(reparse: Attribute) -> int:
    return int.from_bytes(reparse.value[:4], "little")


def _time(ticks: int) -> int:
    """Of 100 ns since 1601."""
    return clamped(ticks * 100 - _EPOCH * 1_000_000_000) if ticks else NO_TIME
