"""Entries as they come from a parser, checked: columns for who stores them, ``FileEntry`` for who looks.

Invariants: W1 a batch is checked whole before anything of it is seen: names, types, sizes, links, and that
pieces lie inside the disks and add up to the file's size. W2 directories are numbered in the order in which
they come; a name's parent came before it; no path passes PATH_BYTES_MAX.
Called by sandbox; a checker belongs to one run.
Format: ``batch_format``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from backup_server.catalog import batch_format as form
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.frames import NAME_BYTES_MAX, PATH_BYTES_MAX, printable, to_text
from backup_server.catalog.pieces import LITERALS_OF_FILE_BYTES_MAX, PIECES_MAX, Piece, PieceKind

RECORDS = np.dtype([(name, "<" + code) for name, code in form.RECORD_FIELDS])
PIECES = np.dtype([(name, "<" + code) for name, code in form.PIECE_FIELDS])

DIRECTORIES_MAX = 1 << 23
_TYPES = np.array([0o140000, 0o120000, 0o100000, 0o060000, 0o040000, 0o020000, 0o010000], np.uint32)
_FILE, _LINK, _DIRECTORY = 0o100000, 0o120000, 0o040000


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some entries of a walk.

    ``records`` has one row for each (fields of RECORD_FIELDS), ``pieces`` the rows of all their pieces;
    ``heaps`` are the bytes of their names, targets, flaws, attributes and literals, each in the order of the
    records.
    """

    records: npt.NDArray[np.void]
    pieces: npt.NDArray[np.void]
    heaps: dict[str, bytes]

    def __len__(self) -> int:
        return len(self.records)

    def split(self, heap: str) -> list[bytes]:
        """Return each record's share of a heap."""
        content = self.heaps[heap]
        ends = [*accumulate(self.records[f"{heap}_bytes"].tolist())]
        return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def entries(self, directory: str = "/") -> Iterator[tuple[FileEntry, list[Piece]]]:
        """Yield each entry as if it lay in ``directory``, and its pieces (see Paths for true ones)."""
        return self.entries_in([directory] * len(self))

    def entries_in(self, directories: Sequence[str]) -> Iterator[tuple[FileEntry, list[Piece]]]:
        """Yield each entry in its own directory, and its pieces; an entry without name is the root."""
        names, targets, flaws = (self.split(heap) for heap in ("name", "target", "flaw"))
        attributes = self.split("attribute")
        kinds, disks, offsets, lengths = (
            self.pieces[field].tolist() for field in ("kind", "disk", "offset", "length")
        )
        at = literal_at = 0
        for index, row in enumerate(self.records.tolist()):
            record = dict(zip(RECORDS.names or (), row, strict=True))
            pieces = []
            for piece in range(at, at + record["pieces"]):
                literal = b""
                if kinds[piece] == PieceKind.LITERAL:
                    literal = self.heaps["literal"][literal_at : literal_at + lengths[piece]]
                    literal_at += lengths[piece]
                pieces.append(
                    Piece(PieceKind(kinds[piece]), lengths[piece], disks[piece], offsets[piece], literal)
                )
            at += record["pieces"]
            name = to_text(names[index])
            yield (
                FileEntry(
                    path=directories[index].rstrip("/") + "/" + name if name else directories[index],
                    name=name,
                    size_bytes=record["size"],
                    mode=record["mode"],
                    uid=record["uid"],
                    gid=record["gid"],
                    modified_at_ns=record["modified"],
                    link_target=to_text(targets[index]),
                    changed_at_ns=record["changed"],
                    accessed_at_ns=record["accessed"],
                    created_at_ns=record["created"],
                    inode=record["inode"],
                    link_count=record["links"],
                    device=(record["major"], record["minor"]),
                    attributes=tuple(split_attributes(attributes[index])) if attributes[index] else (),
                    flaw=printable(flaws[index]),
                ),
                pieces,
            )


@dataclass(frozen=True, slots=True)
class Unread:
    """A directory of the walk whose names could not be read, or not all of them, and why."""

    directory: int
    why: str


