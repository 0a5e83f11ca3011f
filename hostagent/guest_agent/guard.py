"""Thaw a guest if the host agent dies or hangs while it is frozen: a process of its own, started before the
freeze (``guard_process``), gone after the thaw.

A program, not a module: it is run alone, with nothing but the standard library, so that it starts at once.
    guard.py SECONDS socket FD PATH      shares the host agent's connection to the guest's agent
    guard.py SECONDS command PROGRAM...  runs a program that thaws, e.g. virsh
It says ``r`` on its standard output when it watches. ``d`` on its standard input means that the guest is
thawed. The end of its input without that, and SECONDS without either, mean that the guest may be
frozen: then it thaws until the agent agrees, TRIES times. It exits with 0 when no thaw was needed, 3 when
it has thawed, 4 when nobody answered.
Invariants:
  W1 it outlives the host agent: another session, deaf to the signals that end services.
  W2 while the host agent lives and is in time, it neither reads nor writes the connection.
Law 11. Why: docs/decisions/0091-the-guard-of-a-freeze.md
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys

TRIES = 5
TRY_SECONDS = 2.0
ANSWER_BYTES = 64 << 10
DONE, NOT_NEEDED, THAWED, NOBODY = b"d", 0, 3, 4


def main(arguments: list[str]) -> int:
    seconds, kind, *rest = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # W1
    os.write(1, b"r")
    if _readable(0, float(seconds)) and os.read(0, 1) == DONE:
        return NOT_NEEDED
    sys.stderr.write("arraylift: the host agent is gone or late with a guest frozen; the guard thaws it\n")
    thawed = _by_command(rest) if kind == "command" else _by_socket(int(rest[0]), rest[1])
    return THAWED if thawed else NOBODY


def _by_command(command: list[str]) -> bool:
    for _ in range(TRIES):
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            ran = subprocess.run(command, check=False, timeout=TRY_SECONDS, stdin=subprocess.DEVNULL)
            if ran.returncode == 0:
                return True
        _readable(-1, 0.2)
    return False


def _by_socket(descriptor: int, path: str) -> bool:
    connection = socket.socket(fileno=descriptor)
    for _ in range(TRIES):
        with contextlib.suppress(OSError):
            return _ask(connection)
        # The host agent, or the VMM, has ended the connection: one of our own.
        connection.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TRY_SECONDS)
        with contextlib.suppress(OSError):
            # The path may be longer than the kernel takes; it is called by way of its directory.
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            finally:
                os.close(folder)
    return False


def _ask(connection: socket.socket) -> bool:
    """Send one thaw, which an agent that hangs will find when it comes back, and wait for what it says.
    Raises OSError (no connection)."""
    connection.settimeout(TRY_SECONDS)
    sync_id = int.from_bytes(os.urandom(4), "big") >> 1
    connection.sendall(
        b'\xff{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n'
        b'{"execute":"guest-fsfreeze-thaw"}\n' % sync_id
    )
    came = b""
    for _ in range(TRIES * 20):
        if not _readable(connection.fileno(), TRY_SECONDS / 20):
            continue
        data = connection.recv(ANSWER_BYTES)
        if not data:
            raise OSError("closed")
        came = (came + data)[-ANSWER_BYTES:]
        lines = came.rpartition(b"\xff")[2].split(b"\n")
        if str(sync_id).encode() in lines[0] and len(lines) > 2:
            return b'"return"' in lines[1]
    return False


def _readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    if descriptor >= 0:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
