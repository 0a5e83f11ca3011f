"""The inputs that golden files name: ``stretch(n)`` and ``zeros(n)``."""

from __future__ import annotations

import hashlib
import re


def stretch(count: int) -> bytes:
    """``count`` bytes: SHA-256 of the numbers 0, 1, 2, … (8 bytes, little-endian), one after the other."""
    blocks = (hashlib.sha256(number.to_bytes(8, "little")).digest() for number in range(-(-count // 32)))
    return b"".join(blocks)[:count]


def named(text: str) -> bytes:
    """The bytes that a golden file calls e.g. ``"stretch(5) zeros(3)"``."""
    parts = re.findall(r"(stretch|zeros)\((\d+)\)", text)
    assert " ".join(f"{kind}({count})" for kind, count in parts) == text
    return b"".join(stretch(int(count)) if kind == "stretch" else bytes(int(count)) for kind, count in parts)
