"""Pieces against a plain model of a file: bytes laid out in an image, some of them replaced by a journal."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import WrongState
from backup_server.catalog import frames
from backup_server.catalog.frames import FrameKind
from backup_server.catalog.journal import MAGIC, MAGIC_BYTES, replay
from backup_server.catalog.pieces import (
    LITERAL_BYTES_MAX,
    Overlay,
    Piece,
    PieceKind,
    Run,
    content_of,
    flaw_of,
    literal_pieces,
    pieces_of,
)

BLOCK = 16
BLOCKS = 40
START = 5  # the file system starts at no multiple of its blocks


@dataclass(frozen=True)
class Case:
    image: bytes
    true: bytes  # the image as it is with the journal
    runs: list[Run]
    size_bytes: int
    overlay: Overlay

    @property
    def content(self) -> bytes:
        parts = [
            bytes(run.length) if run.image_offset is None else self.true[run.image_offset :][: run.length]
            for run in sorted(self.runs, key=lambda run: run.file_offset)
        ]
        return b"".join(parts)[: self.size_bytes]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    image = draw(st.binary(min_size=START + BLOCK * BLOCKS, max_size=START + BLOCK * BLOCKS))
    true = bytearray(image)
    replaced = sorted(draw(st.sets(st.integers(0, BLOCKS - 1), max_size=12)))
    for block in replaced:
        true[START + block * BLOCK : START + (block + 1) * BLOCK] = draw(
            st.binary(min_size=BLOCK, max_size=BLOCK)
        )
    whole = bytes(true)
    runs = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        count = draw(st.integers(1, 6))
        first = draw(st.none() | st.integers(0, BLOCKS - count))
        runs.append(Run(at, count * BLOCK, None if first is None else START + first * BLOCK))
        at += count * BLOCK
    size = draw(st.integers(0, at))
    overlay = Overlay(START, BLOCK, replaced, lambda offset, length: whole[offset : offset + length])
    return Case(image, whole, draw(st.permutations(runs)), size, overlay)


@given(cases(), st.integers(1, 100))
def test_pieces_say_what_the_runs_and_the_journal_say(case: Case, step_bytes: int) -> None:
    pieces = pieces_of(case.runs, size_bytes=case.size_bytes, overlay=case.overlay)
    assert not flaw_of(pieces, size_bytes=case.size_bytes, image_bytes=len(case.image))
    parts = list(
        content_of(pieces, lambda offset, length: case.image[offset : offset + length], step_bytes=step_bytes)
    )
    assert b"".join(parts) == case.content
    assert all(0 < len(part) <= step_bytes for part in parts)
    for one, other in pairwise(pieces):  # as few as can be
        together = one.image_offset + one.length == other.image_offset or one.kind is not PieceKind.DATA
        assert one.kind is not other.kind or not together


@given(cases())
def test_pieces_survive_the_wire(case: Case) -> None:
    pieces = pieces_of(case.runs, size_bytes=case.size_bytes, overlay=case.overlay)
    read: list[Piece] = []
    for data in frames.encode_pieces(pieces):
        kind, length = frames.header(data[: frames.HEADER.size])
        payload = data[frames.HEADER.size :]
        assert len(payload) == length
        read += (
            [frames.decode_literal(payload)] if kind is FrameKind.LITERAL else frames.decode_pieces(payload)
        )
    assert read == pieces


@given(cases(), st.data())
def test_runs_that_do_not_cover_the_file_are_refused(case: Case, data: st.DataObject) -> None:
    needed = [run for run in case.runs if run.file_offset < case.size_bytes]
    if not needed:
        return
    lost = data.draw(st.sampled_from(needed))
    rest = [run for run in case.runs if run is not lost]
    with pytest.raises(WrongState):
        pieces_of(rest, size_bytes=case.size_bytes, overlay=case.overlay)


def test_literals_are_cut_at_their_maximum_and_bounded() -> None:
    blocks = 3 * LITERAL_BYTES_MAX // 4096
    overlay = Overlay(0, 4096, range(blocks), lambda offset, length: bytes(length))
    pieces = pieces_of([Run(0, blocks * 4096, 0)], size_bytes=blocks * 4096, overlay=overlay)
    assert [piece.length for piece in pieces] == [LITERAL_BYTES_MAX] * 3
    blocks = 33 * LITERAL_BYTES_MAX // 65536
    overlay = Overlay(0, 65536, range(blocks), lambda offset, length: bytes(length))
    with pytest.raises(WrongState, match="journal"):
        pieces_of([Run(0, blocks * 65536, 0)], size_bytes=blocks * 65536, overlay=overlay)
    assert literal_pieces(b"") == []
    assert literal_pieces(b"abc") == [Piece(PieceKind.LITERAL, 0, 3, literal=b"abc")]


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
        frames.decode_pieces,
        frames.decode_literal,
        frames.decode_failed,
        lambda data: frames.decode_entry(data, directory="/"),
    ):
        try:
            decode(payload)
        except ValueError:
            continue
