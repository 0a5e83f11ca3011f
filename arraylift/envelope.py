"""Small files that are written whole: header, body, optional seal, one checksum over all.

Owns: the framing that manifests, keys, superblocks, high-water marks and quarantine
lists share; each caller brings its magic and the meaning of the body.
Invariants:
  V1 any changed, missing or added byte is an error, never another body.
  V2 a version or feature flag that this release does not know is refused.
Callers: any thread. Format: docs/formats/envelope-v1.md
"""

from __future__ import annotations

import json
import struct
from typing import Any

import xxhash

from arraylift.errors import Corruption, WrongState

MAGIC_BYTES = 8
VERSION = 1
SEAL_BYTES = 32
BODY_BYTES_MAX = 16 << 20
"""Nothing that comes in an envelope is near this; a larger length is damage."""

_HEAD = struct.Struct("<8sHHIII")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEAD.size + _CHECKSUM.size


def canonical_json(value: dict[str, Any]) -> bytes:
    """One value, one spelling: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def encode(magic: bytes, body: bytes, seal: bytes = b"") -> bytes:
    """Return the whole file. ``magic`` has 8 bytes, ``seal`` none or 32."""
    assert len(magic) == MAGIC_BYTES
    assert len(seal) in (0, SEAL_BYTES)
    assert len(body) <= BODY_BYTES_MAX
    head = _HEAD.pack(magic, VERSION, 0, 0, len(body), len(seal))
    return b"".join((head, _CHECKSUM.pack(_checksum(head, body, seal)), body, seal))


def decode(magic: bytes, data: bytes, *, what: str) -> tuple[bytes, bytes]:
    """Return (body, seal); ``what`` names the file in errors.

    Raises Corruption (V1) and WrongState for a newer format (V2).
    """
    if len(data) < HEADER_BYTES or data[:MAGIC_BYTES] != magic:
        raise _damaged(what, "it does not begin like one")
    _, version, reserved, flags, body_bytes, seal_bytes = _HEAD.unpack_from(data)
    if (version, reserved, flags) != (VERSION, 0, 0):
        raise WrongState(
            f"{what} has format version {version}, feature flags {flags:#x}; this release reads version 1",
            subject=what,
            next_step="use the release that wrote it; if none did, restore the file from a copy",
        )
    if seal_bytes not in (0, SEAL_BYTES) or len(data) != HEADER_BYTES + body_bytes + seal_bytes:
        raise _damaged(what, f"it has {len(data)} bytes, its header says otherwise")
    body = data[HEADER_BYTES : HEADER_BYTES + body_bytes]
    seal = data[HEADER_BYTES + body_bytes :]
    if _CHECKSUM.unpack_from(data, _HEAD.size)[0] != _checksum(data[: _HEAD.size], body, seal):
        raise _damaged(what, "its checksum does not match")
    return body, seal


def decode_json(magic: bytes, data: bytes, *, what: str, keys: frozenset[str]) -> dict[str, Any]:
    """Decode an envelope whose body is a JSON object with exactly ``keys``. Raises as decode."""
    body, _ = decode(magic, data, what=what)
    return parse_json(body, what=what, keys=keys)


def parse_json(
    body: bytes, *, what: str, keys: frozenset[str], optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Parse a checked body. A missing or unknown key is Corruption: additions come with a flag, or are
    ``optional``: left out where they say nothing, so that older releases read what they know."""
    try:
        value = json.loads(body)
    except ValueError as error:
        raise _damaged(what, f"its body is not JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() - optional != keys:
        raise _damaged(what, "its body does not have the fields of its version")
    return value


def _checksum(head: bytes, body: bytes, seal: bytes) -> int:
    state = xxhash.xxh3_64(head)
    state.update(body)
    state.update(seal)
    return state.intdigest()


def _damaged(what: str, why: str) -> Corruption:
    return Corruption(
        f"{what} is damaged: {why}", subject=what, next_step="restore that file from a copy or a replica"
    )
