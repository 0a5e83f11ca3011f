"""VMs and VM snapshots of a host, each a file of its own, and all of them in memory.

Owns: ``<state>/vms`` and ``<state>/vm-snapshots``; nobody else opens these files.
Invariants:
  T1 what a reader sees is durable: memory changes after the file has.
  T2 a file's name is the id that its content bears; a stray file is Corruption.
  T3 all VMs, and all VM snapshots, stay below RECORDS_BYTES_MAX: each listing fits one message.
Callers: use cases, any thread; one record is changed by one thread at a time (its lock holder's).
Failpoints: those of arraylift.durable under the labels ``vm`` and ``vm-snapshot``.
Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from arraylift.durable import Files
from arraylift.errors import Corruption, NotFound, Overloaded
from arraylift.ids import VmId, VmSnapshotId
from hostagent import vm_record
from hostagent.ended_migrations import EndedMigrations
from hostagent.firmware_store import FirmwareStore
from hostagent.mark_store import MarkStore
from hostagent.vm_types import RECORDS_BYTES_MAX, SnapshotRecord, VmRecord

SUFFIX = ".alv"

Id = TypeVar("Id", VmId, VmSnapshotId)
Record = TypeVar("Record", VmRecord, SnapshotRecord)


class RecordStore(Generic[Id, Record]):
    """Records of one kind."""

    def __init__(
        self,
        files: Files,
        folder: str,
        *,
        label: str,
        encode: Callable[[Record], bytes],
        decode: Callable[..., Record],
        id_of: Callable[[Record], Id],
    ) -> None:
        """Read them all. Raises Corruption, WrongState (a newer format)."""
        self._files, self._folder, self._label = files, folder, label
        self._encode: Callable[[Record], bytes] = encode
        self._id_of: Callable[[Record], Id] = id_of
        self._lock = threading.Lock()
        self._records: dict[Id, Record] = {}
        self._bytes: dict[Id, int] = {}
        files.make_dirs(folder)
        files.sweep(folder)
        for name in files.list_dir(folder):
            data = files.read(f"{folder}/{name}")
            record = decode(data, what=f"{label} record {name}")
            if name != f"{id_of(record)}{SUFFIX}":
                raise Corruption(f"{folder}/{name} is about {id_of(record)}", subject=name)  # T2
            self._records[id_of(record)] = record
            self._bytes[id_of(record)] = len(data)

    def put(self, record: Record) -> None:
        """Make or replace a record; durable on return (T1). Raises OutOfSpace, Overloaded (T3)."""
        record_id, data = self._id_of(record), self._encode(record)
        with self._lock:
            # Room is taken before the write, so that two threads cannot both take the last of it.
            before = self._bytes.get(record_id)
            if before is None and sum(self._bytes.values()) + len(data) > RECORDS_BYTES_MAX:
                raise Overloaded(f"this host's {self._label} records are full", next_step="delete some first")
            self._bytes[record_id] = len(data)
        try:
            self._files.publish(self._path(record_id), [data], label=self._label)
        except BaseException:
            with self._lock:
                if before is None:
                    del self._bytes[record_id]
                else:
                    self._bytes[record_id] = before
            raise
        with self._lock:
            self._records[record_id] = record

    def remove(self, record_id: Id) -> None:
        """Forget a record; durable on return. No error if it is gone."""
        self._files.remove(self._path(record_id), label=self._label, missing_ok=True)
        with self._lock:
            self._records.pop(record_id, None)
            self._bytes.pop(record_id, None)

    def find(self, record_id: Id) -> Record | None:
        with self._lock:
            return self._records.get(record_id)

    def get(self, record_id: Id) -> Record:
        """Raises NotFound."""
        found = self.find(record_id)
        if found is None:
            what = self._label.replace("vm", "VM").replace("-", " ")
            raise NotFound(f"there is no {what} {record_id}", subject=f"{what} {record_id}")
        return found

    def all(self) -> list[Record]:
        """Every record, in no order."""
        with self._lock:
            return list(self._records.values())

    def _path(self, record_id: Id) -> str:
        return f"{self._folder}/{record_id}{SUFFIX}"


class VmStore:
    """Both kinds, under one lock on the state directory."""

    def __init__(self, files: Files, state_path: str) -> None:
        """Open. Raises WrongState (another process has it), Corruption."""
        files.make_dirs(state_path)
        self._lock = files.lock(state_path)
        try:
            self.vms: RecordStore[VmId, VmRecord] = RecordStore(
                files,
                f"{state_path}/vms",
                label="vm",
                encode=vm_record.encode_vm,
                decode=vm_record.decode_vm,
                id_of=lambda vm: vm.vm_id,
            )
            self.snapshots: RecordStore[VmSnapshotId, SnapshotRecord] = RecordStore(
                files,
                f"{state_path}/vm-snapshots",
                label="vm-snapshot",
                encode=vm_record.encode_snapshot,
                decode=vm_record.decode_snapshot,
                id_of=lambda snapshot: snapshot.vm_snapshot_id,
            )
            self.marks = MarkStore(files, f"{state_path}/marks", known=[vm.vm_id for vm in self.vms.all()])
            self.ended = EndedMigrations(files, state_path)
            self.firmware = FirmwareStore(files, f"{state_path}/firmware")
            self.firmware.keep_only(
                [vm.vm_id for vm in self.vms.all()] + [one.vm_snapshot_id for one in self.snapshots.all()]
            )
        except BaseException:
            self._lock.close()
            raise

    @property
    def token(self) -> int:
        """Grows with every process that held this store."""
        return self._lock.token

    def close(self) -> None:
        """Let the next process in."""
        self._lock.close()
