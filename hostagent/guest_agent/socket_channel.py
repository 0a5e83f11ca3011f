"""The agent behind a Unix socket, as QEMU shows a guest's virtio-serial port: an AgentChannel.

Invariants: A1-A3 of channel.py, and
  S1 a command that changes anything is sent only after the agent has answered a sync: one that nobody
     reads now would run whenever the guest's agent comes back.
  S2 a connection that rubbish came over is kept: a guard may hold it too, and QEMU takes one at a time.
     It is given up only when the other side ends it, or takes no more bytes.
Limits: one connection; FRESH_SECONDS without a sync. Callers: any thread.
Why: docs/decisions/0090-the-guest-agent.md
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.errors import ArrayliftError, DeadlineExceeded, PeerUnavailable
from hostagent.guest_agent.channel import AgentRefused, Answer, GuardTarget
from hostagent.guest_agent.framing import SYNC_ID_MAX, AgentMachine, request
from hostagent.unix_sockets import connect

CONNECT_SECONDS_MAX = 2.0
FRESH_SECONDS = 1.0
"""An agent that answered so recently is asked without another sync: files come in many pieces."""

SYNC_SECONDS_MAX = 5.0
"""An agent that runs answers a sync at once, but where its guest has just come from another host; waiting
longer would only hold up a snapshot."""

_TICK_SECONDS = 0.05
_READ_BYTES = 64 << 10


class SocketChannel:
    """``subject`` names the VM in errors. Connects when first used."""

    def __init__(self, path: str, *, subject: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path, self._subject, self._clock = path, subject, clock
        self._turn = threading.Lock()
        self._urgent = 0
        self._calm = threading.Condition()
        self._socket: socket.socket | None = None
        self._machine = AgentMachine(subject)
        self._fresh_until = 0.0

    # -- the contract ---------------------------------------------------------------------------

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answer:
        deadline = self._clock.monotonic() + timeout_seconds
        with self._taking_turn(deadline, yields=True):
            connection = self._connected(deadline)
            if not self._is_fresh(connection):
                sync_deadline = min(deadline, self._clock.monotonic() + SYNC_SECONDS_MAX)
                self._send(connection, self._machine.sync(_draw()), sync_deadline, yields=True)
                self._await_step(connection, sync_deadline, yields=True)  # S1
            self._send(connection, request(command, arguments), deadline, yields=True)
            return self._await_answer(connection, command, deadline, yields=True)

    def thaw(self, *, timeout_seconds: float) -> int:
        deadline = self._clock.monotonic() + timeout_seconds
        command = "guest-fsfreeze-thaw"
        with self._urgently(), self._taking_turn(deadline, yields=False):
            connection = self._connected(deadline)
            # In one piece, against S1: it shall run whenever the agent comes back (A2).
            self._send(connection, self._machine.sync(_draw()) + request(command), deadline, yields=False)
            self._await_step(connection, deadline, yields=False)
            count = self._await_answer(connection, command, deadline, yields=False)
        return count if type(count) is int else 0

    def guard(self) -> GuardTarget:
        with self._taking_turn(self._clock.monotonic() + CONNECT_SECONDS_MAX, yields=True):
            connection = self._connected(self._clock.monotonic() + CONNECT_SECONDS_MAX)
            descriptor = os.dup(connection.fileno())
            return GuardTarget(("socket", str(descriptor), self._path), (descriptor,))

    def close(self) -> None:
        """Leave the agent alone. Nothing may use the channel any more."""
        with self._turn:
            self._drop_connection()

    # -- turns ----------------------------------------------------------------------------------

    @contextmanager
    def _urgently(self) -> Iterator[None]:
        """Whoever waits for an answer gives his turn up."""
        with self._calm:
            self._urgent += 1
        try:
            yield
        finally:
            with self._calm:
                self._urgent -= 1
                self._calm.notify_all()

    @contextmanager
    def _taking_turn(self, deadline: float, *, yields: bool) -> Iterator[None]:
        while True:
            if not self._turn.acquire(timeout=max(0.0, deadline - self._clock.monotonic())):
                raise self._silent()
            if not (yields and self._urgent):
                break
            self._turn.release()
            with self._calm:
                left = max(0.0, deadline - self._clock.monotonic())
                if not self._calm.wait_for(lambda: not self._urgent, left):
                    raise self._silent()
        try:
            yield
        except AgentRefused:
            raise
        except BaseException:
            self._machine.lose_step()
            raise
        else:
            self._fresh_until = self._clock.monotonic() + FRESH_SECONDS
        finally:
            self._turn.release()

    # -- the socket -----------------------------------------------------------------------------

    def _connected(self, deadline: float) -> socket.socket:
        if self._socket is not None:
            return self._socket
        seconds = min(CONNECT_SECONDS_MAX, max(0.01, deadline - self._clock.monotonic()))
        try:
            connection = connect(self._path, seconds=seconds)
        except ArrayliftError as error:
            raise self._gone(f"cannot be reached: {error.message}") from None
        connection.setblocking(False)
        self._socket = connection
        self._machine.lose_step()
        return connection

    def _is_fresh(self, connection: socket.socket) -> bool:
        if self._clock.monotonic() >= self._fresh_until or not self._machine.idle:
            return False
        return not self._poll(connection, select.POLLIN, 0)  # nothing that nobody asked for

    def _await_step(self, connection: socket.socket, deadline: float, *, yields: bool) -> None:
        while not self._machine.in_step:
            self._receive(connection, deadline, yields=yields)

    def _await_answer(
        self, connection: socket.socket, command: str, deadline: float, *, yields: bool
    ) -> Answer:
        while (found := self._machine.answer(command)) is None:
            self._receive(connection, deadline, yields=yields)
        return found[0]

    def _receive(self, connection: socket.socket, deadline: float, *, yields: bool) -> None:
        self._wait(connection, select.POLLIN, deadline, yields=yields)
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:  # a guard took it
            return
        except OSError as error:
            self._drop_connection()
            raise self._gone(f"broke: {error}") from None
        if not data:
            self._drop_connection()
            raise self._gone("was closed")
        self._machine.receive(data)

    def _send(self, connection: socket.socket, data: bytes, deadline: float, *, yields: bool) -> None:
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[connection.send(view) :]
                except BlockingIOError:
                    self._wait(connection, select.POLLOUT, deadline, yields=yields)
        except OSError as error:
            self._drop_connection()
            raise self._gone(f"broke: {error}") from None
        except ArrayliftError:
            self._drop_connection()  # S2: half a command is on its way
            raise

    def _wait(self, connection: socket.socket, event: int, deadline: float, *, yields: bool) -> None:
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0 or (yields and self._urgent):
                raise self._silent()
            if self._poll(connection, event, min(left, _TICK_SECONDS)):
                return

    @staticmethod
    def _poll(connection: socket.socket, event: int, seconds: float) -> bool:
        poll = select.poll()  # unlike select(), with any number of descriptors
        poll.register(connection, event)
        return bool(poll.poll(seconds * 1000))

    def _drop_connection(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._machine.lose_step()

    def _silent(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the agent of {self._subject} does not answer",
            subject=self._subject,
            next_step="check that qemu-guest-agent runs in the guest",
        )

    def _gone(self, how: str) -> PeerUnavailable:
        return PeerUnavailable(
            f"the channel to the agent of {self._subject} {how}",
            subject=self._subject,
            next_step="check that the VM runs, and qemu-guest-agent in it",
        )


def _draw() -> int:
    return secrets.randbelow(SYNC_ID_MAX)
