"""Records that are known to be bad, and the lock under which anything is condemned.

A record, not a fingerprint, is quarantined: once the same content lies in a newer
container, its fingerprint counts as present again (law 7).
Owns: every byte below ``<unit>/quarantine``: one file for each container concerned.
Invariants:
  Q1 a record is in its durable file before anybody counts it as absent.
  Q2 ``generation`` grows, under ``lock``, after everything that may make a fingerprint
     absent that was present: whoever read it before that was over, and looked something up, sees
     another one. A commit that holds ``lock`` and sees the generation that it checked its
     fingerprints at need not check them again.
Callers: any thread. Format: docs/formats/quarantine-v1.md
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arraylift import envelope
from arraylift.errors import Corruption
from arraylift.ids import ContainerId, TenantId
from arraylift.logs import get_logger
from dedup_target.container_format import subject_of
from dedup_target.unit_backend import UnitBackend

_LOG = get_logger("quarantine")

MAGIC = b"ALQUARAN"
FOLDER = "quarantine"
SUFFIX = ".alq"
WHY_CHARACTERS_MAX = 200

_KEYS = frozenset({"container", "records", "tenant"})


class Quarantine:
    """The bad records of one storage unit."""

    def __init__(self, backend: UnitBackend) -> None:
        """Load what is on disk. A damaged file is listed in ``damaged``: verify that container anew."""
        self._backend = backend
        self.lock = threading.RLock()
        self._generation = 0
        self.additions = 0
        """Grows with every record that is quarantined."""
        self._bad: dict[ContainerId, tuple[TenantId, dict[bytes, str]]] = {}
        self.damaged: list[ContainerId] = []
        for name in backend.list(FOLDER):
            self._load(name)

    @property
    def generation(self) -> int:
        """Grows with every condemnation, quarantine and removal (Q2)."""
        return self._generation

    @property
    def is_empty(self) -> bool:
        return not self._bad

    @property
    def record_count(self) -> int:
        with self.lock:
            return sum(len(records) for _, records in self._bad.values())

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock while fingerprints become absent; the generation grows at the end, however
        that comes, since a look-up without the lock may find them until then (Q2)."""
        with self.lock:
            try:
                yield
            finally:
                self._generation += 1

    def add(self, container: ContainerId, tenant: TenantId, fingerprints: Sequence[bytes], why: str) -> None:
        """Quarantine records of one container, durably (Q1). Idempotent."""
        with self.changing():
            _, known = self._bad.get(container, (tenant, {}))
            records = {**dict.fromkeys(fingerprints, why[:WHY_CHARACTERS_MAX]), **known}
            self._publish(container, tenant, records)
            self._bad[container] = (tenant, records)
            self.additions += 1
        _LOG.error("records_quarantined", container=subject_of(container), count=len(fingerprints), why=why)

    def drop_container(self, container: ContainerId) -> None:
        """Forget a container that was deleted, or that turned out to be healthy."""
        with self.lock:
            self._bad.pop(container, None)
            self._backend.remove(_name_of(container), label="quarantine-remove", missing_ok=True)

    def forget_missing(self, holds: Callable[[ContainerId], bool]) -> None:
        """Count nothing of containers that are not there: who removed one may have been killed before its
        file here went. The file stays, and counts again if the container comes back."""
        with self.lock:
            missing = [container for container in self._bad if not holds(container)]
            for container in missing:
                del self._bad[container]
        if missing:
            _LOG.warning("quarantine_of_missing_containers", count=len(missing))

    def bad_of(self, container: ContainerId) -> frozenset[bytes]:
        """Fingerprints of the container's quarantined records."""
        with self.lock:
            return frozenset(self._bad[container][1]) if container in self._bad else frozenset()

    def records(self) -> Iterator[tuple[ContainerId, TenantId, list[bytes]]]:
        """Everything quarantined, by container."""
        with self.lock:
            snapshot = [(container, tenant, list(bad)) for container, (tenant, bad) in self._bad.items()]
        yield from snapshot

    def reason(self, tenant: TenantId, fingerprint: bytes) -> str:
        """Why a fingerprint's record was quarantined, for the error a restore shows; else empty."""
        with self.lock:
            for owner, bad in self._bad.values():
                if owner == tenant and fingerprint in bad:
                    return bad[fingerprint]
        return ""

    def verify_damaged(self, verify: Callable[[ContainerId], tuple[TenantId, list[bytes]]]) -> None:
        """Replace damaged files by what ``verify`` finds: tenant and bad fingerprints of a container."""
        for container in self.damaged:
            tenant, bad = verify(container)
            self.drop_container(container)
            if bad:
                self.add(container, tenant, bad, "found again after the quarantine file was damaged")
        self.damaged.clear()

    def _publish(self, container: ContainerId, tenant: TenantId, records: dict[bytes, str]) -> None:
        body = envelope.canonical_json(
            {
                "container": f"{container:016x}",
                "records": {fingerprint.hex(): why for fingerprint, why in records.items()},
                "tenant": f"{tenant:016x}",
            }
        )
        self._backend.put(_name_of(container), [envelope.encode(MAGIC, body)], label="quarantine")

    def _load(self, name: str) -> None:
        digits = name.removesuffix(SUFFIX)
        try:
            container = ContainerId(int(digits, 16))
        except ValueError:
            _LOG.warning("foreign_file_ignored", folder="quarantine", name=name)
            return
        try:
            data = self._backend.get(_name_of(container))
            fields = envelope.decode_json(MAGIC, data, what=f"quarantine file {name}", keys=_KEYS)
            self._bad[container] = _decode(fields, container)
        except Corruption as error:
            _LOG.error("quarantine_file_damaged", container=subject_of(container), why=error.message)
            self.damaged.append(container)


def _name_of(container: ContainerId) -> str:
    return f"{FOLDER}/{container:016x}{SUFFIX}"


def _decode(fields: dict[str, Any], container: ContainerId) -> tuple[TenantId, dict[bytes, str]]:
    try:
        if int(fields["container"], 16) != container:
            raise ValueError("it names another container")
        records = {bytes.fromhex(fingerprint): str(why) for fingerprint, why in fields["records"].items()}
        return TenantId(int(fields["tenant"], 16)), records
    except (ValueError, TypeError, AttributeError) as error:
        raise Corruption(f"quarantine of {subject_of(container)}: {error}") from error