class Paths:
    """The directories of a walk by number; hand it each batch in turn."""

    def __init__(self, below: str = "/") -> None:
        self.of: list[str] = []
        self._below = below

    def entries(self, batch: Batch) -> Iterator[tuple[FileEntry, list[Piece]]]:
        """Yield the batch's entries with their true paths; that of the first is where the walk began."""
        names = batch.split("name")
        parents = batch.records["parent"].tolist()
        own: list[str] = []
        for index, (parent, number) in enumerate(
            zip(parents, batch.records["directory"].tolist(), strict=True)
        ):
            own.append(self._below if parent == form.NO_DIRECTORY else self.of[parent])
            if number != form.NO_DIRECTORY:
                assert number == len(self.of), "W2"
                self.of.append((own[-1].rstrip("/") + "/" + to_text(names[index])).rstrip("/") or "/")
        return batch.entries_in(own)


def split_attributes(share: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and value of each attribute. ValueError: the share is not a row of attributes."""
    at = 0
    while at < len(share):
        if at + form.ATTRIBUTE.size > len(share):
            raise ValueError("an attribute cut short")
        name_bytes, value_bytes = form.ATTRIBUTE.unpack_from(share, at)
        at += form.ATTRIBUTE.size
        end = at + name_bytes + value_bytes
        if not name_bytes or end > len(share):
            raise ValueError("an attribute cut short")
        yield share[at : at + name_bytes], share[at + name_bytes : end]
        at = end


class BatchChecker:
    """Decode batches of one run and check each (W1, W2). ValueError: what is wrong."""

    def __init__(self, disk_sizes: Sequence[int]) -> None:
        self._disk_sizes = np.array(disk_sizes, np.uint64)
        self._path_bytes: list[int] = []
        self._without_pieces = False

    @property
    def directories(self) -> int:
        return len(self._path_bytes)

    def expect_in_directory(self, *, without_pieces: bool = False) -> None:
        """Names will come from one directory that has itself no record: number 0."""
        self._path_bytes = [0]
        self._without_pieces = without_pieces

    def decode(self, payload: bytes) -> Batch:
        batch = _decode(payload)
        records, heaps = batch.records, batch.heaps
        _check_records(records)
        _check_names(records, heaps["name"])
        if b"\0" in heaps["target"]:
            raise ValueError("a link's target with NUL")
        for share in batch.split("attribute"):
            for name, _ in split_attributes(share):
                if b"\0" in name:
                    raise ValueError("an attribute's name with NUL")
        self._check_pieces(batch)
        self._check_directories(records)
        return batch

    def _check_pieces(self, batch: Batch) -> None:
        pieces, records = batch.pieces, batch.records
        kinds, lengths = pieces["kind"], pieces["length"]
        if not np.isin(kinds, [1, 2, 3]).all() or pieces["reserved"].any():
            raise ValueError("a piece of unknown kind")
        if (lengths == 0).any() or (lengths > form.SIZE_BYTES_MAX).any():
            raise ValueError("a piece that is empty or beyond reason")
        data = pieces[kinds == PieceKind.DATA]
        other = pieces[kinds != PieceKind.DATA]
        if other["disk"].any() or other["offset"].any():
            raise ValueError("a place for what is in no image")
        if (data["disk"] >= len(self._disk_sizes)).any():
            raise ValueError("a piece on a disk that is not there")
        sizes = self._disk_sizes[data["disk"]]
        if (data["length"] > sizes).any() or (data["offset"] > sizes - data["length"]).any():
            raise ValueError("a piece outside its disk")
        counts = records["pieces"].astype(np.int64)
        sums, literals = np.zeros(len(records)), np.zeros(len(records), np.uint64)
        exact = np.zeros(len(records), np.uint64)
        some = np.flatnonzero(counts)
        if len(some):
            starts = (np.cumsum(counts) - counts)[some]
            sums[some] = np.add.reduceat(lengths.astype(np.float64), starts)
            if (sums > 2.0 * form.SIZE_BYTES_MAX).any():
                raise ValueError("pieces beyond reason")
            exact[some] = np.add.reduceat(lengths, starts)
            literals[some] = np.add.reduceat(np.where(kinds == PieceKind.LITERAL, lengths, 0), starts)
        if (literals != records["literal_bytes"]).any() or (literals > LITERALS_OF_FILE_BYTES_MAX).any():
            raise ValueError("literals that are not as long as their pieces")
        is_file = records["mode"] & 0o170000 == _FILE
        unread = ~is_file | (counts == 0) & (records["flaw_bytes"] > 0)
        if self._without_pieces and not counts.any():
            return
        if (np.where(unread, 0, records["size"]) != exact).any():
            raise ValueError("pieces that do not add up to the file's size")

    def _check_directories(self, records: npt.NDArray[np.void]) -> None:
        numbers = records["directory"]
        found = numbers[numbers != form.NO_DIRECTORY]
        known = len(self._path_bytes)
        if (found != np.arange(known, known + len(found))).any() or known + len(found) > DIRECTORIES_MAX:
            raise ValueError("a directory out of turn")  # W2
        parents = records["parent"]
        rows = np.flatnonzero(numbers != form.NO_DIRECTORY)
        before = known + np.searchsorted(rows, np.arange(len(records)))
        is_root = parents == form.NO_DIRECTORY
        if ((parents >= before) & ~is_root).any() or is_root[1:].any() or (is_root.any() and known):
            raise ValueError("a name in a directory that did not come")
        if not known and not is_root[:1].all():
            raise ValueError("a walk that does not begin with the root")
        for row in rows.tolist():
            parent = int(parents[row])
            above = 0 if parent == form.NO_DIRECTORY else self._path_bytes[parent]
            self._path_bytes.append(above + 1 + int(records["name_bytes"][row]))
        if self._path_bytes[known:] and max(self._path_bytes[known:]) > PATH_BYTES_MAX:
            raise ValueError("a path that is too long")


def _decode(payload: bytes) -> Batch:
    """Cut a payload into its parts, whose lengths must agree."""
    if len(payload) < form.HEADS.size:
        raise ValueError("a batch without its head")
    record_count, piece_count, *heap_bytes = form.HEADS.unpack_from(payload)
    lengths = [record_count * RECORDS.itemsize, piece_count * PIECES.itemsize, *heap_bytes]
    if form.HEADS.size + sum(lengths) != len(payload) or not record_count:
        raise ValueError("a batch that is not whole")
    ends = list(accumulate(lengths, initial=form.HEADS.size))
    records = np.frombuffer(payload, RECORDS, record_count, ends[0])
    pieces = np.frombuffer(payload, PIECES, piece_count, ends[1])
    heaps = {
        name: payload[start:end] for name, start, end in zip(form.HEAPS, ends[2:-1], ends[3:], strict=True)
    }
    for name, content in heaps.items():
        if int(records[f"{name}_bytes"].sum(dtype=np.uint64)) != len(content):
            raise ValueError(f"a heap of {name}s that is not as long as its shares")
    if int(records["pieces"].sum(dtype=np.uint64)) != piece_count:
        raise ValueError("pieces of no file")
    return Batch(records, pieces, heaps)


def _check_records(records: npt.NDArray[np.void]) -> None:
    modes = records["mode"]
    types = modes & 0o170000
    if (modes > 0o177777).any() or not np.isin(types, _TYPES).all() or records["reserved"].any():
        raise ValueError("a mode that no file has")
    if (records["size"] > form.SIZE_BYTES_MAX).any():
        raise ValueError("a size beyond reason")
    targets = records["target_bytes"]
    if (targets > form.LINK_BYTES_MAX).any() or targets[types != _LINK].any():
        raise ValueError("a target of what is no link, or a long one")
    too_many = records["pieces"] > PIECES_MAX
    if too_many.any() or records["pieces"][types != _FILE].any():
        raise ValueError("pieces of what is no file, or too many")
    if (records["attribute_bytes"] > form.ATTRIBUTES_BYTES_MAX).any() or (
        records["flaw_bytes"] > form.FLAW_BYTES_MAX
    ).any():
        raise ValueError("attributes or a flaw without end")
    if ((records["directory"] != form.NO_DIRECTORY) & (types != _DIRECTORY)).any():
        raise ValueError("a directory's number for what is none")


def _check_names(records: npt.NDArray[np.void], heap: bytes) -> None:
    lengths = records["name_bytes"]
    is_root = records["parent"] == form.NO_DIRECTORY
    if (lengths > NAME_BYTES_MAX).any() or ((lengths == 0) != is_root).any():
        raise ValueError("a name that is empty or too long")
    if b"/" in heap or b"\0" in heap:
        raise ValueError("a name with a slash or NUL")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    for row in np.flatnonzero(lengths <= 2).tolist():
        if heap[starts[row] : starts[row] + int(lengths[row])] in {b".", b".."}:
            raise ValueError("a name that is . or ..")
