"""Extents of a BLOCK_STATUS answer as marks of equal grains. Pure.

Callers: any thread.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Marks = npt.NDArray[np.bool_]


def mark(
    marks: Marks,
    grain: int,
    offset: int,
    extents: npt.NDArray[np.unsignedinteger],
    chosen: npt.NDArray[np.bool_],
) -> None:
    """Set the marks of all grains that the chosen extents, which begin at ``offset``, touch."""
    ends = np.cumsum(extents[:, 0].astype(np.uint64)) + np.uint64(offset)
    starts = ends - extents[:, 0]
    firsts = (starts[chosen] // np.uint64(grain)).astype(np.int64)
    lasts = ((ends[chosen] - np.uint64(1)) // np.uint64(grain)).astype(np.int64)
    lasts = np.minimum(lasts, len(marks) - 1)
    inside = firsts <= lasts
    firsts, lasts = firsts[inside], lasts[inside]
    if not len(firsts):
        return
    # Only where the extents are: a disk of a million answers is not gone through with each.
    low, high = int(firsts[0]), int(lasts[-1]) + 1
    steps = np.zeros(high - low + 1, np.int32)
    np.add.at(steps, firsts - low, 1)
    np.add.at(steps, lasts + 1 - low, -1)
    marks[low:high] |= np.cumsum(steps[:-1]) > 0
