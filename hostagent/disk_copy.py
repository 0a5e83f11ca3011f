"""A volume as a local sparse file, and its changes written back: granules that differ, no others.

Owns: every byte below ``<state>/guest-disks``.
Invariants:
  W1 a write-back is all or nothing over crashes: its record is durable, with the bytes it needs,
     before the first granule goes to the array, and goes only after the array has them all.
  W2 while a record stands nobody reads that disk as a file system: ``settle`` comes first.
  W3 what no record names is swept at start.
Callers: emulated, any thread; one at a time for one VM.
Failpoints: ``write-back.written``, and those of arraylift.durable under ``write-back``, ``guest-disk``.
Format: docs/formats/vm-record-v1.md
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from arraylift import envelope
from arraylift.durable import Files, RandomFile
from arraylift.errors import Corruption, InvalidRequest, NotFound, OutOfSpace, Overloaded, WrongState
from arraylift.failpoints import FAILPOINTS
from arraylift.ids import VmId, check_id, random_id
from arraylift.sizes import GIB, GRANULE_BYTES, MIB
from hostagent.volumes import Volumes

WRITE_BACK_MAGIC = b"ALWRBACK"
COPY_BYTES_MAX = 64 * GIB
"""Mapped bytes of the largest disk that the emulated guest takes a copy of."""

COPIES_MAX = 4
"""Copies of disks on this host at once; further ones wait COPY_WAIT_SECONDS."""

COPY_WAIT_SECONDS = 60.0
RESERVE_BYTES = 256 * MIB
_WINDOW_BYTES = MIB
_RECORD, _IMAGE = ".alw", ".img"
_KEYS = frozenset({"copy", "vm_id", "array_address", "volume_name", "runs"})


@dataclass(frozen=True, slots=True)
class WriteBack:
    """``runs``: (offset, length) of what differs; the bytes lie in ``<copy>.img``."""

    copy: str
    vm_id: VmId
    array_address: str
    volume_name: str
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """``image`` names the copy inside the folder; ``before`` is the untouched one, if kept."""

    name: str
    folder: str
    image: RandomFile
    before: RandomFile | None
    size_bytes: int

    @property
    def image_name(self) -> str:
        return f"{self.name}{_IMAGE}"

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the copy, fewer at its end."""
        data = bytearray(max(0, min(length, self.size_bytes - offset)))
        self.image.read_into(offset, memoryview(data))
        return bytes(data)


