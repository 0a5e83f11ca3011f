"""Clients that mean no good, against an array of their own: it goes on, and its memory stays what it was."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift.nbd import wire
from arraylift.sizes import MIB
from tests.e2e.test_nbd import Array
from tests.fakes.nbd import Client, named, option, request
from tests.programs import need

SCRIPT = Path(__file__).with_name("nbd_hostile.py")
GROWTH_BYTES_MAX = 160 * MIB
"""For 64 clients with both buffers, and what the process keeps of them."""


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Array]:
    made = Array(tmp_path_factory.mktemp("hostile"))
    try:
        made.daemon.start()
        made.volume("disk")
        made.export("disk", volume_name="disk")
        yield made
    finally:
        made.close()


def test_libnbd_with_its_checks_off_gets_refusals(array: Array) -> None:
    need("nbdsh")  # of the same package as the module
    ended = subprocess.run(
        ["/usr/bin/python3", str(SCRIPT)],
        env={**os.environ, "NBD_URI": f"nbd+unix:///disk?socket={array.socket}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "done\n", ended.stdout + ended.stderr


def _rubbish(chance: random.Random) -> bytes:
    """The beginning of something, and what does not belong behind it."""
    begun = chance.choice(
        [
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0\0\0\3",
            b"\0\0\0\3" + option(wire.OPT_GO, named("disk")),
            b"\0\0\0\3" + option(wire.OPT_GO, b"", length=0xFFFFFFFF),
            b"\0\0\0\3" + option(wire.OPT_LIST) * 100,
            b"\0\0\0\3" + option(wire.OPT_STARTTLS),
        ]
    )
    return begun + chance.randbytes(chance.choice([0, 3, 100, 5000]))


def test_rubbish_half_open_and_deaf_clients_cost_bounded_memory(array: Array) -> None:
    witness = Client.connect(array.socket, "disk")
    witness.write(0, b"x" * MIB)
    array.daemon.reset_peaks()
    before = array.daemon.rss_bytes_max()
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        for _ in range(200):  # far more than may negotiate at once: they push each other out
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(array.socket)
            with contextlib.suppress(OSError):
                client.sendall(_rubbish(chance))
        assert witness.read(0, MIB) == b"x" * MIB
        for _ in range(64):
            deaf = Client.connect(array.socket, "disk")
            stack.callback(deaf.close)
            deaf.send(request(wire.CMD_READ, 0, 32 * MIB) * 100 + b"and what begins no request")
        witness.write(MIB, b"y" * MIB)
        witness.flush()
        assert witness.read(MIB, MIB) == b"y" * MIB
        half = Client.connect(array.socket, "disk")
        stack.callback(half.close)
        half.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_WRITE, 1, 0, 32 * MIB) + b"z" * 100)
        assert witness.read(0, 100) == b"x" * 100, (
            "what has come of a write is not there before a piece is whole"
        )
        assert array.daemon.rss_bytes_max() - before < GROWTH_BYTES_MAX
    assert witness.read(0, MIB) == b"x" * MIB
    witness.close()
    assert array.daemon.running
