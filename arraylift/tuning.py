"""How a daemon's process is set up for moving bulk data.

Measured (docs/performance.md): buffers of a message or a span come and go by the
megabyte. glibc returns them to the kernel each time, and the page faults of taking
them back cost more than the copies; Python's collector walks long-lived maps for
cycles that are not there.
Callers: composition roots, once, before any thread starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

from arraylift.sizes import MIB

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

TRIM_BYTES = 128 * MIB
"""Free memory at the top of the heap that is kept."""
MMAP_BYTES = 32 * MIB
"""Larger blocks are mapped and unmapped; glibc allows no more."""
ARENAS_MAX = 4
"""Heaps that threads share: each may keep TRIM_BYTES."""


def tune_process() -> None:
    """Keep freed megabytes for the next message, and collect cycles less often. Best effort."""
    with contextlib.suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(_M_TOP_PAD, 4 * MIB)
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
