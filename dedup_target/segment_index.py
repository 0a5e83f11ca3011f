"""What the target asks of its index: fingerprint to place, and which containers it knows.

The index is a cache of what containers say (law 4); it can be thrown away at any time.
Invariants, which the contract suite holds every implementation to:
  I1 the entries of a container and the mark that it is indexed are written in one atomic,
     durable batch: a container with a mark has all its entries.
  I2 an entry is overwritten by the container added last; both places hold the same bytes.
  I3 removing takes only entries that still point at what is removed.
  I4 iteration ends with all entries or with an error, never early in silence.
Callers: any thread; writes are serialised inside.
Format: docs/formats/index-v2.md
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from arraylift.durable import Buffer
from arraylift.ids import ContainerId, Fingerprint, TenantId
from dedup_target.container_format import RECORDS_MAX, SealedContainer

VERSION = 2
KEY_BYTES = 40

ENTRY = np.dtype(
    [
        ("container", "<u8"),
        ("offset", "<u4"),
        ("stored_bytes", "<u4"),
        ("plain_bytes", "<u4"),
        ("codec", "u1"),
        ("slot", "<u2"),
    ]
)
"""One value, as it lies in the index; containers are numbered from 1, so 0 says "absent"."""
VALUE_BYTES = ENTRY.itemsize

Entries = npt.NDArray[Any]
"""Shape (n,), dtype ENTRY."""

_LOCATOR = struct.Struct("<QIIIB")
_MARK = struct.Struct("<BQBIIQQQ")
_KEYS = np.dtype([("tenant", ">u8"), ("fingerprint", "V32")])
_ABSENT = bytes(VALUE_BYTES)

assert VALUE_BYTES == 23
assert np.iinfo(ENTRY["slot"]).max >= RECORDS_MAX - 1, "a slot has room for every record"
assert _KEYS.itemsize == KEY_BYTES


class Locator(NamedTuple):
    """Where a record lies. A tuple, not a dataclass: lookups make hundreds at a time."""

    container: ContainerId
    offset: int
    stored_bytes: int
    plain_bytes: int
    codec: int


@dataclass(frozen=True, slots=True)
class IndexTotals:
    """Sums over the marks; a fingerprint that lies twice counts twice."""

    container_count: int = 0
    record_count: int = 0
    file_bytes: int = 0
    stored_bytes: int = 0
    plain_bytes: int = 0
    tenant_bytes: Mapping[TenantId, int] = field(default_factory=dict)
    """``file_bytes`` by tenant, of those that have containers."""

    def plus(self, mark: ContainerMark, sign: int = 1) -> IndexTotals:
        of_tenant = self.tenant_bytes.get(mark.tenant, 0) + sign * mark.file_bytes
        tenants = {**self.tenant_bytes, mark.tenant: of_tenant}
        return IndexTotals(
            self.container_count + sign,
            self.record_count + sign * mark.record_count,
            self.file_bytes + sign * mark.file_bytes,
            self.stored_bytes + sign * mark.stored_bytes,
            self.plain_bytes + sign * mark.plain_bytes,
            {tenant: size for tenant, size in tenants.items() if size},
        )


class ContainerMark(NamedTuple):
    """Says that a container is indexed, and what it weighs."""

    tenant: TenantId
    kind: int
    record_count: int
    """Records that were indexed; quarantined ones may be left out."""
    slot_count: int
    """Records that it has."""
    file_bytes: int
    stored_bytes: int
    plain_bytes: int


class SegmentIndex(Protocol):
    """See the module's invariants."""

    def get_many(self, tenant: TenantId, fingerprints: Sequence[bytes]) -> list[Locator | None]:
        """Look up fingerprints of 32 bytes each. Raises Corruption if the index is damaged."""
        ...

    def contains_many(self, tenant: TenantId, packed: Buffer) -> npt.NDArray[np.bool_]:
        """Shape (n,) for 32 n bytes of fingerprints. Raises Corruption."""
        ...

    def find_many(self, tenant: TenantId, packed: Buffer) -> Entries:
        """Entries of n fingerprints (32 n bytes), ``container`` 0 where there is none; for those who
        look up by the ten thousand. Raises Corruption."""
        ...

    def add_containers(self, sealed: Sequence[SealedContainer]) -> None:
        """Index whole containers durably (I1, I2). Idempotent.

        Raises OutOfSpace (repeat when there is room) and StoreFailed: then it is unknown
        whether the containers are indexed, until the next start.
        """
        ...

    def remove_container(self, container: ContainerId, fingerprints: Sequence[bytes]) -> None:
        """Take the mark away, and those of the fingerprints that point there (I3). No error if
        there is no mark."""
        ...

    def forget_records(self, tenant: TenantId, container: ContainerId, fingerprints: Sequence[bytes]) -> int:
        """Take single entries away (I3); returns how many pointed there. The mark stays."""
        ...

    def take_over(self, fresh: SegmentIndex, ready: Callable[[], None]) -> None:
        """Become ``fresh``, which was made by the same opener, at one instant for every caller.

        ``ready`` runs first, while nobody writes here; its errors leave everything as it is.
        ``fresh`` is used up. Raises WrongState if this one is closed, and what a write here would raise.
        """
        ...

    def indexed_containers(self) -> set[ContainerId]:
        """Containers that have a mark."""
        ...

    def marks(self) -> dict[ContainerId, ContainerMark]:
        """A copy of all marks."""
        ...

    def totals(self) -> IndexTotals:
        """Sums over the marks, kept up to date in memory."""
        ...

    def entries(self) -> Iterator[tuple[TenantId, Fingerprint, Locator]]:
        """Every entry, in key order (I4). Raises Corruption."""
        ...

    def count(self) -> int:
        """Number of entries, by reading them all (I4)."""
        ...

    def close(self) -> None: ...


