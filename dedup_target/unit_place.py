"""Where a storage unit lies, and which unit lies there.

Invariants:
  P1 a superblock is made only in an empty place: one with containers has lost its own, and one
     with anything else is not ours.
Callers: ``units``; any thread. Format: docs/formats/unit-v2.md
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

from arraylift.durable import Files
from arraylift.errors import Corruption, InvalidRequest, NotFound, PeerUnavailable, WrongState
from arraylift.ids import UnitId, random_id
from dedup_target import superblock
from dedup_target.anchored_backend import AnchoredBackend
from dedup_target.container_store import FOLDER as CONTAINERS
from dedup_target.directory_backend import DirectoryBackend
from dedup_target.s3_backend import SCHEME, S3Backend
from dedup_target.superblock import Role, Superblock
from dedup_target.unit_backend import UnitBackend

NOT_OURS = frozenset({"lost+found"})
"""What a fresh file system has at its top."""


class Places:
    """Opens places; each directory has a Files of its own, so that one failed disk poisons one unit."""

    def __init__(self, state_path: str, files_for: Callable[[], Files]) -> None:
        self._state = state_path
        self._files_for = files_for

    def open(self, location: str, endpoint: str = "", *, is_known: bool = False) -> AnchoredBackend:
        """A directory (absolute, or below the state directory), or ``s3://bucket/prefix``.

        Makes nothing. ``is_known``: a unit is there, whether it can be reached or not. Raises
        InvalidRequest, PeerUnavailable (the directory is not there; not for a known unit).
        """
        if location.startswith(SCHEME):
            far = S3Backend(location, endpoint=endpoint)
            return AnchoredBackend(far, is_local=False, is_anchored=is_known)
        path = self.path_of(location)
        files = self._files_for()
        if not is_known and not files.exists(path):
            raise PeerUnavailable(
                f"there is no directory {path}",
                subject=f"unit at {path}",
                next_step="mount it, or make it if the unit is to be new",
            )
        return AnchoredBackend(DirectoryBackend(files, path, make=False), is_local=True, is_anchored=is_known)

    def path_of(self, location: str) -> str:
        """Raises InvalidRequest for a path that is not plain."""
        path = PurePosixPath(location)
        if not location or "\0" in location or ".." in path.parts:
            raise InvalidRequest(
                f"{location!r} is no place for a unit", next_step="give an absolute directory, or s3://..."
            )
        return str(PurePosixPath(self._state) / path)


def read_superblock(place: UnitBackend) -> Superblock:
    """Raises NotFound if no unit is there, Corruption, WrongState (newer), PeerUnavailable."""
    data = place.get(superblock.NAME)
    return superblock.decode(data, what=f"the superblock of {place.location}")


def find_or_make(place: UnitBackend, name: str, role: Role) -> Superblock:
    """The unit that is there, or a new one (P1). Raises as ``read_superblock``, but NotFound."""
    try:
        return read_superblock(place)
    except NotFound:
        _check_empty(place)
    made = Superblock(UnitId(random_id()), name, role, superblock.container_bytes_of(role))
    place.put(superblock.NAME, [superblock.encode(made)], label="superblock")
    return made


def lost_superblock(place: UnitBackend) -> Corruption:
    """What is raised where a unit has everything but its superblock."""
    where = f"{place.location}/{superblock.NAME}"
    return Corruption(
        f"{where} is missing, but the unit has containers",
        subject=where,
        next_step="restore that file from a copy or a replica; every container names the unit",
    )


def _check_empty(place: UnitBackend) -> None:
    found = [name for name in place.list("") if name not in NOT_OURS]
    if CONTAINERS in found and place.list(CONTAINERS):
        raise lost_superblock(place)
    if found:
        raise WrongState(
            f"{place.location} is not empty, and no storage unit: it has {found[0]}",
            subject=f"unit at {place.location}",
            next_step="choose an empty place",
        )
