"""One client from accept to close: the two machines over one socket, and flushes beside them.

Invariants:
  C1 only the connection's thread touches the socket and the machines; a flush runs in a thread of the
     server's pool, at most one at a time for a connection, and meanwhile requests go on.
  C2 the device is closed when nothing of this connection uses it any more, and only then.
Callers: server starts ``run`` in a thread of its own; ``hang_up`` any thread.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future

from arraylift.clock import Clock
from arraylift.errors import ArrayliftError
from arraylift.logs import get_logger
from arraylift.nbd.access import Caller
from arraylift.nbd.device import Device, Exports
from arraylift.nbd.link import Link
from arraylift.nbd.negotiation import Ended, Negotiation, Ready, StartTls, Tls
from arraylift.nbd.transmission import BrokenReplyError, Transmission

NEGOTIATION_SECONDS_MAX = 20.0
"""From accept until the client has its disk."""

DEFERRED_MAX = 1024
"""Requests of a connection that wait for a flush; beyond it nothing is received."""

_RECEIVE_BYTES = 16 << 10

_log = get_logger("nbd")


class Connection:
    """One client. ``run`` returns when it is gone; it raises nothing."""

    def __init__(
        self,
        link: Link,
        exports: Exports,
        *,
        tls: Tls,
        context: ssl.SSLContext | None,
        flushers: Executor,
        clock: Clock,
    ) -> None:
        assert (context is None) == (tls is Tls.NONE)
        self._link = link
        self._exports = exports
        self._tls = tls
        self._context = context
        self._flushers = flushers
        self._clock = clock
        self._caller: Caller = None
        self._flush: Future[ArrayliftError | None] | None = None
        self._flushing: list[int] = []

    def hang_up(self) -> None:
        """End it soon, without waiting."""
        self._link.hang_up()

    def close(self) -> None:
        """Instead of ``run``, where that is not to be."""
        self._link.close()

    def run(self, negotiated: Callable[[], None]) -> None:
        """Serve; ``negotiated`` is called when the client has its disk."""
        ready: Ready | None = None
        try:
            ready = self._negotiate()
            if ready is not None:
                negotiated()
                self._transmit(ready)
        except ArrayliftError as error:
            _log.warning("nbd_client_refused", peer=self._who(), error=error.message)
        except (OSError, BrokenReplyError) as error:
            _log.info("nbd_connection_cut", peer=self._who(), error=f"{type(error).__name__}: {error}")
        except Exception:  # noqa: BLE001  # the last place that can tell; the thread ends
            _log.exception("nbd_connection_failed", peer=self._who())
        finally:
            if self._flush is not None:
                self._flush.exception()  # C2
            if ready is not None:
                ready.device.close()
            self._link.close()

    def _who(self) -> str:
        return str(self._caller or "anybody")

    # -- negotiation ----------------------------------------------------------------------------

    def _negotiate(self) -> Ready | None:
        """Return what the client has got; None if it left."""
        deadline = self._clock.monotonic() + NEGOTIATION_SECONDS_MAX
        machine = Negotiation(self._exports, tls=self._tls, caller=None, hang_up=self.hang_up)
        try:
            self._link.send_by(machine.greeting, deadline)
            while not isinstance(machine.outcome, Ended | Ready):
                data = self._link.receive_some(_RECEIVE_BYTES, deadline)
                if not data:
                    return None
                for answer in machine.received(data):
                    self._link.send_by(answer, deadline)
                if isinstance(machine.outcome, StartTls):
                    assert self._context is not None
                    self._caller = self._link.start_tls(self._context, deadline)
                    machine.secured(self._caller)
        except BaseException:
            if isinstance(machine.outcome, Ready):
                machine.outcome.device.close()
            raise
        return machine.outcome if isinstance(machine.outcome, Ready) else None

    # -- transmission ---------------------------------------------------------------------------

    def _transmit(self, ready: Ready) -> None:
        machine = Transmission(
            ready.device, structured=ready.structured, contexts=ready.contexts, rest=ready.rest
        )
        self._link.begin_transmission()
        _log.info("nbd_connected", peer=self._who(), export=ready.name, read_only=ready.device.read_only)
        try:
            self._send(machine.received(0))
            while self._step(machine, ready.device):
                pass
        finally:
            _log.info(
                "nbd_disconnected",
                peer=self._who(),
                export=ready.name,
                requests=machine.requests,
                errors=machine.errors,
                bytes_read=machine.bytes_read,
                bytes_written=machine.bytes_written,
            )

    def _step(self, machine: Transmission, device: Device) -> bool:
        """Start a flush that is due, answer one that is done, take what the client sent; False at the end."""
        if self._flush is None and machine.deferred_count:
            self._flushing = machine.take_deferred()
            self._flush = self._flushers.submit(self._run_flush, device)
        if self._flush is not None:
            count = self._beside_flush(machine, self._flush)
        elif machine.ended:
            return False
        else:
            count = self._receive(machine)
        if count:
            self._send(machine.received(count))
        return count != 0

    def _receive(self, machine: Transmission) -> int | None:
        """Return how much the client sent, 0 at the end, None if it is silent and may be."""
        try:
            return self._link.receive_into(machine.window())
        except TimeoutError:
            if machine.between_requests:
                return None
            raise

    def _beside_flush(self, machine: Transmission, flush: Future[ArrayliftError | None]) -> int | None:
        """The same while a flush runs, which is answered when done; never waits for the client alone."""
        heard = not machine.ended and machine.deferred_count < DEFERRED_MAX
        client, woken = self._link.wait(for_client=heard)
        if woken:
            self._flush = None
            self._send(machine.flushed(self._flushing, flush.result()))
        return self._link.receive_ready(machine.window()) if client else None

    def _send(self, buffers: Iterator[memoryview]) -> None:
        for buffer in buffers:
            self._link.send(buffer)

    def _run_flush(self, device: Device) -> ArrayliftError | None:
        """In a thread of the pool (C1)."""
        try:
            device.flush()
        except ArrayliftError as error:
            return error
        finally:
            self._link.wake()  # before the future is done: afterwards the link may be closed
        return None
