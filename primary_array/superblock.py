"""What a pool directory is, and what its files are called.

Owns: pool.json and the names of all files of a pool.
Invariants: P1 pool.json is published last when a pool is made: where it is, a valid
checkpoint is. P2 a version, feature or algorithm that this code does not know is refused.
Callers: pool_open, before any other thread exists. Format: docs/formats/pool-v2.md.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import xxhash

from arraylift.durable import Files
from arraylift.errors import Corruption, WrongState
from arraylift.ids import PoolId, check_id
from arraylift.sizes import GRANULE_BYTES
from primary_array.block_map import PAGE_GRANULES

MAGIC = "arraylift-pool"
VERSION = 2
VERSIONS_READ = (1, 2)
"""Version 1 had its pages in its checkpoints and knew no clones."""
CHECKSUM = "xxh3-64"
LABEL = "superblock"

_JOURNAL = ("journal-", ".alj")
_CHECKPOINT = ("checkpoint-", ".alc")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one pool. Journals and checkpoints are numbered from 1."""

    directory: str

    @property
    def superblock(self) -> str:
        return os.path.join(self.directory, "pool.json")

    @property
    def slots(self) -> str:
        return os.path.join(self.directory, "slots.data")

    @property
    def pages(self) -> str:
        return os.path.join(self.directory, "map.pages")

    @property
    def damaged(self) -> str:
        """Where a repair leaves what it replaced."""
        return os.path.join(self.directory, "damaged")

    @property
    def reserve(self) -> str:
        return os.path.join(self.directory, "reserve.bin")

    def journal(self, number: int) -> str:
        return self._numbered(_JOURNAL, number)

    def checkpoint(self, number: int) -> str:
        return self._numbered(_CHECKPOINT, number)

    def journals(self, files: Files) -> list[int]:
        """Numbers of the journals that are there, ascending."""
        return self._numbers(_JOURNAL, files)

    def checkpoints(self, files: Files) -> list[int]:
        """Numbers of the checkpoints that are there, ascending."""
        return self._numbers(_CHECKPOINT, files)

    def _numbered(self, kind: tuple[str, str], number: int) -> str:
        return os.path.join(self.directory, f"{kind[0]}{number:010d}{kind[1]}")

    def _numbers(self, kind: tuple[str, str], files: Files) -> list[int]:
        prefix, suffix = kind
        middles = [
            name[len(prefix) : -len(suffix)]
            for name in files.list_dir(self.directory)
            if name.startswith(prefix) and name.endswith(suffix)
        ]
        return sorted(int(middle) for middle in middles if middle.isascii() and middle.isdigit())


def publish_superblock(files: Files, layout: Layout, pool_id: PoolId) -> None:
    """Declare the directory to be a pool (P1)."""
    fields: dict[str, Any] = {
        "magic": MAGIC,
        "version": VERSION,
        "features": [],
        "pool_id": pool_id,
        "granule_bytes": GRANULE_BYTES,
        "page_granules": PAGE_GRANULES,
        "checksum_algorithm": CHECKSUM,
    }
    fields["checksum"] = _checksum(fields)
    text = json.dumps(fields, sort_keys=True, indent=2) + "\n"
    files.publish(layout.superblock, [text.encode()], label=LABEL)


def read_superblock(files: Files, layout: Layout) -> tuple[PoolId, int]:
    """Return the pool's id and version. Raises NotFound, Corruption, WrongState (P2)."""
    path = layout.superblock
    try:
        fields = json.loads(files.read(path))
        checksum = fields.pop("checksum")
        if fields["magic"] != MAGIC or checksum != _checksum(fields):
            raise ValueError("the checksum is wrong")
        version = fields["version"]
        known: tuple[Any, ...] = ([], GRANULE_BYTES, PAGE_GRANULES, CHECKSUM)
        names = ("features", "granule_bytes", "page_granules", "checksum_algorithm")
        found = tuple(fields[name] for name in names)
        pool_id = PoolId(check_id(fields["pool_id"], "pool_id"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corruption(f"{path} is damaged: {error}", subject=path) from error
    if version not in VERSIONS_READ or found != known:
        raise WrongState(
            f"the pool in {layout.directory} was written by another version: {version}, {found}",
            subject=layout.directory,
            next_step="run the version that wrote it",
        )
    return pool_id, version


def _checksum(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(canonical)
