"""NTFS: records of the master file table, their attributes, and runs of those.

Invariants: N1 a record counts only if it is in use and every sector of it bears its record's mark. N2 an
attribute in several parts counts only if these follow each other from the start to its end. Layout: as
Linux's ntfs3 and libfsntfs's documentation have it. All numbers little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from arraylift.errors import WrongState
from backup_server.catalog.parse.filesystem import RUNS_MAX, Recent
from backup_server.catalog.parse.space import Space
from backup_server.catalog.pieces import Run

SECTOR = 512
MFT, VOLUME, ROOT, SECURE = 0, 3, 5, 9
STANDARD, ATTRIBUTE_LIST, FILE_NAME, DESCRIPTOR, DATA = 0x10, 0x20, 0x30, 0x50, 0x80
INDEX_ROOT, INDEX_ALLOCATION, BITMAP, REPARSE = 0x90, 0xA0, 0xB0, 0xC0
COMPRESSED, ENCRYPTED = 0x00FF, 0x4000
LIST_BYTES_MAX = 1 << 20
EXTENSIONS_MAX = 4096
_END = 0xFFFFFFFF
_IN_USE, _DIRECTORY = 1, 2
_REFERENCE = (1 << 48) - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the boot sector says."""

    cluster_bytes: int
    record_bytes: int
    index_bytes: int
    clusters: int
    mft_cluster: int


@dataclass(slots=True)
class Attribute:
    """One attribute: resident with its value, or with the runs of clusters of its parts."""

    kind: int
    name: str
    flags: int
    value: bytes = b""
    is_resident: bool = True
    size_bytes: int = 0
    initialized_bytes: int = 0
    parts: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(first cluster, last cluster, packed runs)"""


@dataclass(slots=True)
class Record:
    """A file by its number in the table, with the attributes of all its records."""

    number: int
    is_directory: bool
    links: int
    attributes: list[Attribute]

    def first(self, kind: int, name: str = "") -> Attribute | None:
        return next((one for one in self.attributes if one.kind == kind and one.name == name), None)

    def all(self, kind: int) -> list[Attribute]:
        return [one for one in self.attributes if one.kind == kind]


class Table:
    """The master file table of a volume."""

    def __init__(self, space: Space, geometry: Geometry) -> None:
        self.space, self.geometry = space, geometry
        self._records = Recent(1024, self._read)
        first = space.read(geometry.mft_cluster * geometry.cluster_bytes, geometry.record_bytes)
        self._runs = [Run(0, geometry.record_bytes, geometry.mft_cluster * geometry.cluster_bytes)]
        own = self._attributes(_mended(first, b"FILE"))
        for attribute in own:  # what record 0 itself says, to read those that continue it
            if attribute.kind == DATA and not attribute.name:
                self._runs = self.runs(attribute, whole=False)
        whole = self.record(MFT).first(DATA)
        if whole is None:
            raise WrongState("the table of files has no content")
        self._runs = self.runs(whole)
        self.count = whole.size_bytes // geometry.record_bytes

    def record(self, number: int) -> Record:
        """Return a file's record, of which there is none if it only continues another."""
        return self._records.get(number)

    def runs(self, attribute: Attribute, *, whole: bool = True) -> list[Run]:
        """Return the runs of an attribute that is not resident; those that are sparse have no offset."""
        size = self.geometry.cluster_bytes
        runs: list[Run] = []
        at = 0
        for first, last, packed in sorted(attribute.parts):
            if first != at:
                raise WrongState("an attribute of several parts has a gap")  # N2
            for length, start in _unpacked(packed, self.geometry.clusters):
                runs.append(Run(at * size, length * size, None if start is None else start * size))
                at += length
            if at != last + 1 or len(runs) > RUNS_MAX:
                raise WrongState("the runs of an attribute contradict it")
        if whole and at * size < attribute.size_bytes:
            raise WrongState("the runs of an attribute are shorter than it")  # N2
        return runs

    def read(self, attribute: Attribute, length_max: int) -> bytes:
        """Return the content of a small attribute of the file system's own."""
        if attribute.is_resident:
            return attribute.value
        if attribute.size_bytes > length_max or attribute.flags & (COMPRESSED | ENCRYPTED):
            raise WrongState(f"an attribute of {attribute.size_bytes} bytes")
        parts = []
        for run in self.runs(attribute):
            length = max(0, min(run.length, attribute.size_bytes - run.file_offset))
            parts.append(bytes(length) if run.offset is None else self.space.read(run.offset, length))
        return b"".join(parts)

    def _read(self, number: int) -> Record:
        raw = self._raw(number)
        links, _, flags = struct.unpack_from("<HHH", raw, 18)
        base = struct.unpack_from("<Q", raw, 32)[0] & _REFERENCE
        if not flags & _IN_USE or base:
            raise WrongState(f"record {number} is not a file in use")
        attributes = self._attributes(raw)
        for one in attributes:
            if one.kind == ATTRIBUTE_LIST:
                attributes = self._continued(number, attributes, self.read(one, LIST_BYTES_MAX))
                break
        return Record(number, bool(flags & _DIRECTORY), links, _joined(attributes))

    def _continued(self, number: int, attributes: list[Attribute], listed: bytes) -> list[Attribute]:
        others: dict[int, None] = {}
        at = 0
        while at + 26 <= len(listed):
            length = int.from_bytes(listed[at + 4 : at + 6], "little")
            reference = struct.unpack_from("<Q", listed, at + 16)[0] & _REFERENCE
            if reference != number:
                others[reference] = None
            if length < 26:
                raise WrongState("a list of attributes is damaged")
            at += length
        if len(others) > EXTENSIONS_MAX:
            raise WrongState(f"it has {len(others)} records")
        found = list(attributes)
        for other in others:
            raw = self._raw(other)
            if struct.unpack_from("<Q", raw, 32)[0] & _REFERENCE != number:
                raise WrongState(f"record {other} continues another file")
            found += self._attributes(raw)
        return found

    def _raw(self, number: int) -> bytes:
        size = self.geometry.record_bytes
        at, left, parts = number * size, size, []
        for run in self._runs:  # a record may lie over two runs where clusters are small
            if run.file_offset <= at < run.file_offset + run.length and run.offset is not None and left:
                skip = at - run.file_offset
                part = self.space.read(run.offset + skip, min(left, run.length - skip))
                parts.append(part)
                at, left = at + len(part), left - len(part)
        if left:
            raise WrongState(f"there is no record {number}")
        return _mended(b"".join(parts), b"FILE")

    def _attributes(self, raw: bytes) -> list[Attribute]:
        found: list[Attribute] = []
        at = int.from_bytes(raw[20:22], "little")
        while at + 8 <= len(raw):
            kind, length = struct.unpack_from("<II", raw, at)
            if kind == _END:
                return found
            if length < 24 or at + length > len(raw):
                break
            found.append(_attribute(kind, raw[at : at + length]))
            at += length
        raise WrongState("a record of the table of files is damaged")


