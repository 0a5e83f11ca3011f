"""Look into the disks of a backup: which volumes, which files, what is in one. What the server calls.

``survey`` names the volumes; ``walk`` streams a whole one; ``list_directory``, ``find`` and ``read_file``
answer for one path. Where no volume is named, the first with /etc or /Windows in it is taken, else the
largest that can be read. Invariants: B1 no path with '.', '..' or NUL reaches a parser. B2 a file's bytes
come from the images, by its pieces; the parser hands over only what no piece of an image can say (literals).
Callers: the server's use cases, from any thread. Each call starts a parser of its own and ends it before it
returns; ``walk`` when its iterator ends or is closed.
"""

from __future__ import annotations

from collections.abc import Iterator

from arraylift.errors import Corruption, InvalidRequest, WrongState
from arraylift.sizes import EXTENT_BYTES_MAX
from backup_server.catalog import sandbox
from backup_server.catalog.batch import Batch, Paths, Unread
from backup_server.catalog.entry import Disk, DiskSet, FileEntry, ImageAccess, Volume
from backup_server.catalog.frames import KEY_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX
from backup_server.catalog.pieces import Piece, content_of
from backup_server.catalog.sandbox import DEFAULT_LIMITS, WALK_LIMITS, ParserLimits, ParserRun

__all__ = [
    "Batch", "Disk", "DiskSet", "FileEntry", "ImageAccess", "ParserLimits", "Paths", "Unread", "Volume",
    "find", "list_directory", "read_file", "survey", "walk",
]  # fmt: skip


def survey(disks: DiskSet, *, limits: ParserLimits = DEFAULT_LIMITS) -> list[Volume]:
    """Return every place where a file system may lie, in the disks' order, those of LVM last.

    WrongState: the parser crashed or took too long. Corruption: it misbehaved.
    """
    return sandbox.survey(ParserRun(disks, limits=limits))


def walk(
    disks: DiskSet, volume: str = "", *, below: str = "/", limits: ParserLimits = WALK_LIMITS
) -> Iterator[Volume | Batch | Unread]:
    """Yield the volume, then all its entries in batches, and which directories could not be read.

    Nothing starts before the first is asked for. The root, or the directory ``below``, comes first, and every
    directory before what lies in it: ``Paths`` makes paths of their numbers. Memory is bounded whatever the
    volume holds. NotFound: no such volume or directory. InvalidRequest: no directory. WrongState: it is not
    readable, the parser crashed or took too long (also on the way: what came until then is true). Corruption:
    it misbehaved.
    """
    key, path = _checked_key(volume), checked_path(below)
    yield from sandbox.walk(ParserRun(disks, limits=limits), key, path.rstrip("/"))


def list_directory(
    disks: DiskSet, path: str, volume: str = "", *, limits: ParserLimits = DEFAULT_LIMITS
) -> tuple[Volume, list[FileEntry]]:
    """Return the volume, and what one of its directories holds, sorted by name.

    Symbolic links are listed, never followed. At most 100,000 names. NotFound, InvalidRequest: no
    such volume or directory. WrongState: it cannot be read so, and why. Corruption: the parser misbehaved.
    """
    path = checked_path(path)
    found, entries = sandbox.list_entries(ParserRun(disks, limits=limits), _checked_key(volume), path)
    return found, sorted(entries, key=lambda entry: entry.name.encode("utf-8", "surrogateescape"))


def find(
    disks: DiskSet, path: str, volume: str = "", *, limits: ParserLimits = DEFAULT_LIMITS
) -> tuple[Volume, FileEntry, list[Piece]]:
    """Return the volume, the entry of a path other than '/', and its pieces if it is a regular file.

    Errors as ``list_directory``. A file that cannot be read whole has a flaw and no pieces.
    """
    path = checked_path(path)
    if path == "/":
        raise InvalidRequest("/ has no entry of its own", next_step="list it")
    return sandbox.find_file(ParserRun(disks, limits=limits), _checked_key(volume), path)


def read_file(
    disks: DiskSet, path: str, volume: str = "", *, limits: ParserLimits = DEFAULT_LIMITS
) -> tuple[Volume, FileEntry, Iterator[bytes]]:
    """Return the volume, a regular file of it, and its content in parts of at most 1 MiB.

    Errors as ``list_directory``, here for a file; the iterator raises what the images' reads raise.
    """
    found, entry, pieces = find(disks, path, volume, limits=limits)
    if entry.is_link:
        raise InvalidRequest(
            f"{path} is a symbolic link to {entry.link_target!r}", next_step="ask for its target"
        )
    if not entry.is_file:
        raise InvalidRequest(f"{path} is not a regular file")
    if entry.flaw and not pieces:
        raise WrongState(
            f"{path} cannot be read from the image: {entry.flaw}", next_step=sandbox.NEXT_STEP, subject=path
        )

    def read(disk: int, offset: int, length: int) -> bytes:
        content = disks[disk].image.read(offset, length)
        if len(content) != length:
            raise Corruption(f"the image gave {len(content)} of {length} bytes at {offset}", subject=path)
        return content

    return found, entry, content_of(pieces, read, step_bytes=EXTENT_BYTES_MAX)


def checked_path(path: str) -> str:
    """Return an absolute path without a slash at its end. InvalidRequest: it is none (B1)."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidRequest("the path is not text that a file system can hold") from None
    parts = path.strip("/").split("/") if path.strip("/") else []
    if not path.startswith("/") or "\0" in path or len(raw) > PATH_BYTES_MAX:
        raise InvalidRequest(f"{path[:200]!r} is not an absolute path of at most {PATH_BYTES_MAX} bytes")
    for part in parts:
        if part in {"", ".", ".."} or len(part.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
            raise InvalidRequest(f"{path[:200]!r} has a part that is no name: {part[:200]!r}")
    return "/" + "/".join(parts)


def _checked_key(volume: str) -> str:
    if len(volume.encode("utf-8", "replace")) > KEY_BYTES_MAX or not volume.isprintable():
        raise InvalidRequest(f"{volume[:80]!r} is the key of no volume")
    return volume
