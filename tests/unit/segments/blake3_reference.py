"""BLAKE3 for inputs of one chunk (up to 1,024 bytes), written from its specification.

A second implementation to hold the golden vectors against, so that they say what the format
says and not merely what one library did. Keyed and key-derivation modes only.
"""

from __future__ import annotations

import struct

_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CHUNK_START, _CHUNK_END, _ROOT, _KEYED, _CONTEXT, _MATERIAL = 1, 2, 8, 16, 32, 64
_LANES = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)


def _turn(value: int, bits: int) -> int:
    return (value >> bits | value << 32 - bits) & 0xFFFFFFFF


def _compress(chain: tuple[int, ...], block: bytes, flags: int) -> tuple[int, ...]:
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    state = [*chain, *_IV[:4], 0, 0, len(block), flags]
    for _ in range(7):
        for lane, (a, b, c, d) in enumerate(_LANES):
            for word, first, second in ((words[2 * lane], 16, 12), (words[2 * lane + 1], 8, 7)):
                state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
                state[d] = _turn(state[d] ^ state[a], first)
                state[c] = (state[c] + state[d]) & 0xFFFFFFFF
                state[b] = _turn(state[b] ^ state[c], second)
        words = [words[place] for place in _ORDER]
    return tuple(state[i] ^ state[i + 8] for i in range(8))


def _chunk(key: tuple[int, ...], data: bytes, mode: int) -> bytes:
    assert len(data) <= 1024, "one chunk"
    blocks = [data[start : start + 64] for start in range(0, len(data), 64)] or [b""]
    chain = key
    for index, block in enumerate(blocks):
        first = _CHUNK_START if index == 0 else 0
        last = _CHUNK_END | _ROOT if index == len(blocks) - 1 else 0
        chain = _compress(chain, block, mode | first | last)
    return struct.pack("<8I", *chain)


def keyed(key: bytes, data: bytes) -> bytes:
    """32 bytes of keyed BLAKE3."""
    return _chunk(struct.unpack("<8I", key), data, _KEYED)


def derived(context: str, material: bytes) -> bytes:
    """32 bytes of BLAKE3's derive_key."""
    key = _chunk(_IV, context.encode(), _CONTEXT)
    return _chunk(struct.unpack("<8I", key), material, _MATERIAL)
