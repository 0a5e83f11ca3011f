"""Keyed BLAKE3 fingerprints under type tags.

A tenant's 32-byte key never hashes data itself: one subkey per type is derived
from it, so a node can never pass for a segment, nor either for a manifest
(law 5). Nobody without the key can test whether a tenant holds a given content.
Format: docs/formats/fingerprint-v1.md. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blake3 import blake3

from arraylift.ids import Fingerprint, KeyId

KEY_BYTES = 32
ZERO_FINGERPRINT = Fingerprint(bytes(32))
"""Stands for "hole" where a fingerprint is expected; no content hashes to it."""

_CONTEXT = "arraylift 2026 v1 {}"


def key_id_of(key: bytes) -> KeyId:
    """Return the 8-byte public name of a key."""
    return KeyId(blake3(key, derive_key_context=_CONTEXT.format("key id")).digest(length=8))


class FingerprintKey:
    """The three subkeys of one tenant's key, ready for use."""

    __slots__ = ("_manifest", "_node", "_segment", "key_id")

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES, "a fingerprint key has 32 bytes"
        self._segment = blake3(key, derive_key_context=_CONTEXT.format("segment")).digest()
        self._node = blake3(key, derive_key_context=_CONTEXT.format("node")).digest()
        self._manifest = blake3(key, derive_key_context=_CONTEXT.format("manifest")).digest()
        self.key_id = key_id_of(key)

    def segment(self, plain: bytes | memoryview) -> Fingerprint:
        """Fingerprint of one segment's plain bytes."""
        return Fingerprint(blake3(plain, key=self._segment).digest())

    def segments(self, pieces: Iterable[bytes | memoryview]) -> bytes:
        """Fingerprints of many segments, packed 32 bytes each."""
        key = self._segment
        return b"".join([blake3(piece, key=key).digest() for piece in pieces])

    def node(self, encoded: bytes) -> Fingerprint:
        """Fingerprint of one encoded tree node."""
        return Fingerprint(blake3(encoded, key=self._node).digest())

    def manifest(self, body: bytes) -> bytes:
        """Seal of a manifest body."""
        return blake3(body, key=self._manifest).digest()


def unpack(packed: bytes | memoryview) -> Sequence[bytes]:
    """Split packed fingerprints into a list of 32-byte strings."""
    raw = bytes(packed)
    return [raw[start : start + 32] for start in range(0, len(raw), 32)]