def _attribute(kind: int, raw: bytes) -> Attribute:
    is_long, name_units, name_at, flags = struct.unpack_from("<BBHH", raw, 8)
    name = raw[name_at : name_at + 2 * name_units].decode("utf-16-le", "surrogatepass")
    if not is_long:
        length, start = struct.unpack_from("<IH", raw, 16)
        if start + length > len(raw):
            raise WrongState("a value outside its record")
        return Attribute(kind, name, flags, raw[start : start + length], size_bytes=length)
    first, last, runs_at = struct.unpack_from("<QQH", raw, 16)
    size, initialized = struct.unpack_from("<QQ", raw, 48) if not first else (0, 0)
    return Attribute(
        kind, name, flags, b"", False, size, initialized, [(first, last if last != (1 << 64) - 1 else -1,
        raw[runs_at:])]
    )  # fmt: skip


def _joined(attributes: list[Attribute]) -> list[Attribute]:
    """Put the parts of attributes that are in several records together."""
    joined: list[Attribute] = []
    known: dict[tuple[int, str], Attribute] = {}
    for one in attributes:
        if one.is_resident:
            joined.append(one)
            continue
        other = known.get((one.kind, one.name))
        if other is None:
            known[one.kind, one.name] = one
            joined.append(one)
            continue
        other.parts += one.parts
        other.size_bytes = max(other.size_bytes, one.size_bytes)
        other.initialized_bytes = max(other.initialized_bytes, one.initialized_bytes)
        other.flags |= one.flags
    return joined


def _unpacked(packed: bytes, clusters: int) -> Iterator[tuple[int, int | None]]:
    """Yield (clusters, first cluster) of packed runs; no cluster: sparse."""
    at = start = 0
    while at < len(packed) and packed[at]:
        length_bytes, start_bytes = packed[at] & 0xF, packed[at] >> 4
        at += 1
        length = int.from_bytes(packed[at : at + length_bytes], "little")
        at += length_bytes
        if not length or length > 1 << 48 or at + start_bytes > len(packed):
            raise WrongState("the runs of an attribute are damaged")
        if not start_bytes:
            yield length, None
            continue
        start += int.from_bytes(packed[at : at + start_bytes], "little", signed=True)
        at += start_bytes
        if start < 0 or start + length > clusters:
            raise WrongState("a run outside the volume")
        yield length, start


def mended_index(raw: bytes) -> bytes:
    return _mended(raw, b"INDX")


def _mended(raw: bytes, magic: bytes) -> bytes:
    """Put the ends of sectors back, which bear a mark on disk (N1)."""
    at, count = struct.unpack_from("<HH", raw, 4)
    if raw[:4] != magic or not count or at + 2 * count > len(raw) or (count - 1) * SECTOR > len(raw):
        raise WrongState("a record without its mark")
    mark = raw[at : at + 2]
    mended = bytearray(raw)
    for index in range(1, count):
        end = index * SECTOR
        if mended[end - 2 : end] != mark:
            raise WrongState("a record that is torn")
        mended[end - 2 : end] = raw[at + 2 * index : at + 2 * index + 2]
    return bytes(mended)
