"""Files of a backup below a directory of the operator's: what they were, and nothing outside.

Names, links and attributes come from an image, which may be hostile. Every step goes from an open directory
to a name in it, and never through a symbolic link.
Invariants:
  R1 nothing outside the directory is made, changed or removed, whatever the names are and whoever changes the
     tree meanwhile: each directory is opened by its name in the one above, without following links.
  R2 a file, link or special file appears under its name when it is whole, with its attributes; a cut leaves
     nothing of it. What stands there stays, unless ``overwrite``; a directory is never replaced.
  R3 a directory gets its mode, times and attributes when all below it are there; those that nobody sent are
     made for the caller alone.
  R4 set-user-id bits come back only with the owner that they mean; a special file only if the system lets us.
  R5 what cannot be done of one file is told, and the rest goes on.
Memory: the attributes of the directories, to the end.
Callers: the command line, main thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from arraylift.errors import Corruption, NotPermitted, OutOfSpace

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID = stat.S_ISUID | stat.S_ISGID
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_SETTABLE = ("user.", "trusted.", "security.", "system.posix_acl_access", "system.posix_acl_default")
"""Others mean something to the file system that they come from only."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file was; ``mode`` as st_mode."""

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    modified_at_ns: int = 0
    link_target: bytes = b""
    device: tuple[int, int] = (0, 0)
    hard_link_to: bytes = b""
    attributes: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Open:
    facts: Facts
    directory: int
    name: bytes
    temporary: bytes
    descriptor: int


