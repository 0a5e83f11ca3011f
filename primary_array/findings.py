"""What a check of the pool can find, and what mends it. Values only.

Callers: map_check, file_check, pool_check; the edge shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """NOTE: nothing is wrong. WARNING: space is wasted. ERROR: data may be wrong or lost."""

    NOTE = 1
    WARNING = 2
    ERROR = 3


class Remedy(IntEnum):
    """How a finding is mended; the same remedy mends all findings of its kind at once."""

    NONE = 0
    RECOUNT = 1
    """Make the counts anew from the maps."""
    RECLAIM = 2
    """Make the free slots anew from the counts."""
    REMEASURE = 3
    """Make the figures of pages and maps anew from their entries."""
    DISTRUST = 4
    """Believe the births of this volume no longer: its next backup reads everything."""
    REWRITE = 5
    """Write pages, checkpoint and journal anew from memory."""
    REDECLARE = 6
    """Write the superblock anew."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is stable; ``remedy_for`` names the volume that a remedy concerns, if only one;
    ``files`` are kept in the folder ``damaged`` before they are replaced."""

    severity: Severity
    kind: str
    subject: str
    message: str
    next_step: str = ""
    remedy: Remedy = Remedy.NONE
    remedy_for: str = ""
    files: tuple[tuple[str, int, int], ...] = ()
    """(path, offset, bytes); 0 bytes: all."""
    repaired: bool = False

    @property
    def repairable(self) -> bool:
        return self.remedy is not Remedy.NONE
