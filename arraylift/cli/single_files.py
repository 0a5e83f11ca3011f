"""Files out of guests and out of backups: what both show, and how both arrive.

Callers: the command line and the demo, main thread.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from arraylift.cli.local_files import NewFile
from arraylift.cli.show import moment, row, table
from arraylift.errors import Corruption, InvalidRequest
from arraylift.sizes import human

OnSize = Callable[[int, int], None]
"""Bytes done, and in all."""

_PERMISSIONS = 0o777  # never a strange disk's set-user-id bit


class Attributes(Protocol):
    """What ``GuestFile`` and ``BackupFile`` have in common."""

    path: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ns: int


def destination(given: Path | None, path: str) -> Path:
    """Return where a file goes: what was given, inside it if it is a directory, else its own name here.

    Raises InvalidRequest for a path without a last name.
    """
    name = path.rpartition("/")[2]
    if given is not None and not given.is_dir():
        return given
    if name in {"", ".", ".."}:
        raise InvalidRequest(f"{path!r} is no path of a file", next_step="give an absolute path")
    return (given or Path()) / name


def receive(responses: Iterable[Any], to: NewFile, *, label: str, on_size: OnSize) -> Attributes:
    """Write a streamed file with its permissions and time, and commit it; return its attributes.

    The first response carries ``file``, all of them ``data``.
    Raises Corruption (cut), InvalidRequest (no regular file).
    """
    found: Attributes | None = None
    done = 0
    for response in responses:
        if found is None:
            found = response.file
            if found.mode and not stat.S_ISREG(found.mode):
                raise InvalidRequest(
                    f"{found.path} is no regular file: {stat.filemode(found.mode)}", subject=found.path
                )
        if any(response.data):
            to.write(done, response.data)
        done += len(response.data)
        on_size(done, found.size_bytes)
    if found is None or done != found.size_bytes:
        expected = found.size_bytes if found is not None else 0
        raise Corruption(f"{label} answered {done:,} of {expected:,} bytes", next_step="repeat it")
    to.commit(
        done,
        permissions=found.mode & _PERMISSIONS if found.mode else None,
        modified_at_ns=found.modified_at_ns,
    )
    return found


def listing(files: Iterable[Any]) -> Table:
    """Return a directory as a table."""
    shown = table("mode", ">uid", ">gid", ">size", "modified", "path")
    for file in files:
        link = getattr(file, "link_target", "")
        row(
            shown,
            stat.filemode(file.mode),
            file.uid,
            file.gid,
            human(file.size_bytes),
            moment(file.modified_at_ns),
            f"{file.path} -> {link}" if link else file.path,
        )
    return shown
