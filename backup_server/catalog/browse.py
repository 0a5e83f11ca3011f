"""Look into an image: list a directory, read a file. What the server calls.

Invariants: B1 no path with '.', '..' or NUL reaches a parser. B2 a file's bytes come from the image,
by its pieces; the parser hands over only what no piece of the image can say (literals).
Callers: the server's use cases, from any thread. Each call starts a parser of its own and ends it
before it returns.
"""

from __future__ import annotations

from collections.abc import Iterator

from arraylift.errors import Corruption, InvalidRequest
from arraylift.sizes import EXTENT_BYTES_MAX
from backup_server.catalog import sandbox
from backup_server.catalog.entry import FileEntry
from backup_server.catalog.frames import NAME_BYTES_MAX, PATH_BYTES_MAX
from backup_server.catalog.pieces import content_of
from backup_server.catalog.sandbox import DEFAULT_LIMITS, ImageAccess, ParserLimits, ParserRun

__all__ = ["FileEntry", "ImageAccess", "ParserLimits", "list_directory", "read_file"]


def list_directory(
    image: ImageAccess, path: str, *, limits: ParserLimits = DEFAULT_LIMITS
) -> list[FileEntry]:
    """Return what a directory of the image holds, sorted by name.

    Symbolic links are listed, never followed. At most 100,000 names. NotFound, InvalidRequest: no
    such directory. WrongState: the image cannot be read so, and why. Corruption: the parser misbehaved.
    """
    path = checked_path(path)
    entries = sandbox.list_entries(ParserRun(image, limits=limits), path)
    return sorted(entries, key=lambda entry: entry.name.encode("utf-8", "surrogateescape"))


def read_file(
    image: ImageAccess, path: str, *, limits: ParserLimits = DEFAULT_LIMITS
) -> tuple[FileEntry, Iterator[bytes]]:
    """Return a regular file of the image and its content in parts of at most 1 MiB.

    Errors as ``list_directory``, here for a file; the iterator raises what ``image.read`` raises.
    """
    path = checked_path(path)
    entry, pieces = sandbox.file_pieces(ParserRun(image, limits=limits), path, image_bytes=image.size_bytes)

    def read(offset: int, length: int) -> bytes:
        content = image.read(offset, length)
        if len(content) != length:
            raise Corruption(f"the image gave {len(content)} of {length} bytes at {offset}", subject=path)
        return content

    return entry, content_of(pieces, read, step_bytes=EXTENT_BYTES_MAX)


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
