"""The marks of a host's VMs, each VM's a file of its own, and all of them in memory.

Owns: ``<state>/marks``; nobody else opens these files.
Invariants:
  T1 what a reader sees is durable: memory changes after the file has.
  T2 a file that is damaged, or of a VM that is gone, goes: without its marks more is read, nothing less.
Callers: marks, under the VM's lock. Failpoints: those of arraylift.durable under ``marks``.
Format: docs/formats/marks-v1.md
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from arraylift.durable import Files
from arraylift.errors import Corruption, WrongState
from arraylift.ids import VmId
from arraylift.logs import get_logger
from hostagent.mark_record import VmMarks, decode_marks, encode_marks

SUFFIX = ".alm"
_LABEL = "marks"

_log = get_logger("mark_store")


class MarkStore:
    """A MarkTable."""

    def __init__(self, files: Files, folder: str, *, known: Iterable[VmId]) -> None:
        """Read those of the ``known`` VMs (T2). REQUIRES the lock of the state directory."""
        self._files, self._folder = files, folder
        self._lock = threading.Lock()
        self._marks: dict[VmId, VmMarks] = {}
        files.make_dirs(folder)
        files.sweep(folder)
        vm_ids = frozenset(known)
        for name in files.list_dir(folder):
            found = self._read(name)
            if found is None or found.vm_id not in vm_ids or name != f"{found.vm_id}{SUFFIX}":
                files.remove(f"{folder}/{name}", label=_LABEL, missing_ok=True)
            else:
                self._marks[found.vm_id] = found

    def find(self, record_id: VmId) -> VmMarks | None:
        with self._lock:
            return self._marks.get(record_id)

    def put(self, record: VmMarks) -> None:
        """Make or replace; durable on return (T1). Raises OutOfSpace, StoreFailed."""
        self._files.publish(self._path(record.vm_id), [encode_marks(record)], label=_LABEL)
        with self._lock:
            self._marks[record.vm_id] = record

    def remove(self, record_id: VmId) -> None:
        """Forget; durable on return. No error if there are none."""
        if self.find(record_id) is None:
            return
        self._files.remove(self._path(record_id), label=_LABEL, missing_ok=True)
        with self._lock:
            self._marks.pop(record_id, None)

    def _read(self, name: str) -> VmMarks | None:
        try:
            return decode_marks(self._files.read(f"{self._folder}/{name}"), what=f"marks {name}")
        except (Corruption, WrongState) as error:
            _log.warning("marks_unreadable", file=name, error=str(error))
            return None

    def _path(self, vm_id: VmId) -> str:
        return f"{self._folder}/{vm_id}{SUFFIX}"
