"""Read LVM2: physical volumes by their labels, volume groups by the newest text of their metadata.

Invariants: L1 a logical volume is mapped only if each of its bytes is: every segment of a kind known here, on
physical volumes that are there, without gap or overlap. L2 metadata counts only if its checksum holds.
Used in the parser's process only. Layout: lvm2's lib/format_text (label, header of the metadata area, text).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from arraylift.errors import WrongState
from backup_server.catalog.parse.filesystem import FAULTS
from backup_server.catalog.parse.space import Joined, Slice, Space, Striped

KIND = "LVM2_member"
SECTOR = 512
TEXT_BYTES_MAX = 16 << 20
VOLUMES_MAX = 1024
SEGMENTS_MAX = 1 << 16
_DEPTH_MAX = 8
_NAME = re.compile(r"[A-Za-z0-9_+.-]{1,127}")
_MAGIC = b" LVM2 x[5A%r0N*>"
_CHECKSUM_START = 0xF597A6CF
_TOKEN = re.compile(r'#[^\n]*|("(?:\\.|[^"\\])*"|[\[\]{}=,]|[^\s\[\]{}=,#"]+)')


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One visible volume of a group: its space, or the reason why it has none."""

    group: str
    name: str
    size_bytes: int
    space: Space | None
    reason: str = ""


@dataclass(slots=True)
class PhysicalVolume:
    """What the label of one says: its id, and the metadata on it, if any."""

    uuid: str
    space: Space
    text: str = ""
    remark: str = ""


@dataclass(slots=True)
class _Group:
    name: str
    sequence: int
    content: dict[str, Any]
    spaces: dict[str, Space] = field(default_factory=dict)


