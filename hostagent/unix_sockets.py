"""Unix sockets whose paths may be longer than the 107 bytes that the kernel takes.

They are bound and called by way of a descriptor of their directory.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from arraylift.errors import DeadlineExceeded, PeerUnavailable


def listen(path: str) -> socket.socket:
    """Return a listening socket that a QEMU may inherit. REQUIRES that nothing lies at ``path``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short_path(path) as short:
            listener.bind(short)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: str, *, seconds: float) -> socket.socket:
    """Return a connection whose time-out is ``seconds``. Raises PeerUnavailable, DeadlineExceeded."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Linux waits for room in the backlog as long as the time-out to send allows.
        connection.settimeout(seconds)
        with short_path(path) as short:
            connection.connect(short)
    except (TimeoutError, BlockingIOError) as error:
        connection.close()
        raise DeadlineExceeded(f"{os.path.basename(path)} took no connection", subject=path) from error
    except OSError as error:
        connection.close()
        raise PeerUnavailable(f"nobody listens at {os.path.basename(path)}: {error}", subject=path) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """A path to the same place that the kernel takes, within the block."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)
