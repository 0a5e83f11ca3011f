"""The exports of a pool, in one small file that is replaced whole.

Owns: ``exports.ale`` in the pool's directory; nobody else opens it.
Invariants:
  E1 what ``put`` and ``remove`` have answered survives any crash; a crash before leaves the table as
     it was. Memory changes after the file has.
  E2 names are unique; EXPORTS_MAX of them.
Callers: exports, under its lock. Failpoints: those of arraylift.durable under the label ``exports``.
Format: docs/formats/exports-v1.md
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Corruption, Overloaded
from arraylift.ids import SnapshotId, VolumeId, check_id, check_name

EXPORTS_MAX = 1024
MAGIC = b"ALEXPORT"
FILE_NAME = "exports.ale"
LABEL = "exports"


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """``snapshot_id`` is None where the living volume is served."""

    name: str
    volume_id: VolumeId
    snapshot_id: SnapshotId | None
    read_only: bool


_FIELDS = frozenset({"name", "volume_id", "snapshot_id", "read_only"})


def encode(records: list[ExportRecord]) -> bytes:
    """Return the file; sorted, so that one table has one spelling."""
    rows = [asdict(record) for record in sorted(records, key=lambda record: record.name)]
    return envelope.encode(MAGIC, envelope.canonical_json({"exports": rows}))


def decode(data: bytes, *, what: str) -> list[ExportRecord]:
    """Raises Corruption, WrongState (a newer format)."""
    rows = envelope.decode_json(MAGIC, data, what=what, keys=frozenset({"exports"}))["exports"]
    try:
        records = [_record(row) for row in rows]
        if len({record.name for record in records}) != len(records):
            raise ValueError("a name appears twice")
    except (ArrayliftError, TypeError, ValueError, AttributeError) as error:
        raise Corruption(f"{what} is damaged: {error}", subject=what) from error
    return records


def _record(row: dict[str, object]) -> ExportRecord:
    if row.keys() != _FIELDS or not isinstance(row["read_only"], bool):
        raise ValueError("an export does not have its fields")
    snapshot_id = row["snapshot_id"]
    return ExportRecord(
        name=check_name(str(row["name"]), "an export name"),
        volume_id=VolumeId(check_id(str(row["volume_id"]), "volume id")),
        snapshot_id=None if snapshot_id is None else SnapshotId(check_id(str(snapshot_id), "snapshot id")),
        read_only=row["read_only"],
    )


class ExportTable:
    """All exports, in memory as on disk."""

    def __init__(self, files: Files, directory: str) -> None:
        """Read it; no file is an empty table. Raises Corruption, WrongState."""
        self._files = files
        self._path = os.path.join(directory, FILE_NAME)
        found = decode(files.read(self._path), what=self._path) if files.exists(self._path) else []
        self._records = {record.name: record for record in found}

    def all(self) -> list[ExportRecord]:
        """By name."""
        return sorted(self._records.values(), key=lambda record: record.name)

    def find(self, name: str) -> ExportRecord | None:
        return self._records.get(name)

    def put(self, record: ExportRecord) -> None:
        """Add one (E1). Raises Overloaded (E2), OutOfSpace, StoreFailed."""
        assert record.name not in self._records
        if len(self._records) >= EXPORTS_MAX:
            raise Overloaded(f"an array has at most {EXPORTS_MAX} exports", next_step="remove some first")
        self._replace({**self._records, record.name: record})

    def remove(self, name: str) -> None:
        """Forget one (E1). Raises OutOfSpace, StoreFailed."""
        self._replace({key: record for key, record in self._records.items() if key != name})

    def _replace(self, records: dict[str, ExportRecord]) -> None:
        self._files.publish(self._path, [encode(list(records.values()))], label=LABEL)
        self._records = records
