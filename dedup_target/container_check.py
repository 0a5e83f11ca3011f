"""Look at every byte of a container that means anything: what scrub does to each.

Invariants:
  C1 a record is called whole only if its checksum matched, it decoded within its bound, and its
     plain bytes have the fingerprint under which it is kept, with the tenant's key and its kind's tag.
  C2 what is found damaged is read once more: only damage that stays is reported.
No index, no quarantine here: that is for the caller. Callers: any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from arraylift.errors import Corruption, InvalidRequest, NotFound
from arraylift.ids import TenantId
from arraylift.segments.codecs import decompress
from arraylift.segments.fingerprint import FingerprintKey
from arraylift.segments.tree import NODE_BYTES_MAX
from arraylift.sizes import SEGMENT_BYTES_MAX
from dedup_target.container_format import Kind, SealedContainer
from dedup_target.container_store import LoadedContainer

PLAIN_BYTES_MAX = {Kind.DATA: SEGMENT_BYTES_MAX, Kind.NODES: NODE_BYTES_MAX}
"""No record has more: a damaged length must not become memory (law 6)."""


@dataclass(frozen=True, slots=True)
class CheckedContainer:
    """What one container turned out to be."""

    file_bytes: int
    record_count: int
    sealed: SealedContainer | None
    """None: nothing of it is whole."""
    bad: dict[bytes, str] = field(default_factory=dict)
    """Records that are damaged, and how."""
    problem: str = ""
    """Damage of header, directory or frames, which costs no record listed; or why nothing is whole."""


def check_container(
    read: Callable[[], LoadedContainer], key_of: Callable[[TenantId], FingerprintKey]
) -> CheckedContainer:
    """Check what ``read`` loads from the disk (C1, C2). Raises what it raises besides Corruption, e.g.
    NotFound, PeerUnavailable. Records of a tenant whose key is lost are held to their checksums alone,
    which is a problem, and no damage."""
    found = _check(read, key_of)
    if found.bad or found.problem:
        again = _check(read, key_of)
        if again.sealed is None or found.sealed is None:
            return again
        kept = {fingerprint: why for fingerprint, why in found.bad.items() if fingerprint in again.bad}
        return CheckedContainer(
            again.file_bytes, again.record_count, again.sealed, kept, again.problem and found.problem
        )
    return found


def _check(
    read: Callable[[], LoadedContainer], key_of: Callable[[TenantId], FingerprintKey]
) -> CheckedContainer:
    try:
        loaded = read()
    except Corruption as error:
        return CheckedContainer(0, 0, None, problem=error.message)
    sealed = loaded.sealed
    key, problem = None, sealed.damage or loaded.frames_problem()
    try:
        key = key_of(sealed.tenant)
    except NotFound as error:
        problem = problem or error.message
    bad = _bad_records(loaded, key)
    return CheckedContainer(sealed.file_bytes, len(sealed.directory), sealed, bad, problem)


def _bad_records(loaded: LoadedContainer, key: FingerprintKey | None) -> dict[bytes, str]:
    sealed = loaded.sealed
    plain_bytes_max = PLAIN_BYTES_MAX[sealed.kind]
    directory = sealed.directory
    columns = (directory[name].tolist() for name in ("offset", "stored_bytes", "plain_bytes", "codec"))
    bad: dict[bytes, str] = {}
    fingerprints: list[bytes] = directory["fingerprint"].tolist()
    for fingerprint, offset, stored_bytes, plain_bytes, codec in zip(fingerprints, *columns, strict=True):
        try:
            stored = loaded.view(offset, stored_bytes)
            if plain_bytes > plain_bytes_max:
                bad[fingerprint] = f"it claims {plain_bytes} plain bytes"
                continue
            plain = decompress(codec, stored, plain_bytes)
            if key is not None and _fingerprint(key, sealed.kind, plain) != fingerprint:
                bad[fingerprint] = "it does not match its fingerprint"
        except (Corruption, InvalidRequest) as error:
            bad[fingerprint] = error.message
    return bad


def _fingerprint(key: FingerprintKey, kind: Kind, plain: bytes | memoryview) -> bytes:
    return key.segment(plain) if kind is Kind.DATA else key.node(bytes(plain))
