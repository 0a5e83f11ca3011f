"""Files for the guest to hold: the same on every build, and like real ones to a deduplicating store.

Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from arraylift.sizes import KIB

_SIZES = (*(4 * KIB for _ in range(20)), *(64 * KIB for _ in range(8)), *(1024 * KIB for _ in range(6)))


def sample_files(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one disk: half text that compresses, half what does not."""
    source = random.Random(f"arraylift guest {name}")  # noqa: S311 - only to differ
    for number, size in enumerate(_SIZES):
        if number % 2:
            yield f"{number:02d}.bin", source.randbytes(size)
        else:
            line = b"%s %08x, line %%06d of a file that is here to be found again\n" % (
                name.encode(),
                source.getrandbits(32),
            )
            lines = -(-size // len(line % 0))
            yield f"{number:02d}.txt", b"".join(line % at for at in range(lines))[:size]
