"""One VM's folder: its run record, its lock, its firmware's variables, its logs and its sockets.

Owns: ``<state>/qemu/<VM id>``; nobody else opens these files, but for the QEMU that inherits descriptors of
some. All of it belongs to this process's user: a QEMU that a guest has taken over finds no path here.
Invariants:
  E1 the run record names an export before the array is asked for it, and until it is known to be gone.
  E2 the lock file is made once and never replaced: who holds it holds the VM.
  E3 a log has at most LOG_BYTES_MAX, and a little more for what a guest prints in a second; one part of
     that size is kept beside it.
Failpoints: those of arraylift.durable under the label ``qemu``. Format: docs/formats/vm-record-v1.md
Callers: the driver, the thread that holds the guest's lock; ``trim_logs`` on the reaper's.
"""

from __future__ import annotations

import contextlib
import os
import socket

from arraylift.durable import Files
from arraylift.errors import ArrayliftError, Corruption
from arraylift.ids import VmId
from arraylift.sizes import MIB
from hostagent.firmware_store import FIRMWARE_VARIABLES_UNPACKED_MAX
from hostagent.qemu import run_record
from hostagent.qemu.run_record import RunRecord
from hostagent.unix_sockets import listen

LABEL = "qemu"
LOG_BYTES_MAX = MIB
TOLD_CHARS_MAX = 600

CONSOLE, QEMU_LOG = "console.log", "qemu.log"
_RECORD, _LOCK, _VARIABLES = "run.alq", "lock", "variables.fd"
_MONITOR, _AGENT, _CHANGES = "monitor.sock", "agent.sock", "changes.sock"


class GuestFolder:
    """The folder of one VM; made when it is first written to."""

    def __init__(self, files: Files, path: str) -> None:
        self._files, self.path = files, path
        self.monitor_path, self.agent_path = f"{path}/{_MONITOR}", f"{path}/{_AGENT}"
        self.changes_path = f"{path}/{_CHANGES}"
        self.lock_path = f"{path}/{_LOCK}"
        self._record: RunRecord | None = None

    def make(self) -> None:
        """Have folder and lock file (E2)."""
        self._files.make_dirs(self.path)
        if not self._files.exists(self.lock_path):
            self._files.publish(self.lock_path, [b""], label=LABEL)

    @property
    def has_lock_file(self) -> bool:
        """Without one nothing ever ran here."""
        return self._files.exists(self.lock_path)

    # -- the run record -------------------------------------------------------------------------

    @property
    def record(self) -> RunRecord | None:
        """None: no array serves anything for this VM. Raises Corruption."""
        if self._record is None and self._files.exists(f"{self.path}/{_RECORD}"):
            self._record = run_record.decode(
                self._files.read(f"{self.path}/{_RECORD}"), what=f"{self.path}/{_RECORD}"
            )
        return self._record

    def keep(self, record: RunRecord) -> None:
        """Replace it, durably (E1)."""
        if record != self._record:
            self._files.publish(f"{self.path}/{_RECORD}", [run_record.encode(record)], label=LABEL)
            self._record = record

    def drop_record(self) -> None:
        """Nothing is served any more."""
        self._record = None
        if self._files.exists(f"{self.path}/{_RECORD}"):
            self._files.remove(f"{self.path}/{_RECORD}", label=LABEL, missing_ok=True)

    # -- what QEMU inherits ---------------------------------------------------------------------

    def listeners(self) -> tuple[socket.socket, socket.socket]:
        """Fresh sockets for monitor and agent. REQUIRES the lock: no QEMU listens at the old ones."""
        for path in (self.monitor_path, self.agent_path):
            if self._files.exists(path):
                self._files.remove(path, label=LABEL, missing_ok=True)
        monitor = listen(self.monitor_path)
        try:
            return monitor, listen(self.agent_path)
        except BaseException:
            monitor.close()
            raise

    def open_log(self, name: str, *, anew: bool = False) -> int:
        """A descriptor that appends to that log; ``anew``: what it has is kept beside it."""
        path = f"{self.path}/{name}"
        if anew:
            self._keep_end(name)
        if anew or not self._files.exists(path):
            self._files.publish(path, [b""], label=LABEL)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def log_end(self, name: str) -> str:
        """The last lines, for a person: a claim of QEMU or of its guest."""
        with contextlib.suppress(ArrayliftError):
            text = self._end_of(f"{self.path}/{name}", TOLD_CHARS_MAX).decode("utf-8", "replace")
            return "".join(char if char.isprintable() else " " for char in text).strip()
        return ""

    def trim_logs(self) -> None:
        """E3."""
        for name in (CONSOLE, QEMU_LOG):
            path = f"{self.path}/{name}"
            if self._files.exists(path) and self._files.size(path) > LOG_BYTES_MAX:
                self._keep_end(name)
                log = self._files.append_file(path, label=LABEL)
                try:
                    log.truncate(0)  # QEMU appends: its next line lands at the new end
                finally:
                    log.close()

    def _keep_end(self, name: str) -> None:
        path = f"{self.path}/{name}"
        if self._files.exists(path) and self._files.size(path):
            self._files.publish(f"{path}.1", [self._end_of(path, LOG_BYTES_MAX)], label=LABEL)

    def _end_of(self, path: str, bytes_max: int) -> bytes:
        size = self._files.size(path)
        return self._files.read(path, max(0, size - bytes_max), min(size, bytes_max))

    # -- firmware -------------------------------------------------------------------------------

    def variables(self) -> bytes:
        """As QEMU has them now; b"" before the first start."""
        path = f"{self.path}/{_VARIABLES}"
        if not self._files.exists(path):
            return b""
        if self._files.size(path) > FIRMWARE_VARIABLES_UNPACKED_MAX:
            raise Corruption(f"{path} is no file of firmware variables", subject=path)
        return self._files.read(path)

    def put_variables(self, variables: bytes) -> None:
        """Before the first start."""
        self._files.publish(f"{self.path}/{_VARIABLES}", [variables], label=LABEL)

    def open_variables(self) -> int:
        return os.open(f"{self.path}/{_VARIABLES}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    # -- the end --------------------------------------------------------------------------------

    def remove(self) -> None:
        """Nothing of the VM stays. REQUIRES that nothing runs, and that no array serves anything."""
        self._record = None
        if not self._files.exists(self.path):
            return
        self._files.sweep(self.path)
        names = self._files.list_dir(self.path)
        # The lock last: what a crash leaves is still a folder that nobody runs in.
        for name in sorted(names, key=lambda name: name == _LOCK):
            self._files.remove(f"{self.path}/{name}", label=LABEL, missing_ok=True)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def folders(files: Files, root: str) -> list[VmId]:
    """Ids of the VMs that have a folder below ``root``."""
    return [VmId(name) for name in files.list_dir(root)]
