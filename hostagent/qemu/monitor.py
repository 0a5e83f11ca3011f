"""QEMU's monitor: one command, one connection, all of it bounded.

Nothing stays open between commands, so that neither a restart of this process nor a QEMU that was stopped
in the middle of an answer leaves anything to be put in order, and no event is waited for: what matters is
asked for.
Invariants:
  Q1 ``execute`` ends within its time, and reads at most ANSWER_BYTES_MAX at once, whatever QEMU does.
  Q2 what QEMU says in an error is a claim of a program that a guest may have taken over: bounded text.
Callers: any thread; one command at a time, others wait within their own time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError, Runstate

from arraylift.errors import DeadlineExceeded, PeerUnavailable, WrongState
from hostagent.unix_sockets import connect

ANSWER_BYTES_MAX = 4 << 20
COMMAND_SECONDS = 10.0
CLOSE_SECONDS = 0.5
ERROR_CHARS_MAX = 300
_NO_EVENT = "NONE"

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # every error comes back to the caller


class MonitorRefused(WrongState):
    """QEMU said no; nothing else is wrong."""


class Monitor:
    """The monitor that listens at one path."""

    def __init__(self, path: str, subject: str) -> None:
        self._path, self._subject = path, subject
        self._lock = threading.Lock()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        seconds: float = COMMAND_SECONDS,
        descriptor: int | None = None,
    ) -> Any:
        """Return the command's answer (Q1). ``descriptor`` travels with the command, for ``getfd``.

        Raises MonitorRefused, DeadlineExceeded (the effect is unknown), PeerUnavailable (no QEMU).
        """
        until = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds):
            raise self._too_long(command)
        try:
            left = max(0.01, until - time.monotonic())
            return asyncio.run(self._converse(command, arguments, left, descriptor))
        except TimeoutError as error:
            raise self._too_long(command) from error
        except ExecuteError as error:
            said = "".join(char for char in str(error)[:ERROR_CHARS_MAX] if char.isprintable())
            raise MonitorRefused(
                f"QEMU of {self._subject} refuses {command}: {said}", subject=self._subject
            ) from error
        except (ConnectError, QMPError, OSError, EOFError, ValueError, RecursionError) as error:
            raise PeerUnavailable(
                f"QEMU of {self._subject} does not answer: {str(error)[:ERROR_CHARS_MAX]}",
                subject=self._subject,
                next_step="see its qemu.log",
            ) from error
        finally:
            self._lock.release()

    async def _converse(
        self, command: str, arguments: Mapping[str, object] | None, seconds: float, descriptor: int | None
    ) -> Any:
        client = QMPClient(None, readbuflen=ANSWER_BYTES_MAX)
        client.events.names.add(_NO_EVENT)  # else it keeps every event of the conversation
        connection = connect(self._path, seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                connection.setblocking(False)
                await client.connect(connection)
                if descriptor is not None:
                    client.send_fd_scm(descriptor)
                return await client.execute(command, cast("dict[str, object] | None", arguments))
        finally:
            with contextlib.suppress(TimeoutError, QMPError, OSError, EOFError):
                if client.runstate is not Runstate.IDLE:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await client.disconnect()
            connection.close()

    def _too_long(self, command: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"QEMU of {self._subject} has not answered {command} in time",
            subject=self._subject,
            next_step="power the VM off by force if it stays so",
        )
