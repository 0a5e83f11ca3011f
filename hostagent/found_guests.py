"""Guests that a VMM has and nobody made through this host: what adoption asks of its driver.

Callers: adoption, on its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from arraylift.ids import VmId
from arraylift.vm.types import VmConfig
from hostagent.vm_types import VmRecord


@dataclass(frozen=True, slots=True)
class FoundGuest:
    """A guest as it is now. Its id follows from what the VMM calls it: the same wherever it is found."""

    vm_id: VmId
    config: VmConfig
    running: bool


class FoundGuests(Protocol):
    """All guests of one VMM that were not made by this host."""

    def found(self, known: Mapping[VmId, VmRecord]) -> list[FoundGuest]:
        """Everything there is. ``known``: what is kept of them; a disk of an array is theirs only if it
        stands there. Raises PeerUnavailable, DeadlineExceeded: nothing is known."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed``, from any thread, when another look is worth it."""
        ...
