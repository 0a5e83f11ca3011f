"""Tenants, their fingerprint keys, and the key that wraps these.

Owns: ``<state>/wrapping.key`` and every byte below ``<unit>/keys``.
Invariants:
  K1 a tenant's key never changes and is never on disk unwrapped.
  K2 the wrapping key is made once, on a target that holds no keys yet; with keys and
     without it the target does not start: a new one would hide the loss.
  K3 an unwrapped key has the key id that its file says.
Callers: any thread. Format: docs/formats/key-v1.md
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, InvalidRequest, NotFound, WrongState
from arraylift.grants import load_secret
from arraylift.ids import KeyId, TenantId, check_name
from arraylift.segments.fingerprint import KEY_BYTES, key_id_of
from dedup_target.unit_backend import UnitBackend

KEY_MAGIC = b"ALKEYFIL"
FOLDER = "keys"
SUFFIX = ".alk"
DEFAULT_TENANT = "default"
TENANTS_MAX = 10_000

_KEYS = frozenset({"key_id", "tenant", "tenant_name", "wrapped_key"})


@dataclass(frozen=True, slots=True)
class TenantKey:
    """What a target knows of a tenant."""

    tenant: TenantId
    name: str
    key: bytes = field(repr=False)
    key_id: KeyId


class KeyStore:
    """The tenants of one storage unit, unwrapped in memory."""

    def __init__(self, backend: UnitBackend, wrapping_key: bytes) -> None:
        """Unwrap all keys. Raises WrongState if they were wrapped under another key, Corruption."""
        self._backend = backend
        self._wrapping_key = wrapping_key
        self._lock = threading.Lock()
        loaded = [self._load(name) for name in backend.list(FOLDER)]
        self._by_id = {key.tenant: key for key in loaded}
        self._by_name = {key.name: key for key in loaded}
        if not len(self._by_name) == len(self._by_id) == len(loaded):
            raise Corruption(
                f"two key files of {backend.location} are for one tenant",
                subject=f"{backend.location}/{FOLDER}",
                next_step="remove the one that does not belong to this unit",
            )

    def get_or_create(self, name: str) -> TenantKey:
        """Return the tenant, made with a new key at first use; empty: the default tenant.

        Raises InvalidRequest (name, more than TENANTS_MAX), OutOfSpace.
        """
        name = check_name(name or DEFAULT_TENANT, "tenant")
        with self._lock:
            known = self._by_name.get(name)
            if known:
                return known
            if len(self._by_id) >= TENANTS_MAX:
                raise InvalidRequest(f"this target has its {TENANTS_MAX} tenants", subject=f"tenant {name}")
            key = secrets.token_bytes(KEY_BYTES)
            made = TenantKey(self._unused_id(), name, key, key_id_of(key))
            data = encode_key(made, self._wrapping_key)
            self._backend.put(_name_of(made.tenant), [data], label="key")
            self._by_id[made.tenant] = self._by_name[name] = made
            return made

    def adopt(self, key: TenantKey) -> None:
        """Have a tenant's key also in this unit. Idempotent. Raises as ``check_adoptable``, OutOfSpace."""
        with self._lock:
            self.check_adoptable(key)
            if key.tenant not in self._by_id:
                data = encode_key(key, self._wrapping_key)
                self._backend.put(_name_of(key.tenant), [data], label="key")
                self._by_id[key.tenant] = self._by_name[key.name] = key

    def restore(self, key: TenantKey) -> bool:
        """The same for a key that this unit has lost; returns whether it had. Raises as ``adopt``."""
        with self._lock:
            known = key.tenant in self._by_id
        self.adopt(key)
        return not known

    def check_adoptable(self, key: TenantKey) -> None:
        """Raises WrongState if this unit knows another tenant by that name or number."""
        known = {self._by_id.get(key.tenant, key), self._by_name.get(key.name, key)}
        if known != {key}:
            raise WrongState(
                f"tenant {key.name} has another key in this target",
                subject=f"tenant {key.name}",
                next_step="the unit belongs to another target; add it there",
            )

    def by_name(self, name: str) -> TenantKey:
        """Raises NotFound."""
        with self._lock:
            known = self._by_name.get(name or DEFAULT_TENANT)
        if known is None:
            raise NotFound(f"there is no tenant {name!r}", subject=f"tenant {name}")
        return known

    def by_id(self, tenant: TenantId) -> TenantKey:
        """Raises NotFound."""
        with self._lock:
            known = self._by_id.get(tenant)
        if known is None:
            raise NotFound(
                f"there is no key of tenant {tenant:016x}",
                subject=f"tenant {tenant:016x}",
                next_step="put its file back into the unit's keys directory from a copy",
            )
        return known

    def all(self) -> list[TenantKey]:
        """Every tenant, by name."""
        with self._lock:
            return [self._by_name[name] for name in sorted(self._by_name)]

    def _load(self, name: str) -> TenantKey:
        key = decode_key(self._backend.get(f"{FOLDER}/{name}"), self._wrapping_key, what=f"key file {name}")
        if name != f"{key.tenant:016x}{SUFFIX}":
            raise Corruption(f"key file {name} is about tenant {key.tenant:016x}", subject=name)
        return key

    def _unused_id(self) -> TenantId:
        while True:
            tenant = TenantId(secrets.randbits(64))
            if tenant and tenant not in self._by_id:
                return tenant


def _name_of(tenant: TenantId) -> str:
    return f"{FOLDER}/{tenant:016x}{SUFFIX}"


def encode_key(key: TenantKey, wrapping_key: bytes) -> bytes:
    """Return the whole key file, its key wrapped (RFC 5649; K1)."""
    body = envelope.canonical_json(
        {
            "key_id": key.key_id.hex(),
            "tenant": f"{key.tenant:016x}",
            "tenant_name": key.name,
            "wrapped_key": aes_key_wrap_with_padding(wrapping_key, key.key).hex(),
        }
    )
    return envelope.encode(KEY_MAGIC, body)


def decode_key(data: bytes, wrapping_key: bytes, *, what: str) -> TenantKey:
    """Decode and unwrap a key file. Raises Corruption, WrongState (another wrapping key)."""
    fields = envelope.decode_json(KEY_MAGIC, data, what=what, keys=_KEYS)
    try:
        tenant = TenantId(int(fields["tenant"], 16))
        name, key_id = check_name(fields["tenant_name"], "tenant"), bytes.fromhex(fields["key_id"])
        key = aes_key_unwrap_with_padding(wrapping_key, bytes.fromhex(fields["wrapped_key"]))
    except InvalidUnwrap:
        raise WrongState(
            f"{what} was wrapped under another wrapping key",
            subject=what,
            next_step="put back the wrapping.key that belongs to this state directory",
        ) from None
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise Corruption(f"{what} makes no sense: {error}", subject=what) from error
    if len(key) != KEY_BYTES or key_id_of(key) != key_id:
        raise Corruption(f"{what} holds another key than it says", subject=what)  # K3
    return TenantKey(tenant, name, key, KeyId(key_id))


# -- the target's secret ------------------------------------------------------------------------


def load_wrapping_key(files: Files, state_path: str, *, holds_keys: bool) -> bytes:
    """Return the wrapping key, made at first start (K2). ``holds_keys``: units may have keys under it.

    Raises WrongState, Corruption.
    """
    path = f"{state_path}/wrapping.key"
    if holds_keys and not files.exists(path):
        raise WrongState(
            f"{path} is missing, but the units hold keys that were wrapped under it",
            subject=path,
            next_step="put wrapping.key back from its safe copy; without it no backup can be read",
        )
    return load_secret(files, path, label="wrapping-key")