class RestoredTree:
    """Everything below one directory. A context manager; ``finish`` at the end."""

    def __init__(
        self, root: Path, *, owners: bool, overwrite: bool, on_problem: Callable[[bytes, str], None]
    ) -> None:
        """``root`` is made if it is not there. Raises NotPermitted."""
        self._owners, self._overwrite, self._tell = owners, overwrite, on_problem
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the caller's own path
        except OSError as error:
            raise NotPermitted(
                f"cannot restore into {root}: {error.strerror}", subject=str(root), next_step="name another"
            ) from None
        self._current: _Open | None = None
        self._directories: list[Facts] = []
        self._failed: set[bytes] = set()
        self.attributes_left_out = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.void()
        os.close(self._root)

    # -- one after the other --------------------------------------------------------------------

    def start(self, facts: Facts) -> None:
        """Make what is not a regular file, or begin one; what was begun before is finished first."""
        self.end_file()
        with self._telling(facts.path):
            directory, name = self._parent(facts.path)
            try:
                self._make(facts, directory, name)
            finally:
                if self._current is None or self._current.directory != directory:
                    os.close(directory)

    def write(self, offset: int, data: bytes) -> None:
        """The next bytes of the file. Raises Corruption (outside it), OutOfSpace."""
        current = self._current
        if current is None:
            return  # its beginning failed, and was told
        if offset + len(data) > current.facts.size_bytes:
            raise Corruption(f"data beyond the end of {_shown(current.facts.path)}")
        with self._telling(current.facts.path):
            view = memoryview(data)
            while view:
                written = os.pwrite(current.descriptor, view, offset)
                view, offset = view[written:], offset + written

    def end_file(self) -> None:
        """Give the file that was begun its size, attributes and name (R2)."""
        current = self._current
        if current is None:
            return
        with self._telling(current.facts.path):
            os.ftruncate(current.descriptor, current.facts.size_bytes)
            self._dress(current.descriptor, current.facts)
            self._claim(current.directory, current.temporary, current.name)
            os.close(current.descriptor)
            os.close(current.directory)
            self._current = None

    def void(self) -> None:
        """Forget the file that was begun."""
        current, self._current = self._current, None
        if current is not None:
            os.close(current.descriptor)
            with contextlib.suppress(OSError):
                os.unlink(current.temporary, dir_fd=current.directory)
            os.close(current.directory)

    def fail(self, path: bytes, why: str) -> None:
        """It could not be read, or not to its end: nothing of it stays."""
        self.void()
        self._failed.add(path)
        self._tell(path, why)

    def finish(self) -> None:
        """All came: dress the directories, the deepest first (R3)."""
        self.end_file()
        for facts in reversed(self._directories):
            with self._telling(facts.path):
                descriptor = self._directory(_parts(facts.path), make=False)
                try:
                    self._dress(descriptor, facts)
                finally:
                    os.close(descriptor)

    # -- inside ---------------------------------------------------------------------------------

    def _make(self, facts: Facts, directory: int, name: bytes) -> None:
        kind = stat.S_IFMT(facts.mode)
        if kind == stat.S_IFDIR:
            self._make_directory(facts, directory, name)
            return
        if not self._overwrite and _exists(directory, name):
            raise FileExistsError(errno.EEXIST, "there is something of that name already")
        temporary = b".arraylift-%s.tmp" % secrets.token_hex(8).encode()
        if facts.hard_link_to:
            self._link(facts, directory, name, temporary)
        elif kind == stat.S_IFREG:
            descriptor = os.open(temporary, _NEW, 0o600, dir_fd=directory)
            self._current = _Open(facts, directory, name, temporary, descriptor)
        else:
            _make_special(facts, kind, directory, temporary)
            try:
                self._dress_name(directory, temporary, facts)
                self._claim(directory, temporary, name)
            except OSError:
                os.unlink(temporary, dir_fd=directory)
                raise

    def _make_directory(self, facts: Facts, directory: int, name: bytes) -> None:
        if not name:
            return  # the caller's own directory stays as it is
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            os.close(os.open(name, _DIRECTORY, dir_fd=directory))  # or it is none, which is told
            if not self._overwrite:
                return  # somebody's, who keeps it as it is
        self._directories.append(facts)

    def _link(self, facts: Facts, directory: int, name: bytes, temporary: bytes) -> None:
        if facts.hard_link_to in self._failed:
            raise OSError(errno.ENOENT, f"{_shown(facts.hard_link_to)}, which it is a hard link to, failed")
        first, first_name = self._parent(facts.hard_link_to, make=False)
        try:
            os.link(first_name, temporary, src_dir_fd=first, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(first)
        try:
            self._claim(directory, temporary, name)
        except OSError:
            os.unlink(temporary, dir_fd=directory)
            raise

    def _claim(self, directory: int, temporary: bytes, name: bytes) -> None:
        """Give what is whole its name (R2)."""
        if self._overwrite:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            # Two names of one file are no work for rename, and both stay.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            return
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(temporary, dir_fd=directory)

    def _dress(self, descriptor: int, facts: Facts) -> None:
        """Owner first, which takes bits and capabilities away; then attributes, mode, times (R4)."""
        if self._owners:
            os.fchown(descriptor, facts.uid, facts.gid)
        self._attributes(descriptor, facts, follow=True)
        os.fchmod(descriptor, self._permissions(facts))
        os.utime(descriptor, ns=(facts.modified_at_ns, facts.modified_at_ns))

    def _dress_name(self, directory: int, name: bytes, facts: Facts) -> None:
        """The same for what cannot be opened: links and special files."""
        is_link = stat.S_ISLNK(facts.mode)
        if self._owners:
            os.chown(name, facts.uid, facts.gid, dir_fd=directory, follow_symlinks=False)
        self._attributes(b"/proc/self/fd/%d/%s" % (directory, name), facts, follow=False)
        if not is_link:
            special = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:  # by what is open: the name may be another's by now (R1)
                os.chmod(f"/proc/self/fd/{special}", self._permissions(facts))
            finally:
                os.close(special)
        times = (facts.modified_at_ns, facts.modified_at_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)

    def _permissions(self, facts: Facts) -> int:
        permissions = stat.S_IMODE(facts.mode)
        if not self._owners and not stat.S_ISDIR(facts.mode):
            permissions &= ~_SET_ID
        return permissions

    def _attributes(self, where: int | bytes, facts: Facts, *, follow: bool) -> None:
        refused = []
        for name, value in facts.attributes.items():
            if not name.startswith(_SETTABLE):
                self.attributes_left_out += 1
                continue
            try:
                os.setxattr(where, name, value, follow_symlinks=follow)
            except (OSError, ValueError) as error:
                refused.append(f"{name} ({getattr(error, 'strerror', error)})")
        if refused:
            self._tell(facts.path, "it is there without its attributes " + ", ".join(refused))

    # -- the way to a name ----------------------------------------------------------------------

    def _parent(self, path: bytes, *, make: bool = True) -> tuple[int, bytes]:
        """Open the directory of a path (R1); returns it and the name, which is empty for the root."""
        parts = _parts(path)
        return self._directory(parts[:-1], make=make), parts[-1] if parts else b""

    def _directory(self, parts: list[bytes], *, make: bool) -> int:
        descriptor = os.dup(self._root)
        try:
            for part in parts:
                below = self._below(descriptor, part, make=make)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _below(self, directory: int, name: bytes, *, make: bool) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
        os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)

    @contextlib.contextmanager
    def _telling(self, path: bytes) -> Iterator[None]:
        """Tell what went wrong with one file (R5). Raises OutOfSpace: what fails with every file."""
        try:
            yield
        except (OSError, ValueError) as error:
            if getattr(error, "errno", 0) in _FULL:
                raise OutOfSpace(
                    f"cannot write {_shown(path)}: {getattr(error, 'strerror', error)}",
                    next_step="restore into another directory",
                ) from None
            self.fail(path, str(getattr(error, "strerror", "") or error))


def _make_special(facts: Facts, kind: int, directory: int, name: bytes) -> None:
    if kind == stat.S_IFLNK:
        os.symlink(facts.link_target, name, dir_fd=directory)
    elif kind in {stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}:
        os.mknod(name, kind | 0o600, os.makedev(*facts.device), dir_fd=directory)
    else:
        raise ValueError(f"it is of no known type: mode {facts.mode:#o}")


def _parts(path: bytes) -> list[bytes]:
    """The names of a path. Raises ValueError for names that lead elsewhere (R1)."""
    parts = [part for part in path.split(b"/") if part]
    if not path.startswith(b"/") or b"\0" in path or {b".", b".."} & set(parts):
        raise ValueError("its name would lead elsewhere")
    return parts


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
