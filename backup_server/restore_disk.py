"""A disk made of files: ISO 9660 with Rock Ridge, whose contents are extents of images (patent figure 6).

The tree is mastered here with content of zeros, which goes nowhere; where that would lie, the pieces of the
files are named instead, and the target puts their bytes there (ComposeImage).
Invariants:
  I1 extents ascend and do not overlap; what none covers is zero.
  I2 a literal holds what describes files, or content that lies in no image; no other byte of a file is here.
  I3 what this file system cannot say of a file is told, and the file left out.
Limits: FILES_MAX names; names in UTF-8. Attributes and ACLs are left behind: Linux reads none from ISO 9660.
Source: ECMA-119; IEEE P1282 (Rock Ridge). Callers: the restore disk's job, one thread.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import pycdlib
from pycdlib.dates import DirectoryRecordDate

from arraylift.errors import InvalidRequest
from arraylift.sizes import MIB
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.pieces import Piece, PieceKind

FILES_MAX = 100_000
SECTOR_BYTES = 2048
_ZEROS = bytes(MIB)
_SECONDS_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of the new disk: of an image of the backup, by its place in the set, or a literal."""

    offset: int
    length: int
    disk: int = 0
    image_offset: int = 0
    literal: bytes = b""


class RestoreDisk:
    """A disk in the making: ``add`` each file, directories before what lies in them, then ``finish``."""

    def __init__(self, label: str) -> None:
        self._iso = pycdlib.PyCdlib()
        self._iso.new(interchange_level=4, rock_ridge="1.12", vol_ident=label[:32])
        self._directories = {"/": ""}
        self._files: dict[str, str] = {}
        self._pieces: list[tuple[object, Sequence[Piece]]] = []
        self._dressed: list[tuple[object, FileEntry]] = []
        self._count = 0

    def add(self, entry: FileEntry, pieces: Sequence[Piece] = (), *, hard_link_to: str = "") -> str:
        """Add a file; returns what keeps it out, if anything does (I3). Raises InvalidRequest (FILES_MAX)."""
        if entry.path == "/":
            self._dress(self._iso.get_record(iso_path="/"), entry)
            return ""
        kind = stat.S_IFMT(entry.mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return "a device is not put on a disk"
        try:
            entry.path.encode(), entry.link_target.encode()
        except UnicodeEncodeError:
            return "its name, or its target, is not UTF-8"
        if len(entry.name.encode()) > 255 or (entry.is_link and not entry.link_target):
            return "its name or target is none that a disk can have"
        self._count += 1
        if self._count > FILES_MAX:
            raise InvalidRequest(
                f"more than {FILES_MAX:,} files are too many for a disk", next_step="ask for fewer at once"
            )
        above = self._directory(entry.path.rpartition("/")[0] or "/")
        if kind == stat.S_IFDIR:
            if entry.path not in self._directories:
                self._make_directory(entry.path, entry.mode)
            self._dress(self._iso.get_record(iso_path=self._directories[entry.path]), entry)
            return ""
        path = f"{above}/F{self._count:07X}.;1"
        if hard_link_to:
            if hard_link_to not in self._files:
                return f"{hard_link_to}, which it is a hard link to, is not on the disk"
            self._iso.add_hard_link(
                iso_old_path=self._files[hard_link_to], iso_new_path=path, rr_name=entry.name
            )
        elif entry.is_link:
            self._iso.add_symlink(path, rr_symlink_name=entry.name, rr_path=entry.link_target)
        else:
            length = entry.size_bytes if entry.is_file else 0
            nothing = cast("BinaryIO", _Nothing(length))
            self._iso.add_fp(nothing, length, path, rr_name=entry.name, file_mode=entry.mode)
        self._files[entry.path] = path
        record = self._iso.get_record(iso_path=path)
        self._dress(record, entry)
        if pieces:
            self._pieces.append((record, pieces))
        return ""

    def finish(self) -> tuple[int, list[Extent]]:
        """Return the disk's size, and its extents (I1)."""
        self._iso.force_consistency()
        for record, entry in self._dressed:
            _dress(record, entry)
        out = _Recorder()
        self._iso.write_fp(cast("BinaryIO", out), blocksize=MIB)
        extents = list(out.extents())
        for record, pieces in self._pieces:
            extents += _placed(record.extent_location() * SECTOR_BYTES, pieces)  # type: ignore[attr-defined]
        self._iso.close()
        extents.sort(key=lambda extent: extent.offset)
        size = -(-out.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
        end = 0
        for extent in extents:
            assert extent.offset >= end, "I1"
            end = extent.offset + extent.length
        return max(size, end), extents

    def _directory(self, path: str) -> str:
        if path not in self._directories:
            self._make_directory(path, stat.S_IFDIR | 0o755)
        return self._directories[path]

    def _make_directory(self, path: str, mode: int) -> None:
        above, _, name = path.rpartition("/")
        made = f"{self._directory(above or '/')}/D{len(self._directories):07X}"
        self._iso.add_directory(made, rr_name=name, file_mode=mode)
        self._directories[path] = made

    def _dress(self, record: object, entry: FileEntry) -> None:
        self._dressed.append((record, entry))


def _placed(offset: int, pieces: Sequence[Piece]) -> Iterator[Extent]:
    for piece in pieces:
        if piece.kind is PieceKind.DATA:
            yield Extent(offset, piece.length, piece.disk, piece.offset)
        elif piece.kind is PieceKind.LITERAL:
            yield Extent(offset, piece.length, literal=piece.literal)
        offset += piece.length


def _dress(record: object, entry: FileEntry) -> None:
    """Owner, mode and times: of a directory also in its own record of itself, which is what Linux reads."""
    records = [record]
    if entry.is_directory:
        records.append(record.children[0])  # type: ignore[attr-defined]
    when = DirectoryRecordDate()
    when.new(max(0, min(_SECONDS_MAX, entry.modified_at_ns // 10**9)))
    for one in records:
        rock_ridge = one.rock_ridge  # type: ignore[attr-defined]
        if rock_ridge is None:
            continue  # the root, as its volume names it
        for entries in (rock_ridge.dr_entries, rock_ridge.ce_entries):
            if entries is None:
                continue
            if entries.px_record is not None:
                entries.px_record.posix_file_mode = entry.mode
                entries.px_record.posix_user_id = entry.uid
                entries.px_record.posix_group_id = entry.gid
            if entries.tf_record is not None:
                for name in ("access_time", "modification_time", "attribute_change_time"):
                    if getattr(entries.tf_record, name) is not None:
                        setattr(entries.tf_record, name, when)


class _Nothing(io.RawIOBase):
    """A file of zeros: where content will be."""

    mode = "rb"

    def __init__(self, length: int) -> None:
        self._length, self._at = length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        count = min(left if size < 0 else size, left, MIB)
        self._at += count
        return _ZEROS if count == MIB else _ZEROS[:count]


class _Recorder(io.RawIOBase):
    """Keeps what is not zero of what is written, in sectors."""

    mode = "wb"

    def __init__(self) -> None:
        self._sectors: dict[int, bytearray] = {}
        self._at = self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size_bytes)[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size_bytes = self._at if size is None else size
        return self.size_bytes

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        length, start = len(view), self._at
        if data is not _ZEROS:
            done = 0
            while done < length:
                number, skip = divmod(start + done, SECTOR_BYTES)
                part = bytes(view[done : done + SECTOR_BYTES - skip])
                known = self._sectors.get(number)
                if known is not None or part.count(0) != len(part):
                    sector = self._sectors.setdefault(number, bytearray(SECTOR_BYTES))
                    sector[skip : skip + len(part)] = part
                done += len(part)
        self._at = start + length
        self.size_bytes = max(self.size_bytes, self._at)
        return length

    def extents(self) -> Iterator[Extent]:
        """Runs of sectors, each at most 1 MiB."""
        run, begin = bytearray(), 0
        for number in sorted(self._sectors):
            at = number * SECTOR_BYTES
            if run and (at != begin + len(run) or len(run) >= MIB):
                yield Extent(begin, len(run), literal=bytes(run))
                run = bytearray()
            if not run:
                begin = at
            run += self._sectors[number]
        if run:
            yield Extent(begin, len(run), literal=bytes(run))
