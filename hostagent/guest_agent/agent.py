"""Commands of qemu-guest-agent, with their answers checked: what comes back is of its type and bounded.

Callers: freezer and files, any thread. Raises what ``AgentChannel.execute`` raises; an answer that makes no
sense is PeerUnavailable.
Source: https://qemu.readthedocs.io/en/latest/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import DeadlineExceeded, PeerUnavailable
from hostagent.guest_agent.channel import AgentChannel

CALL_SECONDS = 10.0
RUN_SECONDS = 60.0
SHUTDOWN_SECONDS = 2.0
PIECE_BYTES = 96 << 10
"""Of a file, in one command: encoded it must fit into a Unix socket's buffer, or libvirt never ends."""

FILE_SYSTEMS_MAX = 1024
OUTPUT_BYTES_MAX = 64 << 10
"""What a program run in the guest may say."""

_POLL_SECONDS_MIN, _POLL_SECONDS_MAX = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Mounted in the guest; ``devices`` as the kernel names what it lies on, e.g. ``vda1``."""

    mount_point: str
    name: str
    type: str
    devices: tuple[str, ...]
    serials: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ended by itself."""

    code: int
    output: bytes


class GuestAgent:
    """The agent of one guest. ``subject`` names the VM in errors."""

    def __init__(self, channel: AgentChannel, subject: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.channel, self._subject, self._clock = channel, subject, clock

    # -- freeze ---------------------------------------------------------------------------------

    def freeze(self, *, timeout_seconds: float) -> int:
        """Freeze; return how many file systems stand still."""
        command = "guest-fsfreeze-freeze"
        return self._whole(command, self.channel.execute(command, timeout_seconds=timeout_seconds))

    def thaw(self, *, timeout_seconds: float) -> int:
        """Thaw, ahead of everything else; return how many file systems were still frozen."""
        return self.channel.thaw(timeout_seconds=timeout_seconds)

    # -- the guest ------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Ask the guest to power off; an agent that obeys answers nothing. Raises AgentRefused."""
        with contextlib.suppress(DeadlineExceeded, PeerUnavailable):
            self._call("guest-shutdown", {"mode": "powerdown"}, seconds=SHUTDOWN_SECONDS)

    def file_systems(self) -> list[FileSystem]:
        """What is mounted from block devices."""
        command = "guest-get-fsinfo"
        answer = self._call(command)
        if not isinstance(answer, list) or len(answer) > FILE_SYSTEMS_MAX:
            self._nonsense(command)
        found = []
        for one in answer:
            if not isinstance(one, dict):
                self._nonsense(command)
            disks = one.get("disk", [])
            if not isinstance(disks, list) or not all(isinstance(disk, dict) for disk in disks):
                self._nonsense(command)
            found.append(
                FileSystem(
                    mount_point=self._text(command, one.get("mountpoint")),
                    name=self._text(command, one.get("name")),
                    type=self._text(command, one.get("type")),
                    devices=tuple(_texts(disks, "dev")),
                    serials=tuple(_texts(disks, "serial")),
                )
            )
        return found

    def run(self, arguments: Sequence[str], *, timeout_seconds: float = RUN_SECONDS) -> Ran:
        """Run a program, found on the agent's path, until it ends. It is not killed when the time is up."""
        command, ask = "guest-exec", "guest-exec-status"
        deadline = self._clock.monotonic() + timeout_seconds
        program, *rest = arguments
        started = self._call(command, {"path": program, "arg": rest, "capture-output": True})
        pid = self._whole(command, started.get("pid") if isinstance(started, dict) else None)
        seconds = _POLL_SECONDS_MIN
        while True:
            state = self._call(ask, {"pid": pid})
            if not isinstance(state, dict) or not isinstance(state.get("exited"), bool):
                self._nonsense(ask)
            if state["exited"]:
                break
            if self._clock.monotonic() + seconds > deadline:
                raise DeadlineExceeded(
                    f"{program} runs for more than {timeout_seconds:.0f} s in {self._subject}",
                    subject=self._subject,
                )
            time.sleep(seconds)
            seconds = min(_POLL_SECONDS_MAX, seconds * 1.5)
        code = state.get("exitcode", -1)  # absent: killed by a signal
        return Ran(
            self._whole(ask, code, least=-1), self._bytes(ask, state.get("out-data", ""), OUTPUT_BYTES_MAX)
        )

    # -- files ----------------------------------------------------------------------------------

    def open(self, path: str, mode: str) -> int:
        """A handle of the guest's file; ``mode`` as fopen takes it."""
        return self._whole(
            "guest-file-open", self._call("guest-file-open", {"path": path, "mode": mode}), least=-(2**63)
        )

    def read(self, handle: int) -> tuple[bytes, bool]:
        """The next piece, at most PIECE_BYTES, and whether the file ends there."""
        command = "guest-file-read"
        answer = self._call(command, {"handle": handle, "count": PIECE_BYTES})
        if not isinstance(answer, dict) or not isinstance(answer.get("eof"), bool):
            self._nonsense(command)
        data = self._bytes(command, answer.get("buf-b64"), PIECE_BYTES)
        return data, answer["eof"] or not data

    def write(self, handle: int, data: bytes) -> None:
        """Write all of a piece of at most PIECE_BYTES."""
        command = "guest-file-write"
        while data:
            answer = self._call(command, {"handle": handle, "buf-b64": base64.b64encode(data).decode()})
            count = self._whole(command, answer.get("count") if isinstance(answer, dict) else None)
            if not 0 < count <= len(data):
                self._nonsense(command)
            data = data[count:]

    def flush(self, handle: int) -> None:
        """Hand what was written to the guest's kernel."""
        self._call("guest-file-flush", {"handle": handle})

    def close(self, handle: int) -> None:
        self._call("guest-file-close", {"handle": handle})

    def read_small(self, path: str) -> bytes:
        """The first piece of a file."""
        handle = self.open(path, "r")
        try:
            return self.read(handle)[0]
        finally:
            self._close_quietly(handle)

    def write_small(self, path: str, data: bytes) -> None:
        """Make or replace a file of at most PIECE_BYTES."""
        handle = self.open(path, "w")
        try:
            self.write(handle, data)
            self.flush(handle)
        finally:
            self._close_quietly(handle)

    def _close_quietly(self, handle: int) -> None:
        with contextlib.suppress(DeadlineExceeded, PeerUnavailable):
            self.close(handle)

    # -- answers --------------------------------------------------------------------------------

    def _call(
        self, command: str, arguments: dict[str, object] | None = None, *, seconds: float = CALL_SECONDS
    ) -> object:
        return self.channel.execute(command, arguments, timeout_seconds=seconds)

    def _whole(self, command: str, value: object, *, least: int = 0) -> int:
        """A whole number of at most 63 bits."""
        if type(value) is not int or not least <= value < 1 << 63:
            self._nonsense(command)
        return value

    def _text(self, command: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > 4096:
            self._nonsense(command)
        return value

    def _bytes(self, command: str, value: object, count_max: int) -> bytes:
        try:
            data = base64.b64decode(value if isinstance(value, str) else "?", validate=True)
        except (binascii.Error, ValueError):
            self._nonsense(command)
        if len(data) > count_max:
            self._nonsense(command)
        return data

    def _nonsense(self, command: str) -> NoReturn:
        raise PeerUnavailable(
            f"the agent of {self._subject} answered {command} with something that makes no sense",
            subject=self._subject,
            next_step="look which qemu-guest-agent runs in the guest",
        )


def _texts(disks: list[dict[str, object]], key: str) -> list[str]:
    return [text for disk in disks if isinstance(text := disk.get(key), str)]
