"""What a storage unit asks of the place where its bytes lie. No I/O here.

A unit is a set of named objects that never change once they are put, but by being replaced
whole. Names have the form ``folder/name`` (docs/formats/unit-v2.md), made by us, never by a peer.
Invariants, which the contract suite holds every implementation to:
  P1 ``put`` is atomic and durable: at any moment, and after any crash, the name has its old
     content or all of the new; when ``put`` returns, the new one survives a loss of power.
  P2 what is listed can be read; what was put is listed, at once and by everybody.
  P3 a name of an object has a dot in its last part, a name of a folder has none, so that a
     listing tells them apart.
  P4 a step that failed changed nothing that can be seen, or raised StoreFailed or
     PeerUnavailable: then the name has its old content or the new.
``ForwardingBackend`` is what those build on that add something to another backend.
Callers: any thread; two that put one name at once: one of them wins, whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from arraylift.durable import Buffer


class UnitBackend(Protocol):
    """See the module's invariants.

    Every call may raise PeerUnavailable where the place is not on this machine, and StoreFailed;
    changes also OutOfSpace and Overloaded, which change nothing.
    """

    @property
    def location(self) -> str:
        """Where it is, as errors name it: a directory, or the address of a bucket."""
        ...

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        """Make or replace an object of the parts, one after the other (P1). ``label`` names the
        step in failpoints. A single page-aligned part may go past the page cache."""
        ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly ``length`` bytes, or all to the end. Raises NotFound, Corruption (too short)."""
        ...

    def size(self, name: str) -> int:
        """Raises NotFound."""
        ...

    def exists(self, name: str) -> bool: ...

    def list(self, folder: str) -> list[str]:
        """Names directly below ``folder``, sorted: of objects, and of folders that are not empty or
        once were not. "" is the unit itself. A missing folder is empty."""
        ...

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        """Durable on return. Raises NotFound."""
        ...

    def sweep(self, folder: str) -> int:
        """Remove what torn puts left below ``folder``, not deeper; returns how many. What is listed
        afterwards is durable. REQUIRES that nobody puts there meanwhile."""
        ...

    def free_bytes(self) -> int | None:
        """Room for more, or None where nobody can tell."""
        ...

    def close(self) -> None:
        """Give everything back; twice is fine."""
        ...


class ForwardingBackend:
    """A backend that does what another does; subclasses say where they differ."""

    def __init__(self, inner: UnitBackend) -> None:
        self.inner = inner

    @property
    def location(self) -> str:
        return self.inner.location

    def put(self, name: str, parts: Sequence[Buffer], *, label: str) -> None:
        self.inner.put(name, parts, label=label)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(name, offset, length)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def exists(self, name: str) -> bool:
        return self.inner.exists(name)

    def list(self, folder: str) -> list[str]:
        return self.inner.list(folder)

    def remove(self, name: str, *, label: str, missing_ok: bool = False) -> None:
        self.inner.remove(name, label=label, missing_ok=missing_ok)

    def sweep(self, folder: str) -> int:
        return self.inner.sweep(folder)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def close(self) -> None:
        self.inner.close()


def is_object(name: str) -> bool:
    """Whether a listed name is an object's, not a folder's (P3)."""
    return "." in name.rpartition("/")[2]


def walk(backend: UnitBackend, folder: str = "") -> Iterator[str]:
    """Names of all objects below ``folder``, at any depth."""
    for name in backend.list(folder):
        path = f"{folder}/{name}" if folder else name
        if is_object(name):
            yield path
        else:
            yield from walk(backend, path)
