"""Whether there is room for what somebody wants to store: the target's reserve, and his tenant's quota.

Callers: whatever begins to take data in asks ``check_transfer``; the writer of containers asks
``check_container``. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable

from arraylift.ids import TenantId
from dedup_target.quotas import Quotas
from dedup_target.reserve import Reserve


class Space:
    """One target's answers."""

    def __init__(
        self,
        reserve: Reserve,
        quotas: Quotas,
        *,
        stored_bytes: Callable[[TenantId], int],
        name_of: Callable[[TenantId], str],
    ) -> None:
        """``stored_bytes``: size of a tenant's containers in all units."""
        self.reserve = reserve
        self.quotas = quotas
        self.stored_bytes = stored_bytes
        self._name_of = name_of

    def check_transfer(self, tenant: TenantId) -> None:
        """Raise OutOfSpace unless this tenant may begin to store."""
        self.reserve.check_begin()
        self._check_quota(tenant, 1)

    def check_container(self, tenant: TenantId, file_bytes: int) -> None:
        """Raise OutOfSpace unless there is room for this container, now."""
        self.reserve.check_more(file_bytes)
        self._check_quota(tenant, file_bytes)

    def _check_quota(self, tenant: TenantId, more_bytes: int) -> None:
        if self.quotas.of(tenant):
            self.quotas.check(tenant, self._name_of(tenant), self.stored_bytes(tenant), more_bytes)
