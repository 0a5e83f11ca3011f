"""A guest agent behind a Unix socket, as QEMU shows one, that a test can make hostile, deaf or dead.

One connection is served at a time, as QEMU does; the next waits until it ends. Commands that come while the
agent hangs are found when it comes back. ``tamper`` may change, cut up or replace what is sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ALLOWED_FROZEN = {"guest-sync-delimited", "guest-fsfreeze-thaw", "guest-fsfreeze-status", "guest-ping"}


class FakeAgent:
    """``file_systems`` is how many a freeze freezes; ``frozen`` says whether they are."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.file_systems = 2
        self.frozen = False
        self.ran: list[str] = []
        self.files: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self.hooks: dict[str, Callable[[], object]] = {}
        """Run before a command is; one that blocks is an agent that hangs."""
        self.tamper: Callable[[str, bytes], Iterable[bytes]] = lambda command, answer: [answer]
        self.on_freeze: Callable[[], object] = lambda: None
        self.changed = threading.Condition()
        self._handles: dict[int, tuple[str, int]] = {}
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self.cut()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
            waker.settimeout(1)
            with contextlib.suppress(OSError):
                waker.connect(self.path)
        self._listener.close()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def cut(self) -> None:
        """End the connection, as a VMM that dies does."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait(self, condition: Callable[[], bool], seconds: float = 10) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    # -- inside ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closing:
            connection, _ = self._listener.accept()
            self._connection = connection
            with connection, contextlib.suppress(OSError):
                self._talk(connection)
            self._connection = None

    def _talk(self, connection: socket.socket) -> None:
        buffer = b""
        while data := connection.recv(1 << 16):
            buffer = (buffer + data).rpartition(b"\xff")[2] if b"\xff" in data else buffer + data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                command, answer = self._answer(line)
                for piece in self.tamper(command, answer):
                    connection.sendall(piece)

    def _answer(self, line: bytes) -> tuple[str, bytes]:
        try:
            request = json.loads(line)
            command, arguments = request["execute"], request.get("arguments", {})
        except (ValueError, KeyError):
            return "", self._line({"error": {"class": "GenericError", "desc": "JSON parse error"}})
        self.hooks.get(command, lambda: None)()
        with self.changed:
            self.ran.append(command)
            result = self._run(command, arguments)
            self.changed.notify_all()
        lead = b"\xff" if command == "guest-sync-delimited" else b""
        return command, lead + self._line(result)

    def _run(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        blocked = self.frozen and command not in ALLOWED_FROZEN
        if command in self.refused or blocked:
            return {"error": {"class": "CommandNotFound", "desc": f"{command} has been disabled"}}
        method = getattr(self, "_" + command.removeprefix("guest-").replace("-", "_"), None)
        if method is None:
            return {"error": {"class": "CommandNotFound", "desc": "unknown"}}
        try:
            return {"return": method(**{key.replace("-", "_"): value for key, value in arguments.items()})}
        except KeyError as error:
            return {"error": {"class": "GenericError", "desc": f"failed to open {error}"}}

    @staticmethod
    def _line(value: object) -> bytes:
        return json.dumps(value).encode() + b"\n"

    def _sync_delimited(self, id: int) -> int:
        return id

    def _fsfreeze_freeze(self) -> int:
        self.on_freeze()
        self.frozen = True
        return self.file_systems

    def _fsfreeze_thaw(self) -> int:
        count, self.frozen = self.file_systems if self.frozen else 0, False
        return count

    def _fsfreeze_status(self) -> str:
        return "frozen" if self.frozen else "thawed"

    def _info(self) -> dict[str, Any]:
        return {"version": "7.2.0"}

    def _file_open(self, path: str, mode: str) -> int:
        if "w" in mode:
            self.files[path] = b""
        self.files[path]
        handle = 1000 + len(self._handles)
        self._handles[handle] = (path, 0)
        return handle

    def _file_close(self, handle: int) -> dict[str, Any]:
        self._handles[handle]
        return {}

    def _file_flush(self, handle: int) -> dict[str, Any]:
        return self._file_close(handle)

    def _file_write(self, handle: int, buf_b64: str) -> dict[str, Any]:
        data = base64.b64decode(buf_b64)
        self.files[self._handles[handle][0]] += data
        return {"count": len(data), "eof": False}

    def _file_read(self, handle: int, count: int) -> dict[str, Any]:
        path, at = self._handles[handle]
        data = self.files[path][at : at + count]
        self._handles[handle] = (path, at + len(data))
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < count}
