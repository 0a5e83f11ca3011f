"""Requests that libnbd would rather not send, sent with its checks off.

Run by Debian's Python, with NBD_URI in the environment. Writes
one line for each that was answered otherwise than it should be; ends with "done".
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import nbd  # type: ignore[import-not-found,unused-ignore]  # Debian's, of Debian's Python

URI = os.environ["NBD_URI"]
MIB = 1 << 20


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")


def connect(**how: Any) -> Any:
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.add_meta_context("base:allocation")
    if not how.get("structured", True):
        handle.set_request_structured_replies(False)
    handle.connect_uri(URI)
    return handle


def refused(what: str, wanted: int, act: Callable[[], object]) -> None:
    """The request must fail with ``wanted``."""
    try:
        act()
    except nbd.Error as error:
        if error.errnum != wanted:
            tell(f"{what}: {errno.errorcode.get(error.errnum, error.errnum)}, {error.string}")
    else:
        tell(f"{what}: was carried out")


def refusals(handle: Any) -> None:
    """Each leaves the connection as it was."""
    size = handle.get_size()
    refused("read beyond", errno.EINVAL, lambda: handle.pread(2, size - 1))
    refused("read far beyond", errno.EINVAL, lambda: handle.pread(512, 1 << 62))
    refused("write beyond", errno.ENOSPC, lambda: handle.pwrite(b"ab", size - 1))
    refused("trim beyond", errno.EINVAL, lambda: handle.trim(512, size))
    refused("zero beyond", errno.ENOSPC, lambda: handle.zero(MIB, size - 1))
    refused("cache beyond", errno.EINVAL, lambda: handle.cache(MIB, size - 1))
    refused("status beyond", errno.EINVAL, lambda: handle.block_status(512, size, lambda *_: 0))
    refused("status of nothing", errno.EINVAL, lambda: handle.block_status(0, 0, lambda *_: 0))
    refused("flags of a write", errno.EINVAL, lambda: handle.pwrite(b"ab", 0, nbd.CMD_FLAG_FAST_ZERO))
    refused("flags of a trim", errno.EINVAL, lambda: handle.trim(512, 0, nbd.CMD_FLAG_NO_HOLE))
    refused("flags of a flush", errno.EINVAL, lambda: handle.flush(nbd.CMD_FLAG_REQ_ONE))
    if handle.pread(512, 0) != bytearray(512):
        tell("the connection is not as it was")


def main() -> None:
    handle = connect()
    refusals(handle)
    refused("a longer read than 32 MiB", errno.EINVAL, lambda: handle.pread(33 * MIB, 0))
    handle.shutdown()
    simple = connect(structured=False)
    refused("DF without structured replies", errno.EINVAL, lambda: simple.pread(512, 0, nbd.CMD_FLAG_DF))
    refused(
        "status without structured replies", errno.EINVAL, lambda: simple.block_status(512, 0, lambda *_: 0)
    )
    simple.shutdown()
    longer = connect()
    try:
        longer.pwrite(bytearray(33 * MIB), 0)
        tell("a longer write than 32 MiB: was carried out")
    except nbd.Error:  # the server hung up, as it must
        pass
    flood = connect()
    for _ in range(500):
        flood.aio_flush()
        flood.aio_pread(nbd.Buffer(4096), 0)
    while flood.aio_in_flight():
        flood.poll(-1)
    flood.shutdown()
    tell("done")


if __name__ == "__main__":
    main()
