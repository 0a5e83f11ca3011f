"""How entries travel from a parser: a batch is a table of fixed records, a table of pieces, and heaps. Pure.

Payload of a BATCH frame, little-endian: the counts of HEADS (u32 each: records, pieces, then the bytes of
each heap), the records, the pieces, then the heaps in the order of HEAPS. A record gives the length of its
own share of each heap and its count of pieces; shares follow each other in the order of the records.
The writer (``parse/batch_writer.py``) packs with struct, the reader (``batch.py``) looks through numpy.
"""

from __future__ import annotations

import struct

HEAPS = ("name", "target", "flaw", "attribute", "literal")

RECORD_FIELDS = (
    ("parent", "u4"),  # number of the directory that has this name
    ("directory", "u4"),  # number that this directory gets, or NO_DIRECTORY
    ("mode", "u4"),
    ("uid", "u4"),
    ("gid", "u4"),
    ("links", "u4"),
    ("major", "u4"),
    ("minor", "u4"),
    ("pieces", "u4"),
    ("literal_bytes", "u4"),
    ("attribute_bytes", "u4"),
    ("name_bytes", "u2"),
    ("target_bytes", "u2"),
    ("flaw_bytes", "u2"),
    ("reserved", "u2"),
    ("size", "u8"),
    ("inode", "u8"),
    ("modified", "i8"),
    ("changed", "i8"),
    ("accessed", "i8"),
    ("created", "i8"),
)
PIECE_FIELDS = (("kind", "u2"), ("disk", "u2"), ("reserved", "u4"), ("offset", "u8"), ("length", "u8"))

_CODES = {"u2": "H", "u4": "I", "u8": "Q", "i8": "q"}


def _struct(fields: tuple[tuple[str, str], ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(_CODES[code] for _, code in fields))


HEADS = struct.Struct(f"<{2 + len(HEAPS)}I")
RECORD = _struct(RECORD_FIELDS)
PIECE = _struct(PIECE_FIELDS)
ATTRIBUTE = struct.Struct("<HI")
"""Lengths of name and value, which follow; the attribute heap is a row of these."""

NO_DIRECTORY = 0xFFFFFFFF

ATTRIBUTES_BYTES_MAX = 256 * 1024
FLAW_BYTES_MAX = 300
LINK_BYTES_MAX = 4096
SIZE_BYTES_MAX = 1 << 60
