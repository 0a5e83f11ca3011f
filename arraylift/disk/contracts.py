"""What a store may ask of its disk: the contracts that ``durable`` fulfils. No I/O here.

Owns: the words ``Files``, ``AppendFile``, ``RandomFile``, ``StoreLock`` and, below them,
``SystemCalls``: the few calls to the kernel on which the one algorithm in ``durable`` is built,
so that the same code runs over a disk that tests can cut the power of.
Callers: stores take these names from ``arraylift.durable``; ``SystemCalls`` is for it and its tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview
"""Anything contiguous that the kernel can write; mmap comes wrapped in a memoryview."""


class AppendFile(Protocol):
    """A log: grows at its end, read by its owner's parser at start. One thread at a time."""

    @property
    def size(self) -> int:
        """Bytes appended so far, synced or not."""
        ...

    def append(self, data: Buffer) -> None:
        """Add ``data`` at the end; before ``sync`` a crash may leave any prefix of it, or zeros.

        Raises OutOfSpace (size and content are as before), StoreFailed.
        """
        ...

    def sync(self) -> None:
        """Make everything appended durable (D2). Raises StoreFailed."""
        ...

    def truncate(self, size: int) -> None:
        """Cut a torn tail off and make that durable."""
        ...

    def close(self) -> None:
        """Give the descriptor back; does not sync. Twice is fine."""
        ...


class RandomFile(Protocol):
    """A sparse file of slots, written in place. Any thread; changes made at once must not overlap."""

    @property
    def path(self) -> str:
        """For worker processes that open it read-only."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``; torn by a crash before ``sync``.

        Raises OutOfSpace: then the bytes of this range, and only those, are undefined.
        """
        ...

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into``; bytes past the end of the file are zero. Raises Corruption."""
        ...

    def read_exactly(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with bytes that were written. Raises Corruption, also where the file ends before."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Give the space back; reads as zero afterwards. Durable with the next ``sync``."""
        ...

    def allocated_bytes(self) -> int:
        """What the file occupies on its disk."""
        ...

    def sync(self) -> None:
        """Make everything written and punched durable (D2). Raises StoreFailed."""
        ...

    def close(self) -> None:
        """Give the descriptor back; does not sync. Twice is fine."""
        ...


class StoreLock(Protocol):
    """Held for the life of a store; ``token`` grows with every holder (law 9)."""

    @property
    def token(self) -> int: ...

    def close(self) -> None:
        """Let the next holder in. The lock file stays, as it carries the token."""
        ...


class Files(Protocol):
    """All file access of a store. Paths are absolute and made by us, never by a peer.

    Every change may raise OutOfSpace (full disk), Overloaded (no file handles left), NotFound (a
    directory on the way is missing), none of which change anything; and StoreFailed, after which
    all changes raise it and what is on disk is the old state or the new (D3).
    """

    def make_dirs(self, path: str) -> None:
        """Create a directory and its parents, durably; no error if it is there."""
        ...

    def list_dir(self, path: str) -> list[str]:
        """Names in ``path``, sorted; temporary files of ``publish`` are not shown. A missing
        directory is empty."""
        ...

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int:
        """Bytes of the file. Raises NotFound."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly ``length`` bytes, or all to the end. Raises NotFound, Corruption if
        the file is shorter or the disk cannot read it."""
        ...

    def publish(self, path: str, parts: Sequence[Buffer], *, label: str) -> None:
        """Replace or create ``path`` by the concatenation of ``parts`` (D1). A single part that
        is a page-aligned memoryview goes past the page cache where the file system allows it."""
        ...

    def remove(self, path: str, *, label: str, missing_ok: bool = False) -> None:
        """Unlink, durably. Raises NotFound."""
        ...

    def move(self, path: str, to: str, *, label: str) -> None:
        """Rename within one file system, durably; replaces ``to``. Raises NotFound."""
        ...

    def append_file(self, path: str, *, label: str) -> AppendFile:
        """Open or create a log, positioned at its end; its name and content are durable on return."""
        ...

    def random_file(self, path: str, *, label: str) -> RandomFile:
        """Open or create a slot file; its name and content are durable on return."""
        ...

    def lock(self, directory: str) -> StoreLock:
        """Take the directory for this process. Raises WrongState naming the owner."""
        ...

    def sweep(self, directory: str) -> int:
        """Remove the temporary files that a crash left, make the other names durable (D5); return
        how many went. REQUIRES the lock, and no ``publish`` into the directory meanwhile."""
        ...

    def free_bytes(self, path: str) -> int:
        """Free space of the file system that holds ``path``. Raises NotFound."""
        ...

    def total_bytes(self, path: str) -> int:
        """Its size, used or not. Raises NotFound."""
        ...


class FileStatus(NamedTuple):
    """What ``durable`` wants to know about an inode."""

    size: int
    allocated_bytes: int
    is_dir: bool
    device: int


class SystemCalls(Protocol):
    """The kernel, or a simulated one. All raise OSError as the kernel does; any thread."""

    def open(self, path: str, flags: int) -> int: ...

    def close(self, descriptor: int) -> None: ...

    def stat(self, path: str) -> FileStatus: ...

    def fstat(self, descriptor: int) -> FileStatus: ...

    def pread(self, descriptor: int, length: int, offset: int) -> bytes: ...

    def preadv(self, descriptor: int, into: memoryview, offset: int) -> int: ...

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """May write less than all."""
        ...

    def ftruncate(self, descriptor: int, size: int) -> None: ...

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        """Deallocate, keeping the size; EOPNOTSUPP where the file system cannot."""
        ...

    def fdatasync(self, descriptor: int) -> None:
        """Content and size of a file."""
        ...

    def fsync(self, descriptor: int) -> None:
        """The names of a directory."""
        ...

    def drop_cache(self, descriptor: int) -> None:
        """Forget cached clean pages, so that the next read comes from the disk. Advice only."""
        ...

    def flock(self, descriptor: int) -> None:
        """Exclusive, without waiting: BlockingIOError if another holds it."""
        ...

    def listdir(self, path: str) -> list[str]: ...

    def mkdir(self, path: str) -> None: ...

    def rename(self, path: str, to: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def free_bytes(self, path: str) -> int: ...

    def total_bytes(self, path: str) -> int: ...
