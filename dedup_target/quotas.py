"""How much each tenant may store.

Owns: ``<state>/quotas.ald``. What counts is the size of a tenant's containers, garbage included, since
that is what lies on the disk.
Invariants:
  T1 a quota is durable before it is answered.
  T2 a file that cannot be read bounds nobody, and is told; the next quota that is set replaces it.
Callers: any thread. Format: docs/formats/quotas-v1.md
"""

from __future__ import annotations

import threading

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import Corruption, InvalidRequest, NotFound, OutOfSpace
from arraylift.ids import TenantId
from arraylift.logs import get_logger
from arraylift.sizes import human

MAGIC = b"ALQUOTAS"
QUOTA_BYTES_MAX = 1 << 62

_log = get_logger("quotas")


class Quotas:
    """The quotas of one target; a tenant without one is bounded by the disk alone."""

    def __init__(self, files: Files, state_path: str) -> None:
        """Raises WrongState for a newer format."""
        self._files = files
        self._path = f"{state_path}/quotas.ald"
        self._lock = threading.Lock()
        self._bytes: dict[TenantId, int] = {}
        try:
            self._bytes = decode(files.read(self._path))
        except NotFound:
            pass
        except Corruption as error:
            _log.error("quotas_unreadable", why=error.message)  # T2

    def of(self, tenant: TenantId) -> int:
        """Bytes; 0: none."""
        with self._lock:
            return self._bytes.get(tenant, 0)

    def set(self, tenant: TenantId, quota_bytes: int) -> None:
        """0 takes the quota away. Raises InvalidRequest, OutOfSpace, StoreFailed."""
        if not 0 <= quota_bytes <= QUOTA_BYTES_MAX:
            raise InvalidRequest(f"{quota_bytes} bytes are no quota")
        with self._lock:
            changed = {**self._bytes, tenant: quota_bytes}
            changed = {one: value for one, value in changed.items() if value}
            self._files.publish(self._path, [encode(changed)], label="quotas")  # T1
            self._bytes = changed

    def check(self, tenant: TenantId, name: str, stored_bytes: int, more_bytes: int) -> None:
        """Raise OutOfSpace if ``more_bytes`` on top of what is stored pass the quota."""
        quota = self.of(tenant)
        if quota and stored_bytes + more_bytes > quota:
            raise OutOfSpace(
                f"tenant {name} has stored {human(stored_bytes)} of its quota of {human(quota)}",
                subject=f"tenant {name}",
                next_step="delete backups and collect garbage, or have the quota raised; then repeat",
                quota_bytes=quota,
                stored_bytes=stored_bytes,
            )


def encode(quotas: dict[TenantId, int]) -> bytes:
    """The whole file."""
    fields = {f"{tenant:016x}": value for tenant, value in quotas.items()}
    return envelope.encode(MAGIC, envelope.canonical_json({"quotas": fields}))


def decode(data: bytes) -> dict[TenantId, int]:
    """Raises Corruption, WrongState (newer format)."""
    fields = envelope.decode_json(MAGIC, data, what="quotas", keys=frozenset({"quotas"}))
    try:
        quotas = {TenantId(int(tenant, 16)): value for tenant, value in fields["quotas"].items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Corruption(f"the quotas make no sense: {error}", subject="quotas") from error
    if not all(isinstance(value, int) and 0 < value <= QUOTA_BYTES_MAX for value in quotas.values()):
        raise Corruption("a quota is no number of bytes", subject="quotas")
    return quotas