class DiskCopies:
    """Copies and write-backs of all VMs of a host."""

    def __init__(self, files: Files, folder: str, volumes: Volumes) -> None:
        """Load the records, sweep the rest (W3). Raises Corruption."""
        self.folder = folder
        self._files, self._volumes = files, volumes
        self._room = threading.BoundedSemaphore(COPIES_MAX)
        self._lock = threading.Lock()
        files.make_dirs(folder)
        files.sweep(folder)
        names = files.list_dir(folder)
        records = [self._load(name) for name in names if name.endswith(_RECORD)]
        self._waiting = {record.copy: record for record in records}
        wanted = {f"{copy}{suffix}" for copy in self._waiting for suffix in (_RECORD, _IMAGE)}
        for name in names:
            if name not in wanted:
                files.remove(f"{folder}/{name}", label="guest-disk")

    def _load(self, name: str) -> WriteBack:
        data = self._files.read(f"{self.folder}/{name}")
        record = decode_write_back(data, what=f"write-back {name}")
        if name != f"{record.copy}{_RECORD}":
            raise Corruption(f"{self.folder}/{name} is about {record.copy}", subject=name)
        return record

    # -- copies ---------------------------------------------------------------------------------

    @contextmanager
    def copy(self, address: str, volume: str, *, keep_before: bool) -> Iterator[DiskCopy]:
        """The volume as a file, for the time of the block.

        Raises NotFound, WrongState (too large), OutOfSpace, Overloaded, PeerUnavailable.
        """
        if not self._room.acquire(timeout=COPY_WAIT_SECONDS):
            raise Overloaded(f"{COPIES_MAX} guest disks are being read already", next_step="repeat later")
        try:
            size_bytes = self._check_room(address, volume, copies=1 + keep_before)
            name = random_id()
            with (
                self.scratch(name, _IMAGE) as image,
                self.scratch(name, ".before") if keep_before else contextlib.nullcontext() as before,
            ):
                for file in filter(None, (image, before)):
                    file.write(size_bytes - 1, b"\0")  # the length of the disk
                for offset, data in self._volumes.read(address, volume):
                    for file in filter(None, (image, before)):
                        file.write(offset, data)
                yield DiskCopy(name, self.folder, image, before, size_bytes)
        finally:
            self._room.release()

    def _check_room(self, address: str, volume: str, *, copies: int) -> int:
        facts = self._volumes.find(address, volume)
        if facts is None:
            raise NotFound(f"array {address} has no volume {volume}", subject=f"volume {volume}")
        if facts.mapped_bytes > COPY_BYTES_MAX:
            raise WrongState(
                f"volume {volume} holds more than {COPY_BYTES_MAX} bytes: too much for an emulated guest",
                subject=f"volume {volume}",
            )
        free = self._files.free_bytes(self.folder)
        if copies * facts.mapped_bytes + RESERVE_BYTES > free:
            raise OutOfSpace(
                f"volume {volume} needs {copies * facts.mapped_bytes} bytes on this host, {free} are free",
                subject=self.folder,
                next_step="free space on the host",
            )
        return facts.size_bytes

    @contextmanager
    def scratch(self, name: str, suffix: str) -> Iterator[RandomFile]:
        """A local file for the time of the block; a write-back that waits keeps its own."""
        path = f"{self.folder}/{name}{suffix}"
        file = self._files.random_file(path, label="guest-disk")
        try:
            yield file
        finally:
            file.close()
            with self._lock:
                kept = suffix == _IMAGE and name in self._waiting
            if not kept:
                self._files.remove(path, label="guest-disk", missing_ok=True)

    # -- write-back -----------------------------------------------------------------------------

    def write_back(self, copy: DiskCopy, vm_id: VmId, address: str, volume: str) -> int:
        """Bring what changed in the copy to the array (W1); returns the bytes written.

        Raises PeerUnavailable and what the array raises: then ``settle`` finishes it later.
        """
        runs = tuple(differing_runs(copy))
        if not runs:
            return 0
        record = WriteBack(copy.name, vm_id, address, volume, runs)
        copy.image.sync()
        self._files.publish(self._record(copy.name), [encode_write_back(record)], label="write-back")
        with self._lock:
            self._waiting[copy.name] = record
        self._finish(record, copy.image)
        return sum(length for _, length in runs)

    def settle(self, vm_id: VmId) -> None:
        """Finish write-backs that an absent array or a crash has left (W2). Raises as write_back."""
        for record in self._of(vm_id):
            image = self._files.random_file(f"{self.folder}/{record.copy}{_IMAGE}", label="guest-disk")
            try:
                self._finish(record, image)
            finally:
                image.close()
            self._files.remove(f"{self.folder}/{record.copy}{_IMAGE}", label="guest-disk", missing_ok=True)

    def is_settled(self, vm_id: VmId) -> bool:
        return not self._of(vm_id)

    def unsettled(self) -> set[VmId]:
        """VMs with a write-back that waits."""
        with self._lock:
            return {record.vm_id for record in self._waiting.values()}

    def drop(self, vm_id: VmId, volume: str = "") -> None:
        """Give write-backs up, as a power cut does: of one volume, or of all. No operation may run."""
        for record in self._of(vm_id):
            if volume in {"", record.volume_name}:
                self._forget(record)
                image = f"{self.folder}/{record.copy}{_IMAGE}"
                self._files.remove(image, label="guest-disk", missing_ok=True)

    def _finish(self, record: WriteBack, image: RandomFile) -> None:
        self._volumes.write(record.array_address, record.volume_name, _pieces(record, image))
        FAILPOINTS.hit("write-back.written")
        self._forget(record)

    def _forget(self, record: WriteBack) -> None:
        self._files.remove(self._record(record.copy), label="write-back", missing_ok=True)
        with self._lock:
            self._waiting.pop(record.copy, None)

    def _of(self, vm_id: VmId) -> list[WriteBack]:
        with self._lock:
            return [record for record in self._waiting.values() if record.vm_id == vm_id]

    def _record(self, copy: str) -> str:
        return f"{self.folder}/{copy}{_RECORD}"