def prefix_of(tenant: int) -> bytes:
    """The 8 bytes that every key of a tenant begins with."""
    return tenant.to_bytes(8, "big")


def keys_of(tenant: int, fingerprints: npt.NDArray[np.void]) -> list[bytes]:
    """Keys of the fingerprints (dtype V32), 40 bytes each."""
    keys = np.empty(len(fingerprints), dtype=_KEYS)
    keys["tenant"], keys["fingerprint"] = tenant, fingerprints
    listed: list[bytes] = keys.view("V40").tolist()
    return listed


def values_of(sealed: SealedContainer) -> list[bytes]:
    """Values of all records of a container, in slot order."""
    directory = sealed.directory
    values = np.empty(len(directory), dtype=ENTRY)
    values["container"], values["offset"] = sealed.container_id, directory["offset"]
    values["stored_bytes"], values["plain_bytes"] = directory["stored_bytes"], directory["plain_bytes"]
    values["codec"], values["slot"] = directory["codec"], sealed.slots
    listed: list[bytes] = values.view(f"V{VALUE_BYTES}").tolist()
    return listed


def entries_of(values: Iterable[bytes | None]) -> Entries:
    """Decode many values at once; None becomes an absent entry."""
    return np.frombuffer(b"".join([value or _ABSENT for value in values]), dtype=ENTRY)


def mark_of(sealed: SealedContainer) -> ContainerMark:
    """The mark that says a container is indexed."""
    directory = sealed.directory
    return ContainerMark(
        sealed.tenant,
        sealed.kind,
        len(directory),
        sealed.slot_count,
        sealed.file_bytes,
        int(directory["stored_bytes"].sum(dtype=np.uint64)),
        int(directory["plain_bytes"].sum(dtype=np.uint64)),
    )


def locator_of(value: bytes) -> Locator:
    """Decode one value."""
    return Locator._make(_LOCATOR.unpack_from(value))


def encode_mark(mark: ContainerMark) -> bytes:
    """The value of a mark."""
    return _MARK.pack(VERSION, *mark)


def decode_mark(value: bytes) -> ContainerMark | None:
    """Decode a mark; None if another release wrote it."""
    if len(value) != _MARK.size or value[0] != VERSION:
        return None
    return ContainerMark._make(_MARK.unpack(value)[1:])


def sum_marks(marks: Iterable[ContainerMark]) -> IndexTotals:
    """Add marks up."""
    tenants: Counter[TenantId] = Counter()
    listed = list(marks)
    for mark in listed:
        tenants[mark.tenant] += mark.file_bytes
    return IndexTotals(
        container_count=len(listed),
        record_count=sum(mark.record_count for mark in listed),
        file_bytes=sum(mark.file_bytes for mark in listed),
        stored_bytes=sum(mark.stored_bytes for mark in listed),
        plain_bytes=sum(mark.plain_bytes for mark in listed),
        tenant_bytes=tenants,
    )
