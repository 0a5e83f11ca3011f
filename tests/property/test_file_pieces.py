"""Pieces against a plain model of a file: bytes laid out in an image, some of them replaced by a journal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import WrongState
from backup_server.catalog import frames
from backup_server.catalog.batch import BatchChecker
from backup_server.catalog.batch_format import NO_DIRECTORY
from backup_server.catalog.parse.batch_writer import BatchWriter
from backup_server.catalog.parse.filesystem import Node, with_holes
from backup_server.catalog.parse.journal import MAGIC, MAGIC_BYTES, replay
from backup_server.catalog.parse.space import Joined, Overlaid, Replacement, Slice, Space, Striped
from backup_server.catalog.pieces import (
    LITERALS_OF_FILE_BYTES_MAX,
    Piece,
    PieceKind,
    Place,
    Run,
    content_of,
    flaw_of,
    literal_pieces,
    pieces_of,
)

BLOCK = 16


class Memory:
    """A disk of bytes as a space."""

    def __init__(self, content: bytes, number: int) -> None:
        self.content, self.number, self.size_bytes = content, number, len(content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes
        return self.content[offset : offset + length]

    def locate(self, offset: int, length: int) -> Iterator[Place]:
        assert 0 <= offset <= offset + length <= self.size_bytes
        yield Place(self.number, offset, length)


@dataclass(frozen=True)
class Case:
    disks: list[bytes]
    space: Space
    true: bytes  # the space's bytes, by a model
    runs: list[Run]
    size_bytes: int

    @property
    def content(self) -> bytes:
        parts = [
            bytes(run.length) if run.offset is None else self.true[run.offset :][: run.length]
            for run in sorted(self.runs, key=lambda run: run.file_offset)
        ]
        return b"".join(parts)[: self.size_bytes]

    @property
    def sizes(self) -> list[int]:
        return [len(disk) for disk in self.disks]


@st.composite
def spaces(draw: st.DrawFn) -> tuple[list[bytes], Space, bytes]:
    """Disks, and a space over them: slices, stripes and their row, some blocks replaced by others."""
    disks = [draw(st.binary(min_size=500, max_size=500)) for _ in range(3)]
    parts: list[Space] = []
    true = b""
    for _ in range(draw(st.integers(1, 4))):
        chunk, rows = draw(st.sampled_from([8, 16, 24])), draw(st.integers(1, 5))
        columns = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        starts = [draw(st.integers(0, 500 - chunk * rows)) for _ in columns]
        slices = [
            Slice(Memory(disks[disk], disk), start, chunk * rows)
            for disk, start in zip(columns, starts, strict=True)
        ]
        parts.append(Striped(slices, chunk) if len(slices) > 1 else slices[0])
        for row in range(rows):
            for disk, start in zip(columns, starts, strict=True):
                true += disks[disk][start + row * chunk :][:chunk]
    whole = bytearray(true)
    replaced = {}
    if len(true) >= BLOCK:
        for block in draw(st.sets(st.integers(0, len(true) // BLOCK - 1), max_size=6)):
            offset = draw(st.integers(0, len(true) - BLOCK))
            first = draw(st.sampled_from([b"", b"abcd"]))
            replaced[block] = Replacement(offset, first)
            whole[block * BLOCK : (block + 1) * BLOCK] = first + true[offset + len(first) : offset + BLOCK]
    space = Joined(parts)
    return disks, Overlaid(space, BLOCK, replaced) if replaced else space, bytes(whole)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    disks, space, true = draw(spaces())
    runs = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(1, 90))
        offset = draw(st.none() | st.integers(0, max(0, len(true) - length)))
        runs.append(Run(at, length, offset if length <= len(true) else None))
        at += length
    size = draw(st.integers(0, at))
    return Case(disks, space, true, draw(st.permutations(runs)), size)


def pieces(case: Case) -> list[Piece]:
    return pieces_of(case.runs, size_bytes=case.size_bytes, locate=case.space.locate)


@given(spaces(), st.data())
def test_a_space_reads_and_locates_the_same(
    case: tuple[list[bytes], Space, bytes], data: st.DataObject
) -> None:
    disks, space, true = case
    assert space.size_bytes == len(true)
    offset = data.draw(st.integers(0, len(true)))
    length = data.draw(st.integers(0, len(true) - offset))
    assert space.read(offset, length) == true[offset : offset + length]
    located = b"".join(
        place.literal or disks[place.disk][place.offset : place.offset + place.length]
        for place in space.locate(offset, length)
    )
    assert located == true[offset : offset + length]
    for beyond in (len(true) - offset + 1, 1 << 60):
        with pytest.raises(WrongState):
            space.read(offset, beyond)
        with pytest.raises(WrongState):
            list(space.locate(offset, beyond))
    with pytest.raises(WrongState):
        space.read(-1, 1)


@given(cases(), st.integers(1, 100))
def test_pieces_say_what_the_runs_and_the_journal_say(case: Case, step_bytes: int) -> None:
    found = pieces(case)
    assert not flaw_of(found, size_bytes=case.size_bytes, disk_sizes=case.sizes)

    def read(disk: int, offset: int, length: int) -> bytes:
        return case.disks[disk][offset : offset + length]

    parts = list(content_of(found, read, step_bytes=step_bytes))
    assert b"".join(parts) == case.content
    assert all(0 < len(part) <= step_bytes for part in parts)
    for one, other in pairwise(found):  # as few as can be
        together = (one.disk, one.offset + one.length) == (other.disk, other.offset)
        assert one.kind is not other.kind or not (together or one.kind is not PieceKind.DATA)


@given(st.lists(cases(), min_size=1, max_size=3))
def test_pieces_survive_the_wire(some: list[Case]) -> None:
    sent: list[bytes] = []
    writer = BatchWriter(sent.append)
    root = Node(2, 0o40755, 0)
    writer.add(parent=NO_DIRECTORY, name=b"", node=root, directory=0)
    for number, case in enumerate(some):
        node = Node(number, 0o100644, case.size_bytes, modified_ns=-number, attributes=[(b"user.a", b"\0v")])
        writer.add(parent=0, name=b"%d" % number, node=node, pieces=pieces(case))
    writer.flush()
    (data,) = sent
    kind, length = frames.header(data[: frames.HEADER.size])
    assert (kind, length) == (frames.FrameKind.BATCH, len(data) - frames.HEADER.size)
    (_, _), *found = BatchChecker([500] * 3).decode(data[frames.HEADER.size :]).entries()
    assert [read for _, read in found] == [pieces(case) for case in some]
    assert [entry.modified_at_ns for entry, _ in found] == [-number for number in range(len(some))]
    assert all(entry.attributes == ((b"user.a", b"\0v"),) for entry, _ in found)


@given(cases(), st.integers(0, 1 << 20), st.integers(0, 255))
def test_a_batch_with_a_changed_byte_is_refused_or_harmless(case: Case, at: int, value: int) -> None:
    sent: list[bytes] = []
    writer = BatchWriter(sent.append)
    writer.add(parent=0, name=b"file", node=Node(1, 0o100644, case.size_bytes), pieces=pieces(case))
    writer.flush()
    payload = bytearray(sent[0][frames.HEADER.size :])
    payload[at % len(payload)] = value
    checker = BatchChecker(case.sizes)
    checker.expect_in_directory()
    try:
        batch = checker.decode(bytes(payload))
    except ValueError:
        return
    for entry, read in batch.entries():
        assert 0 < len(entry.name) < 1600
        assert "/" not in entry.name
        whole = entry.is_file and (read or not entry.flaw)
        assert not whole or not flaw_of(read, size_bytes=entry.size_bytes, disk_sizes=case.sizes)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=6), st.integers(0, 80))
def test_holes_fill_what_runs_leave(ranges: list[tuple[int, int]], size: int) -> None:
    runs = [Run(start, length, 7) for start, length in ranges]
    covered = [at for start, length in ranges for at in range(start, start + length)]
    try:
        filled = list(with_holes(runs, size))
    except WrongState:
        assert len(set(covered)) < len(covered)
        return
    assert len(set(covered)) == len(covered)
    assert all(one.file_offset + one.length == other.file_offset for one, other in pairwise(filled))
    assert sum(run.length for run in filled) == max([size, *(at + 1 for at in covered)])
    assert sum(run.length for run in filled if run.offset is not None) == len(covered)


@given(cases(), st.data())
def test_runs_that_do_not_cover_the_file_are_refused(case: Case, data: st.DataObject) -> None:
    needed = [run for run in case.runs if run.file_offset < case.size_bytes]
    if not needed:
        return
    lost = data.draw(st.sampled_from(needed))
    rest = [run for run in case.runs if run is not lost]
    with pytest.raises(WrongState):
        pieces_of(rest, size_bytes=case.size_bytes, locate=case.space.locate)


def test_literals_are_bounded() -> None:
    def locate(offset: int, length: int) -> Iterator[Place]:
        yield Place(-1, 0, length, bytes(length))

    most = LITERALS_OF_FILE_BYTES_MAX
    assert [piece.length for piece in pieces_of([Run(0, most, 0)], size_bytes=most, locate=locate)] == [most]
    with pytest.raises(WrongState, match="in no block"):
        pieces_of([Run(0, most + 1, 0)], size_bytes=most + 1, locate=locate)
    assert literal_pieces(b"") == []
    assert literal_pieces(b"abc") == [Piece(PieceKind.LITERAL, 3, literal=b"abc")]


# -- the journal, against a model that applies whole transactions one by one ---------------------

JOURNAL_BLOCK = 1024
FIRST, LAST = 1, 64


def _block(kind: int, sequence: int, body: bytes = b"") -> bytes:
    head = b"".join(number.to_bytes(4, "big") for number in (MAGIC, kind, sequence))
    return (head + body).ljust(JOURNAL_BLOCK, b"\0")


@st.composite
def journals(draw: st.DrawFn) -> tuple[list[bytes], dict[int, bytes]]:
    """A journal that wraps, of some features, and the blocks that it replaces."""
    v3, v2, wide = draw(st.sampled_from([(0, 0, 0), (0, 0, 2), (0, 8, 0), (0, 8, 2), (16, 0, 0), (16, 0, 2)]))
    start = draw(st.integers(FIRST, LAST - 1))
    sequence = draw(st.integers(1, 1 << 20))
    header = [JOURNAL_BLOCK, LAST, FIRST, sequence, start, 0]
    body = b"".join(number.to_bytes(4, "big") for number in [*header, 0, 1 | v2 | v3 | wide])
    written: list[bytes] = []
    history: list[tuple[dict[int, bytes], set[int]]] = []
    for _ in range(draw(st.integers(0, 5))):
        copies = draw(st.dictionaries(st.integers(0, 9), st.sampled_from([b"data", MAGIC_BYTES]), max_size=4))
        revoked = draw(st.sets(st.integers(0, 9), max_size=3))
        contents = {
            target: (start_bytes + draw(st.binary(min_size=4, max_size=4))).ljust(JOURNAL_BLOCK, b".")
            for target, start_bytes in copies.items()
        }
        if contents:
            written.append(_block(1, sequence, _tags(contents, v3, v2, wide)))
            written += [
                bytes(4) + content[4:] if content.startswith(MAGIC_BYTES) else content
                for content in contents.values()
            ]
        if revoked:
            width = 8 if wide else 4
            records = b"".join(block.to_bytes(width, "big") for block in sorted(revoked))
            written.append(_block(5, sequence, (16 + len(records)).to_bytes(4, "big") + records))
        if not draw(st.integers(0, 4)):
            break  # no commit: torn
        written.append(_block(2, sequence))
        history.append((contents, revoked))
        sequence += 1
    expected: dict[int, bytes] = {}
    for contents, revoked in history:
        expected |= contents
        for block in revoked:
            expected.pop(block, None)
    journal = [bytes(JOURNAL_BLOCK)] * LAST
    journal[0] = _block(4, 0, body)
    for number, content in enumerate(written):
        journal[FIRST + (start - FIRST + number) % (LAST - FIRST)] = content
    return journal, expected


def _tags(contents: dict[int, bytes], v3: int, v2: int, wide: int) -> bytes:
    packed = b""
    for number, (target, content) in enumerate(contents.items()):
        flags = (1 if content.startswith(MAGIC_BYTES) else 0) | (8 if number == len(contents) - 1 else 0)
        flags |= 2 if number else 0  # the first tag is followed by a UUID
        low = target.to_bytes(4, "big")
        if v3:
            packed += low + flags.to_bytes(4, "big") + bytes(8)
        else:
            packed += (
                low + bytes(2) + flags.to_bytes(2, "big") + bytes(4 if wide else 0) + bytes(2 if v2 else 0)
            )
        packed += b"" if number else b"U" * 16
    return packed


@given(journals())
def test_a_journal_replaces_what_its_whole_transactions_say(
    case: tuple[list[bytes], dict[int, bytes]],
) -> None:
    journal, expected = case
    copies = replay(journal.__getitem__, block_bytes=JOURNAL_BLOCK, block_count=LAST)
    found = {}
    for block, copy in copies.items():
        content = journal[copy.journal_block]
        found[block] = MAGIC_BYTES + content[4:] if copy.escaped else content
    assert found == expected


@given(journals(), st.integers(0, LAST - 1), st.binary(min_size=1, max_size=64), st.integers(0, 200))
def test_a_damaged_journal_ends(
    case: tuple[list[bytes], dict[int, bytes]], number: int, damage: bytes, at: int
) -> None:
    journal = list(case[0])
    journal[number] = (journal[number][:at] + damage + journal[number][at + len(damage) :])[:JOURNAL_BLOCK]
    try:
        copies = replay(journal.__getitem__, block_bytes=JOURNAL_BLOCK, block_count=LAST)
    except WrongState:
        return
    assert all(0 < copy.journal_block < LAST for copy in copies.values())


@given(st.binary(max_size=64))
def test_frames_decode_or_say_value_error(payload: bytes) -> None:
    for decode in (
        frames.decode_read,
        frames.decode_failed,
        frames.decode_volume,
        frames.decode_unread,
        frames.decode_ask,
        BatchChecker([100]).decode,
    ):
        try:
            decode(payload)
        except ValueError:
            continue
