"""The throw-away process that parses hostile disks: ``python -m backup_server.catalog.parser``.

It has standard input and output, and nothing else: disks are read by asking the parent, results
are frames.
Invariants: R1 the limits are in force before the first byte of a disk arrives: CPU, memory, no new
process, and no new file handle, hence neither files nor network. R2 standard output carries frames only.
R3 it ends when its parent does.
Started by sandbox, which sends the limits as arguments and trusts nothing that comes back.
"""

from __future__ import annotations

import contextlib
import encodings.ascii
import encodings.cp437
import encodings.utf_16_le
import gc
import os
import resource
import sys
from collections import OrderedDict
from itertools import islice

from arraylift.errors import InvalidRequest, NotFound, WrongState
from arraylift.sizes import KIB
from backup_server.catalog import frames
from backup_server.catalog.frames import Ask, FrameKind, Operation
from backup_server.catalog.parse import tree, volumes
from backup_server.catalog.parse.space import DiskSpace

BLOCK_BYTES = 64 * KIB
BLOCKS_MAX = 1024
"""64 MiB of cache: without it a walk asks for the same blocks a hundred times."""

AHEAD_BLOCKS_MAX = 16
"""Blocks that one read fetches at most, of what is read in sequence: 1 MiB."""

REASONS: tuple[type[NotFound | InvalidRequest | WrongState], ...] = (NotFound, InvalidRequest, WrongState)
"""What a parser may say; its place here is the number in a FAILED frame."""

NOBODY = 65534
"""User and group of a parser that root starts."""

CODECS = (encodings.ascii, encodings.cp437, encodings.utf_16_le)
"""What is imported at its first use, which is after no file can be opened any more."""


class Wire:
    """Frames over two file descriptors; the end of the input ends the process (R3)."""

    def __init__(self, input_handle: int, output_handle: int) -> None:
        self._input, self._output = input_handle, output_handle

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._output, view) :]

    def receive(self, kind: FrameKind) -> bytes:
        got, length = frames.header(self._exactly(frames.HEADER.size))
        if got is not kind:
            os._exit(3)
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = os.read(self._input, length - len(data))
            if not part:
                os._exit(0)
            data += part
        return bytes(data)


class BlockCache:
    """The last blocks of all disks, by disk and number; the first in is the first out."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, key: tuple[int, int]) -> bytes | None:
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: tuple[int, int], block: bytes) -> None:
        self._blocks[key] = block
        if len(self._blocks) > BLOCKS_MAX:
            self._blocks.popitem(last=False)

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._blocks


class RemoteDisk:
    """One disk behind the wire, through the cache; what is read in sequence is fetched ahead."""

    def __init__(self, wire: Wire, number: int, size_bytes: int, cache: BlockCache) -> None:
        self.size_bytes, self.number = size_bytes, number
        self._wire, self._cache = wire, cache
        self._expected, self._ahead = -1, 1

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; fewer only at the disk's end."""
        length = max(0, min(length, self.size_bytes - offset))
        number, skip = divmod(offset, BLOCK_BYTES)
        if skip + length <= BLOCK_BYTES and length:
            return self._block(number, 1)[skip : skip + length]
        parts = []
        at, end = offset, offset + length
        while at < end:
            number, skip = divmod(at, BLOCK_BYTES)
            part = self._block(number, -(-end // BLOCK_BYTES) - number)[skip : skip + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _block(self, number: int, wanted: int) -> bytes:
        block = self._cache.get((self.number, number))
        if block is not None:
            return block
        self._ahead = min(self._ahead * 2, AHEAD_BLOCKS_MAX) if number == self._expected else 1
        most = min(max(wanted, self._ahead), AHEAD_BLOCKS_MAX, -(-self.size_bytes // BLOCK_BYTES) - number)
        count = 1
        while count < most and (self.number, number + count) not in self._cache:
            count += 1
        self._expected = number + count
        return self._fetch(number, count)

    def _fetch(self, number: int, count: int) -> bytes:
        start = number * BLOCK_BYTES
        length = min(count * BLOCK_BYTES, self.size_bytes - start)
        self._wire.send(frames.encode_read(self.number, start, length))
        content = self._wire.receive(FrameKind.BYTES)
        for index in reversed(range(count)):
            block = content[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            self._cache.put((self.number, number + index), block)
        return content[:BLOCK_BYTES]


def answer(wire: Wire, ask: Ask) -> None:
    """Send the frames that answer a request, without the last."""
    cache = BlockCache()
    disks = [
        (name, DiskSpace(RemoteDisk(wire, number, size, cache)))
        for number, (name, size) in enumerate(ask.disks)
    ]
    if ask.operation is Operation.SURVEY:
        for volume, _ in islice(volumes.survey(disks), frames.VOLUMES_MAX):
            wire.send(frames.encode_volume(volume))
        return
    volume, system = volumes.open_volume(disks, ask.volume)
    wire.send(frames.encode_volume(volume))
    if ask.operation is Operation.WALK:
        tree.walk(system, ask.path, wire.send)
    elif ask.operation is Operation.LIST:
        tree.list_directory(system, ask.path, wire.send)
    else:
        tree.find(system, ask.path, wire.send)


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Give up, for good, what a parser does not need (R1)."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for nothing in (
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_CORE,
        resource.RLIMIT_NPROC,
        resource.RLIMIT_NOFILE,
    ):
        resource.setrlimit(nothing, (0, 0))
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a user namespace may not know this user: the limits stand
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)


def main(arguments: list[str]) -> None:
    """Serve one request: CPU seconds and bytes of memory are the arguments."""
    output = os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 1)  # R2: a library that prints, prints nowhere
    wire = Wire(0, output)
    limit(int(arguments[0]), int(arguments[1]))
    gc.disable()  # nothing here makes cycles, and a walk makes millions of objects
    ask = frames.decode_ask(wire.receive(FrameKind.ASK))
    try:
        answer(wire, ask)
    except REASONS as error:
        wire.send(frames.encode_failed(REASONS.index(type(error)), error.message))
    except BrokenPipeError:
        pass
    except MemoryError:
        wire.send(_failed("it needs more memory than a parser gets"))
    except Exception as error:  # noqa: BLE001 - whatever comes of a hostile image is an answer
        wire.send(_failed(f"{type(error).__name__}: {str(error).strip()}"))
    else:
        wire.send(frames.frame(FrameKind.DONE))
    os._exit(0)


def _failed(why: str) -> bytes:
    return frames.encode_failed(
        REASONS.index(WrongState), f"the file system in the image cannot be read: {why}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
