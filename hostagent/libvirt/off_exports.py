"""Exports of a guest that is off: qemu-nbd over its files, read-only, under QEMU's own lock.

A guest that is off has no VMM to ask, and is not started for a backup. While qemu-nbd reads a file, QEMU's
lock on it keeps every writer away, so the guest cannot be started before the VM snapshot is deleted: that
is the price of a state that cannot change.
Invariants:
  O1 a process serves one state of one disk; it is known by the VM snapshot's id in its arguments, and
     outlives this daemon. ``end`` ends it, whoever started it.
  O2 the format is the domain's, never probed.
Limits: START_SECONDS a process; CLIENTS_MAX connections each.
Callers: foreign, any thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from arraylift.errors import DeadlineExceeded, PeerUnavailable, WrongState
from arraylift.ids import VmId, VmSnapshotId
from arraylift.logs import get_logger
from hostagent.libvirt.backup_xml import Endpoint

PROGRAM = "qemu-nbd"
START_SECONDS = 4.0
END_SECONDS = 5.0
CLIENTS_MAX = 8

_log = get_logger("off_exports")


class OffExports:
    """qemu-nbd processes of this host agent. ``credentials``: folder of ca-cert.pem, server-cert.pem and
    server-key.pem, for TLS over TCP. ``owner`` tells them from another agent's on this machine."""

    def __init__(self, credentials: str, owner: str) -> None:
        self._credentials, self._mark = credentials, f"arraylift:{owner}:"

    def begin(
        self,
        vm_id: VmId,
        vm_snapshot_id: VmSnapshotId,
        *,
        export: str,
        endpoint: Endpoint,
        path: str,
        image_format: str,
        bitmap: str,
        seconds: float,
    ) -> None:
        """Serve one file. Raises WrongState (locked by a running guest; no such bitmap), DeadlineExceeded."""
        program = shutil.which(PROGRAM)
        if program is None:
            raise PeerUnavailable(
                f"{PROGRAM} is not installed", next_step="install qemu-utils, or start the guest"
            )
        command = [program, "--read-only", "--persistent", "--fork", f"--shared={CLIENTS_MAX}"]
        command += [f"--export-name={export}", f"--description={self._mark}{vm_id}:{vm_snapshot_id}"]
        command += [f"--format={image_format}"]  # O2
        if endpoint.socket_path:
            command.append(f"--socket={endpoint.socket_path}")
        else:
            secret = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={self._credentials}"
            command += ["--object", secret, "--tls-creds=tls"]
            command += [f"--bind={endpoint.host}", f"--port={endpoint.port}"]
        if bitmap:
            command.append(f"--bitmap={bitmap}")
        try:
            done = subprocess.run(
                [*command, "--", path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=min(seconds, START_SECONDS),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{PROGRAM} did not open {path} in time", subject=path) from error
        if done.returncode != 0:
            said = "".join(map(_printable, done.stderr.decode("utf-8", "replace")))[-300:].strip()
            raise WrongState(
                f"{PROGRAM} cannot serve {path}: {said}",
                subject=path,
                next_step="if the guest was started meanwhile, repeat the backup",
            )

    def holds(self, vm_id: VmId) -> bool:
        """Some VM snapshot of this VM is served."""
        return any(True for _ in _processes(f"{self._mark}{vm_id}:"))

    def end(self, vm_id: VmId, vm_snapshot_id: VmSnapshotId) -> None:
        """No process serves it any more (O1). Idempotent. Raises DeadlineExceeded."""
        mark = f"{self._mark}{vm_id}:{vm_snapshot_id}"
        until = time.monotonic() + END_SECONDS
        sent = signal.SIGTERM
        while pids := list(_processes(mark)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            if time.monotonic() > until:
                raise DeadlineExceeded(f"{PROGRAM} does not end", subject=f"process {pids[0]}")
            time.sleep(0.02)
            if time.monotonic() > until - END_SECONDS / 2:
                sent = signal.SIGKILL

    def sweep(self, known: Sequence[VmId]) -> None:
        """End what serves VMs that nobody knows any more."""
        for pid in list(_processes(self._mark)):
            vm_id = _vm_of(pid, self._mark)
            if vm_id is not None and vm_id not in known:
                _log.warning("off_export_swept", pid=pid, vm=vm_id)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)


def _processes(mark: str) -> Iterator[int]:
    """Processes of qemu-nbd whose description begins with ``mark``."""
    wanted = f"--description={mark}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            words = _words(int(name))
            ours = bool(words) and os.path.basename(words[0]) == PROGRAM.encode()
            if ours and any(word.startswith(wanted) for word in words):
                yield int(name)


def _vm_of(pid: int, mark: str) -> VmId | None:
    prefix = f"--description={mark}".encode()
    for word in _words(pid):
        if word.startswith(prefix):
            return VmId(word[len(prefix) :].split(b":")[0].decode("ascii", "replace"))
    return None


def _words(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(1 << 16).split(b"\0")
    except OSError:
        return []


def _printable(char: str) -> str:
    return char if char.isprintable() else " "
