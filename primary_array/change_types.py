"""Who tells what changed, and what they told. Values only.

Callers: every module that sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt


class ChangeSource(Enum):
    """Who tells. ANY: births, where they can. BITMAP: the VMM that exports a foreign disk."""

    ANY = "any"
    BIRTHS = "births"
    FULL_READ = "full_read"
    DIFF = "diff"
    SUPPLIED = "supplied"
    BITMAP = "bitmap"


@dataclass(frozen=True, slots=True)
class Changed:
    """Indexes of spans that may differ from the base, and who says so."""

    spans: npt.NDArray[np.uint64]
    source: ChangeSource