def physical_volume(space: Space) -> PhysicalVolume | None:
    """Return what an LVM label in the first four sectors says, or None."""
    for sector in range(min(4, space.size_bytes // SECTOR)):
        raw = space.read(sector * SECTOR, SECTOR)
        if raw[:8] == b"LABELONE" and raw[24:32] == b"LVM2 001":
            return _labelled(space, raw)
    return None


def logical_volumes(members: list[PhysicalVolume]) -> Iterator[LogicalVolume]:
    """Yield the visible logical volumes of all groups that these physical volumes make."""
    groups: dict[str, _Group] = {}
    for member in members:
        try:
            for group in _groups(member.text):
                known = groups.get(group.name)
                if known is None or group.sequence > known.sequence:
                    groups[group.name] = group
        except FAULTS as error:
            member.remark = f"its metadata of LVM cannot be read: {error}"
    spaces = {member.uuid.replace("-", ""): member.space for member in members}
    for group in groups.values():
        volumes = _dict(group.content.get("logical_volumes", {}))
        for name, volume in list(volumes.items())[:VOLUMES_MAX]:
            named = _NAME.fullmatch(name) and _NAME.fullmatch(group.name)
            if named and isinstance(volume, dict) and "VISIBLE" in _list(volume.get("status", [])):
                yield _logical(group, name, volume, spaces)


def _labelled(space: Space, label: bytes) -> PhysicalVolume:
    at = int.from_bytes(label[20:24], "little")
    if at + 40 > SECTOR:
        raise WrongState("the label of LVM is damaged")
    uuid = label[at : at + 32].decode("ascii", "replace")
    found = PhysicalVolume(uuid, space)
    at += 40
    areas: list[tuple[int, int]] = []
    for metadata in (False, True):
        while at + 16 <= SECTOR:
            start, size = struct.unpack_from("<QQ", label, at)
            at += 16
            if not start:
                break
            if metadata:
                areas.append((start, size))
    newest = -1
    for start, size in areas:
        try:
            text = _text(space, start, size)
            sequence = max((group.sequence for group in _groups(text)), default=-1)
        except FAULTS as error:
            found.remark = f"its metadata of LVM cannot be read: {error}"
            continue
        if sequence > newest:
            found.text, newest = text, sequence
    return found


def _text(space: Space, start: int, size: int) -> str:
    """Return the text of a metadata area, which is a ring behind its header. L2."""
    header = space.read(start, SECTOR)
    if header[4:20] != _MAGIC:
        raise WrongState("no header where one should be")
    offset, length, checksum, _ = struct.unpack_from("<QQII", header, 40)
    if not offset:
        return ""
    if not SECTOR <= offset < size or not 0 < length <= min(size - SECTOR, TEXT_BYTES_MAX):
        raise WrongState("a place outside its area")
    raw = space.read(start + offset, min(length, size - offset))
    if len(raw) < length:
        raw += space.read(start + SECTOR, length - len(raw))
    if zlib.crc32(raw, _CHECKSUM_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF != checksum:
        raise WrongState("its checksum does not hold")
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _groups(text: str) -> Iterator[_Group]:
    for name, content in parse(text).items():
        if isinstance(content, dict) and "physical_volumes" in content:
            yield _Group(name, _number(content, "seqno"), content)


def parse(text: str) -> dict[str, Any]:
    """Return LVM's text as dictionaries, lists, strings and numbers. ValueError: it is none."""
    tokens = [match.group(1) for match in _TOKEN.finditer(text) if match.group(1)]
    content, at = _section(tokens, 0, 0)
    if at != len(tokens):
        raise ValueError("more closed than opened")
    return content


def _section(tokens: list[str], at: int, depth: int) -> tuple[dict[str, Any], int]:
    if depth > _DEPTH_MAX:
        raise ValueError("sections too deep")
    found: dict[str, Any] = {}
    while at < len(tokens) and tokens[at] != "}":
        key, mark = tokens[at], tokens[at + 1]
        if mark == "{":
            found[key], at = _section(tokens, at + 2, depth + 1)
            at += 1
        elif mark == "=":
            found[key], at = _value(tokens, at + 2)
        else:
            raise ValueError(f"{mark[:20]!r} where a value should be")
    return found, at


def _value(tokens: list[str], at: int) -> tuple[Any, int]:
    if tokens[at] != "[":
        return _scalar(tokens[at]), at + 1
    values = []
    at += 1
    while tokens[at] != "]":
        if tokens[at] != ",":
            values.append(_scalar(tokens[at]))
        at += 1
    return values, at + 1


def _scalar(token: str) -> str | int:
    if token.startswith('"'):
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    return int(token) if re.fullmatch(r"-?[0-9]{1,19}", token) else token


def _logical(group: _Group, name: str, volume: dict[str, Any], spaces: dict[str, Space]) -> LogicalVolume:
    extent = _number(group.content, "extent_size") * SECTOR
    size = 0
    try:
        segments = [part for part in volume.values() if isinstance(part, dict) and "start_extent" in part]
        size = sum(_number(segment, "extent_count") for segment in segments) * extent
        if not segments or len(segments) > SEGMENTS_MAX:
            raise WrongState(f"it has {len(segments)} segments")
        segments.sort(key=lambda segment: _number(segment, "start_extent"))
        parts: list[Space] = []
        at = 0
        for segment in segments:
            if _number(segment, "start_extent") != at:  # L1
                raise WrongState("its segments leave a gap")
            at += _number(segment, "extent_count")
            parts.append(_segment(group, segment, extent, spaces))
        return LogicalVolume(group.name, name, size, Joined(parts))
    except FAULTS as error:
        return LogicalVolume(group.name, name, max(size, 0), None, str(error)[:200])


def _segment(group: _Group, segment: dict[str, Any], extent: int, spaces: dict[str, Space]) -> Space:
    kind = str(segment.get("type", ""))
    if kind.split("+", maxsplit=1)[0] not in {"striped", "linear"}:
        raise WrongState(f"a segment of kind {kind}, which cannot be read here")
    stripes = _list(segment.get("stripes", []))
    count = _number(segment, "extent_count")
    if not stripes or len(stripes) % 2 or count % (len(stripes) // 2):
        raise WrongState("a segment whose stripes do not share it evenly")
    each = count // (len(stripes) // 2) * extent
    columns = []
    members = _dict(group.content["physical_volumes"])
    for member_name, first in zip(stripes[::2], stripes[1::2], strict=True):
        member = members.get(member_name)
        if not isinstance(member, dict) or not isinstance(first, int):
            raise WrongState(f"a segment on {member_name}, which is no physical volume")
        space = spaces.get(str(member.get("id", "")).replace("-", ""))
        if space is None:
            raise WrongState(f"the physical volume {member.get('id')} of its group is on no disk here")
        columns.append(Slice(space, _number(member, "pe_start") * SECTOR + first * extent, each))
    if len(columns) == 1:
        return columns[0]
    chunk = _number(segment, "stripe_size") * SECTOR
    if chunk <= 0 or each % chunk:
        raise WrongState(f"stripes of {chunk} bytes")
    return Striped(columns, chunk)


def _number(section: dict[str, Any], key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or value < 0:
        raise WrongState(f"the metadata of LVM has no {key}")
    return value


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
