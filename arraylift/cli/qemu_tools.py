"""Run qemu-img and qemu-nbd over the operator's disk files, which may be hostile.

Invariants:
  Q1 a program is told the format and the one file that it may open; nothing in the image chooses either.
  Q2 none outlives its use; each has limits of memory, processor and time, and is killed past them.
Callers: disk_files, main thread.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arraylift.cli.disk_formats import DiskFormat
from arraylift.errors import ArrayliftError, InvalidRequest, NotFound, PeerUnavailable, WrongState
from arraylift.nbd.client import NbdClient
from arraylift.nbd.device import BASE_ALLOCATION
from arraylift.nbd.uri import NbdUri
from arraylift.sizes import GIB

INFO_SECONDS = 30
START_SECONDS = 20
STOP_SECONDS = 60
"""What a written image may take to reach the disk."""
MEMORY_BYTES_MAX = 4 * GIB
"""Address space; QEMU reserves far more than it uses."""
CPU_SECONDS_MAX = 7 * 24 * 3600
SAID_CHARS_MAX = 300
_EXPORT = "disk"
_POLL_SECONDS = 0.02


def need(program: str) -> str:
    """Return where a program is. Raises NotFound."""
    found = shutil.which(program)
    if found is None:
        raise NotFound(
            f"there is no {program} on this machine, and only raw images are read and written without it",
            subject=program,
            next_step="install it (Debian: qemu-utils), or convert the image to raw elsewhere",
        )
    return found


def info(path: Path, disk_format: DiskFormat) -> Mapping[str, Any]:
    """Return what qemu-img says of an image. Raises NotFound (program), InvalidRequest (image)."""
    said = _run([need("qemu-img"), "info", "--output=json", _node(path, disk_format)], path)
    try:
        told = json.loads(said)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise InvalidRequest(f"qemu-img says nothing of use about {path}", subject=str(path))
    return told


def create(path: Path, disk_format: DiskFormat, size_bytes: int) -> None:
    """Make an empty image. Raises NotFound (program), InvalidRequest."""
    command = [need("qemu-img"), "create", "-q", "-f", disk_format.value]
    _run([*command, f"file:{path}", str(size_bytes)], path)


class ImageServer:
    """A qemu-nbd over one image file, and the client that reads or writes it. Owns both."""

    def __init__(self, path: Path, disk_format: DiskFormat, *, writable: bool = False) -> None:
        """Raises NotFound (program), InvalidRequest (image), WrongState (in use)."""
        program = need("qemu-nbd")
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="arraylift-")
        socket_path = str(Path(self._folder.name) / "nbd.sock")
        command = [program, f"--socket={socket_path}", f"--export-name={_EXPORT}", "--shared=1"]
        command += [] if writable else ["--read-only"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        try:
            self._process = subprocess.Popen(
                [*command, _node(path, disk_format)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )
        except BaseException:
            self._errors.close()
            self._folder.cleanup()
            raise
        try:
            _limit(self._process.pid)
            self.client = self._connected(NbdUri(_EXPORT, tls=False, socket_path=socket_path))
        except BaseException:
            self.kill()
            raise

    def finish(self) -> None:
        """After writing: have everything kept, and the image closed. Raises ArrayliftError."""
        self.client.flush()
        self.client.close()  # the program ends when its only client has gone
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        said = self._said()
        self.kill()
        if code != 0:
            raise ArrayliftError(
                f"{self._path} was not written whole: {said or f'qemu-nbd ended with {code}'}",
                subject=str(self._path),
            )

    def kill(self) -> None:
        """End it however it is; twice is fine."""
        with contextlib.suppress(AttributeError):
            self.client.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def _connected(self, uri: NbdUri) -> NbdClient:
        """Connect when it serves: its socket is there before it listens."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return NbdClient(uri, contexts=[BASE_ALLOCATION])
            except PeerUnavailable:
                self._check_running(late=time.monotonic() > deadline)
            time.sleep(_POLL_SECONDS)

    def _check_running(self, *, late: bool) -> None:
        """Raise InvalidRequest, WrongState if it has ended, or should have answered by now."""
        if self._process.poll() is not None:
            said = self._said()
            kind = WrongState if "lock" in said else InvalidRequest
            raise kind(
                f"{self._path} cannot be opened: {said}",
                subject=str(self._path),
                next_step="see that it is whole, and that no VM is using it",
            )
        if late:
            raise InvalidRequest(
                f"{self._path} was not opened within {START_SECONDS} s", subject=str(self._path)
            )

    def _said(self) -> str:
        self._errors.seek(0)
        return _printable(self._errors.read(1 << 16))


def _node(path: Path, disk_format: DiskFormat) -> str:
    """The image as QEMU takes it: this format over this file, and over nothing else (Q1)."""
    node: dict[str, Any] = {
        "driver": disk_format.value,
        "file": {"driver": "file", "filename": str(path.absolute())},
    }
    if disk_format in {DiskFormat.QCOW2, DiskFormat.VMDK}:
        node["backing"] = None
    return "json:" + json.dumps(node)


def _run(command: Sequence[str], path: Path) -> bytes:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        _limit(process.pid, cpu_seconds=INFO_SECONDS)
        out, errors = process.communicate(timeout=INFO_SECONDS)
    except subprocess.TimeoutExpired:
        raise InvalidRequest(
            f"{Path(command[0]).name} did not get done with {path} in {INFO_SECONDS} s", subject=str(path)
        ) from None
    finally:
        process.kill()
        process.communicate()
    if process.returncode != 0:
        raise InvalidRequest(f"{path} cannot be used: {_printable(errors)}", subject=str(path))
    return out


def _limit(pid: int, *, cpu_seconds: int = CPU_SECONDS_MAX) -> None:
    """Bound a process that was only just started (Q2)."""
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
        resource.prlimit(pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _printable(said: bytes) -> str:
    text = said.decode(errors="replace").strip().replace("\n", "; ")
    text = text.removeprefix("qemu-img: ").removeprefix("qemu-nbd: ")
    return "".join(char if char.isprintable() else "?" for char in text)[:SAID_CHARS_MAX]
