"""The places that pass the contract of ``UnitBackend``, each with ways to break a put."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from arraylift.durable import RealFiles
from arraylift.errors import PeerUnavailable
from arraylift.failpoints import Failpoints
from dedup_target import superblock
from dedup_target.anchored_backend import AnchoredBackend
from dedup_target.cached_backend import CachedBackend
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.s3_backend import Patience, S3Backend
from dedup_target.superblock import Role, Superblock
from dedup_target.unit_backend import UnitBackend
from tests.fakes.backend import MemoryBackend
from tests.fakes.disk import FakeFiles
from tests.fakes.object_store import ObjectStore
from tests.unit.dedup_target.material import UNIT

KINDS = ("directory", "simulated disk", "anchored", "memory", "s3", "cached")
IMPATIENT = Patience(connect_seconds=1, request_seconds=10, retries_max=2, retry_seconds=10)
SUPERBLOCK = superblock.encode(Superblock(UNIT, "archive", Role.ARCHIVE, 64 << 20))


@dataclass
class Rig:
    """A backend over an empty place."""

    backend: UnitBackend
    reopen: Callable[[], UnitBackend]
    """Another backend over the same place, as the next process would make it."""
    faults: Sequence[Callable[[], None]] = ()
    """Each has the next put fail in its own way."""
    after_fault: Callable[[], None] = lambda: None


def make_rig(kind: str, path: Path, store: Callable[[], ObjectStore]) -> Iterator[Rig]:
    """Yield the rig of a kind."""
    if kind in {"directory", "anchored"}:
        yield _directory(path / "unit", anchored=kind == "anchored")
    elif kind == "simulated disk":
        files = FakeFiles()
        yield Rig(DirectoryBackend(files, "/unit"), lambda: DirectoryBackend(files, "/unit"))
    elif kind == "memory":
        memory = MemoryBackend()
        yield Rig(memory, lambda: memory, _memory_faults(memory))
    elif kind == "cached":
        memory = MemoryBackend()
        memory.objects[superblock.NAME] = SUPERBLOCK

        def open_cached() -> UnitBackend:
            return CachedBackend(memory, DirectoryBackend(RealFiles(), str(path / "cache")), UNIT)

        yield Rig(open_cached(), open_cached, _memory_faults(memory))
    else:
        yield _s3(store())


def _directory(path: Path, *, anchored: bool) -> Rig:
    failpoints = Failpoints()

    def open_directory() -> UnitBackend:
        directory = DirectoryBackend(RealFiles(failpoints), str(path))
        return AnchoredBackend(directory, is_local=True) if anchored else directory

    steps = ("create", "write", "fsync", "rename", "fsync_dir")
    faults = [
        partial(failpoints.arm, f"t.{step}.{when}={error}")
        for step in steps
        for when in ("before", "after")
        for error in ("eio", "enospc")
    ]
    return Rig(open_directory(), open_directory, faults, lambda: failpoints.arm(""))


def _memory_faults(memory: MemoryBackend) -> list[Callable[[], None]]:
    gone = PeerUnavailable("the answer was lost")
    return [lambda: memory.fail("put", gone), lambda: memory.fail("put", gone, effect=True)]


def _s3(store: ObjectStore) -> Rig:
    location = f"{store.make_bucket()}/some/unit"

    def open_s3() -> UnitBackend:
        return S3Backend(location, endpoint=store.endpoint, patience=IMPATIENT)

    tries = IMPATIENT.retries_max + 1
    faults = [partial(store.fail_puts, fault, tries) for fault in ("refuse", "cut", "lose")]
    return Rig(open_s3(), open_s3, faults, store.faults.clear)


@pytest.fixture(scope="session")
def object_store() -> Iterator[Callable[[], ObjectStore]]:
    """Starts the store for the first test that wants it."""
    made: list[ObjectStore] = []

    def get() -> ObjectStore:
        if not made:
            made.append(ObjectStore())
        return made[0]

    patch = pytest.MonkeyPatch()
    for name, value in (
        ("ACCESS_KEY_ID", "tester"),
        ("SECRET_ACCESS_KEY", "secret"),
        ("REGION", "us-east-1"),
    ):
        patch.setenv(f"AWS_{name}", value)
    yield get
    patch.undo()
    for store in made:
        store.close()
