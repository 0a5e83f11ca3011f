"""Start a guard for one freeze, and end it after the thaw (guard.py).

Invariants:
  W3 ``started`` returns only when the guard watches: no guest is frozen without one.
  W4 nothing but the guard inherits its descriptors, and nobody else holds the end that tells it of our death.
Limits: START_SECONDS; one process a freeze. Callers: freezer, any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from arraylift.errors import PeerUnavailable
from arraylift.logs import get_logger
from hostagent.guest_agent.channel import GuardTarget
from hostagent.guest_agent.guard import DONE

START_SECONDS = 5.0
END_SECONDS = 1.0
_PROGRAM = str(Path(__file__).with_name("guard.py"))

_log = get_logger("freeze_guard")
_ending: set[subprocess.Popen[bytes]] = set()
_ending_lock = threading.Lock()


class Guard:
    """One process. ``release`` may be called twice, from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], subject: str) -> None:
        self._process, self._subject = process, subject
        self._lock = threading.Lock()

    @classmethod
    def started(cls, target: GuardTarget, *, seconds: float, subject: str) -> Self:
        """Start one that thaws ``seconds`` from now unless it is released. Raises PeerUnavailable."""
        _reap()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _PROGRAM, str(seconds), *target.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=target.descriptors,
                start_new_session=True,
                cwd="/",
                bufsize=0,
            )
        except OSError as error:
            raise _not_started(subject, str(error)) from None
        finally:
            target.close()
        guard = cls(process, subject)
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(START_SECONDS * 1000) or os.read(process.stdout.fileno(), 1) != b"r":
            guard.release()
            raise _not_started(subject, "it does not watch")
        return guard

    @property
    def pid(self) -> int:
        return self._process.pid

    def release(self) -> None:
        """The guest is thawed: let the guard go."""
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            if stdin is None or stdin.closed:
                return
            with contextlib.suppress(OSError):  # it has ended
                stdin.write(DONE)
            with contextlib.suppress(OSError):
                stdin.close()
            if stdout is not None:
                stdout.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it thaws just now, too late for us: it ends by itself
            with _ending_lock:
                _ending.add(self._process)
            return
        if code:
            _log.warning("freeze_guard_acted", vm=self._subject, exit_code=code)


def _reap() -> None:
    with _ending_lock:
        _ending.difference_update([process for process in _ending if process.poll() is not None])


def _not_started(subject: str, why: str) -> PeerUnavailable:
    return PeerUnavailable(
        f"no guard could be started for the freeze of {subject}: {why}",
        subject=subject,
        next_step="look at the host's processes and memory",
    )
