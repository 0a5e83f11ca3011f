"""Grants: 32 bytes that let one peer run one transfer, derived so that nothing has to be stored.

Owns: ``<state>/grant.secret``. A grant is a keyed hash of the transfer's id (and, where the
receiver keeps no record of it, of the peer's name), so that it is the same whenever it is
asked for, over restarts, and nobody without the secret can make one.
Format: docs/formats/key-v1.md. Callers: any thread.
"""

from __future__ import annotations

import secrets

from blake3 import blake3

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, NotFound
from arraylift.ids import TransferId

SECRET_MAGIC = b"ALSECRET"
SECRET_BYTES = 32


def load_grant_secret(files: Files, state_path: str) -> bytes:
    """Return the secret that grants are derived from, made at first start."""
    return load_secret(files, f"{state_path}/grant.secret", label="grant-secret")


def grant_for(secret: bytes, transfer_id: TransferId, peer: str = "") -> bytes:
    """Return the 32-byte grant of a transfer: the same each time it is asked for."""
    name = f"{transfer_id}\0{peer}" if peer else transfer_id
    return blake3(name.encode(), key=secret).digest()


def load_secret(files: Files, path: str, *, label: str) -> bytes:
    """Return the 32-byte secret in ``path``, made durably at first use. Raises Corruption."""
    try:
        data = files.read(path)
    except NotFound:
        secret = secrets.token_bytes(SECRET_BYTES)
        files.publish(path, [encode_secret(secret)], label=label)
        return secret
    body, _ = envelope.decode(SECRET_MAGIC, data, what=path)
    if len(body) != SECRET_BYTES:
        raise Corruption(f"{path} holds {len(body)} bytes instead of {SECRET_BYTES}", subject=path)
    return body


def encode_secret(secret: bytes) -> bytes:
    """Return the whole file of a 32-byte secret."""
    return envelope.encode(SECRET_MAGIC, secret)
