"""Variables of UEFI firmware: of VMs that were made with them, and as they were at each VM snapshot.

Owns: ``<state>/firmware``; nobody else opens these files. A file's name is the id of its VM or VM snapshot.
Invariants:
  W1 what is kept unpacks to at most FIRMWARE_VARIABLES_UNPACKED_MAX bytes, checked before it is written.
  W2 variables are durable before the record that they belong to, and go after it; ``keep_only`` removes
     what a crash between the two has left.
Callers: use cases and drivers, any thread; one id is changed by one thread at a time.
Failpoints: those of arraylift.durable under the label ``firmware``. Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

import zlib
from collections.abc import Collection

from arraylift import envelope
from arraylift.durable import Files
from arraylift.errors import InvalidRequest
from arraylift.ids import VmId, VmSnapshotId
from arraylift.sizes import MIB
from arraylift.vm.types import FIRMWARE_VARIABLES_BYTES_MAX

MAGIC = b"ALFIRMWR"
SUFFIX = ".alf"
FIRMWARE_VARIABLES_UNPACKED_MAX = 8 * MIB
"""Of OVMF: half a MiB, and 4 MiB with large builds."""


def pack_variables(variables: bytes) -> bytes:
    """Compress what a VMM keeps. Raises InvalidRequest: they do not fit into a message."""
    packed = zlib.compress(variables) if variables else b""
    if len(packed) > FIRMWARE_VARIABLES_BYTES_MAX or len(variables) > FIRMWARE_VARIABLES_UNPACKED_MAX:
        raise InvalidRequest(f"firmware variables of {len(variables)} bytes are too many to keep")
    return packed


def unpack_variables(packed: bytes) -> bytes:
    """Decompress what somebody sent. Raises InvalidRequest (W1)."""
    if not packed:
        return b""
    machine = zlib.decompressobj()
    try:
        plain = machine.decompress(packed, FIRMWARE_VARIABLES_UNPACKED_MAX)
    except zlib.error as error:
        raise InvalidRequest(f"the firmware variables cannot be read: {error}") from None
    if len(packed) > FIRMWARE_VARIABLES_BYTES_MAX or not machine.eof or machine.unused_data:
        raise InvalidRequest(
            f"the firmware variables are no stream of zlib of at most {FIRMWARE_VARIABLES_BYTES_MAX} bytes"
        )
    return plain


class FirmwareStore:
    """Variables by the id of what they belong to; packed, b"" where there are none."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files, self._folder = files, folder
        files.make_dirs(folder)
        files.sweep(folder)

    def put(self, owner: VmId | VmSnapshotId, packed: bytes) -> None:
        """Keep them, durably; b"" forgets. Raises InvalidRequest, OutOfSpace."""
        unpack_variables(packed)  # W1
        if packed:
            self._files.publish(self._path(owner), [envelope.encode(MAGIC, packed)], label="firmware")
        else:
            self.remove(owner)

    def get(self, owner: VmId | VmSnapshotId) -> bytes:
        """Raises Corruption."""
        path = self._path(owner)
        if not self._files.exists(path):
            return b""
        return envelope.decode(MAGIC, self._files.read(path), what=path)[0]

    def remove(self, owner: VmId | VmSnapshotId) -> None:
        """No error where there are none."""
        if self._files.exists(self._path(owner)):
            self._files.remove(self._path(owner), label="firmware", missing_ok=True)

    def keep_only(self, owners: Collection[VmId | VmSnapshotId]) -> None:
        """Remove all others (W2). Once, at start."""
        known = {f"{owner}{SUFFIX}" for owner in owners}
        for name in self._files.list_dir(self._folder):
            if name not in known:
                self._files.remove(f"{self._folder}/{name}", label="firmware", missing_ok=True)

    def _path(self, owner: VmId | VmSnapshotId) -> str:
        return f"{self._folder}/{owner}{SUFFIX}"
