"""What an NBD server serves: devices, and where they come from.

Owns: the contracts between the server and the daemon that has the disks, and how the
daemon's errors are told to clients.
Callers: the daemon implements Exports and Device; connections call them, each from its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from arraylift.durable import Buffer
from arraylift.errors import (
    ArrayliftError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    OutOfSpace,
    Overloaded,
    WrongState,
)
from arraylift.nbd import wire
from arraylift.nbd.access import Caller
from arraylift.sizes import MIB

PAYLOAD_BYTES_MAX = 32 * MIB
"""Largest read or write of one request; what every client keeps to without being told."""

BASE_ALLOCATION = "base:allocation"
"""The context that every device has: which ranges are holes."""


class Device(Protocol):
    """One open disk. Ranges lie inside it: the caller has checked. Methods may be called by several
    threads at once, and raise ArrayliftError; a size stays what it was when the device was opened."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def block_bytes(self) -> int:
        """Writes of whole aligned blocks cost least. A power of two, 512 B to 64 KiB."""
        ...

    def read_into(self, offset: int, into: memoryview) -> None: ...

    def write(self, offset: int, data: Buffer) -> None:
        """Kept once a later ``flush`` has returned. If it fails, the range holds old or new bytes."""
        ...

    def trim(self, offset: int, length: int) -> None:
        """Free what the range occupies; it reads as zeros afterwards."""
        ...

    def write_zeroes(self, offset: int, length: int, *, allocate: bool) -> None:
        """Make the range zero; with ``allocate`` it keeps, or gets, space of its own."""
        ...

    def flush(self) -> None:
        """Everything that was answered before, on any connection to this disk, survives a crash."""
        ...

    def cache(self, offset: int, length: int) -> None:
        """The range may be read soon: a hint."""
        ...

    def contexts(self) -> Sequence[str]:
        """Names of what ``status`` can tell, BASE_ALLOCATION among them."""
        ...

    def status(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (length, state), neighbours of one state joined, until the range, never empty, is covered."""
        ...

    def close(self) -> None:
        """The connection has ended; no other call runs or follows."""
        ...


def transmission_flags(device: Device) -> int:
    """Return what a client is told that it may do."""
    flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.SEND_CACHE | wire.SEND_DF
    flags |= wire.CAN_MULTI_CONN
    if device.read_only:
        return flags | wire.READ_ONLY
    return flags | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO


@dataclass(frozen=True, slots=True)
class Listed:
    """An export, as a client is told of it."""

    name: str
    description: str


class Exports(Protocol):
    """The disks of a daemon by name."""

    def listed(self, caller: Caller) -> Sequence[Listed]:
        """Raises NotPermitted."""
        ...

    def open(self, name: str, caller: Caller, hang_up: Callable[[], None]) -> Device:
        """Open a disk for one connection; ``hang_up`` ends that, from any thread, without waiting.

        Raises NotFound, NotPermitted, WrongState (not now), Overloaded.
        """
        ...


_ERRNO: tuple[tuple[type[ArrayliftError], int], ...] = (
    (InvalidRequest, wire.EINVAL),
    (OutOfSpace, wire.ENOSPC),
    (Overloaded, wire.ENOMEM),
    (NotPermitted, wire.EPERM),
    (NotFound, wire.ESHUTDOWN),  # the disk was taken away
    (WrongState, wire.ESHUTDOWN),
)


def errno_of(error: ArrayliftError) -> int:
    """Return what a client is told in its reply: one of the protocol's numbers."""
    return next((number for kind, number in _ERRNO if isinstance(error, kind)), wire.EIO)