def _pieces(record: WriteBack, image: RandomFile) -> Iterator[tuple[int, bytes]]:
    for offset, length in record.runs:
        for start in range(0, length, _WINDOW_BYTES):
            data = bytearray(min(_WINDOW_BYTES, length - start))
            image.read_into(offset + start, memoryview(data))
            yield offset + start, bytes(data)


def differing_runs(copy: DiskCopy) -> Iterator[tuple[int, int]]:
    """(offset, length) of runs of granules in which the copy differs from what was read."""
    assert copy.before is not None, "the copy was made to be read only"
    files = copy.image, copy.before
    buffers = bytearray(_WINDOW_BYTES), bytearray(_WINDOW_BYTES)
    start = end = 0
    for window in _windows_with_data(copy):
        length = min(_WINDOW_BYTES, copy.size_bytes - window)
        for file, buffer in zip(files, buffers, strict=True):
            file.read_into(window, memoryview(buffer)[:length])
        ours, theirs = (np.frombuffer(buffer, np.uint8)[:length] for buffer in buffers)
        differs = np.logical_or.reduceat(ours != theirs, np.arange(0, length, GRANULE_BYTES))
        for granule in np.flatnonzero(differs).tolist():
            at = window + granule * GRANULE_BYTES
            if at != end:
                if end > start:
                    yield start, end - start
                start = at
            end = min(at + GRANULE_BYTES, copy.size_bytes)
    if end > start:
        yield start, end - start


def _windows_with_data(copy: DiskCopy) -> Iterator[int]:
    """Offsets of the windows in which either file has data, ascending."""
    assert copy.before is not None
    descriptors = [os.open(file.path, os.O_RDONLY | os.O_CLOEXEC) for file in (copy.image, copy.before)]
    try:
        at = 0
        while at < copy.size_bytes:
            found = [_next_data(descriptor, at) for descriptor in descriptors]
            data = min((offset for offset in found if offset is not None), default=None)
            if data is None:
                return
            window = max(at, data - data % _WINDOW_BYTES)
            yield window
            at = window + _WINDOW_BYTES
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _next_data(descriptor: int, at: int) -> int | None:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:  # ENXIO: holes to the end
        return None


def encode_write_back(record: WriteBack) -> bytes:
    """Return the whole file."""
    return envelope.encode(WRITE_BACK_MAGIC, envelope.canonical_json(asdict(record)))


def decode_write_back(data: bytes, *, what: str) -> WriteBack:
    """Raises Corruption, WrongState (a newer format)."""
    value = envelope.decode_json(WRITE_BACK_MAGIC, data, what=what, keys=_KEYS)
    try:
        runs = tuple((int(offset), int(length)) for offset, length in value["runs"])
        if any(offset < 0 or length <= 0 for offset, length in runs):
            raise ValueError("a run without length")
        return WriteBack(
            check_id(value["copy"], "copy id"),
            VmId(check_id(value["vm_id"], "VM id")),
            str(value["array_address"]),
            str(value["volume_name"]),
            runs,
        )
    except (ValueError, TypeError, InvalidRequest) as error:
        raise Corruption(f"{what} makes no sense: {error}", subject=what) from error
