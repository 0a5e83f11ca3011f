"""The throw-away process that parses a hostile image: ``python -m backup_server.catalog.parser``.

It has standard input and output, and nothing else: the image is read by asking the parent, results
are frames.
Invariants: R1 the limits are in force before the first byte of the image arrives: CPU, memory, no new
process, and no new file handle, hence neither files nor network. R2 standard output carries frames only.
R3 it ends when its parent does.
Started by sandbox, which sends the limits as arguments and trusts nothing that comes back.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Iterator

import pytsk3

from arraylift.errors import InvalidRequest, NotFound, WrongState
from arraylift.sizes import KIB
from backup_server.catalog import frames
from backup_server.catalog.ext import ExtFileSystem, Source, TskImage, is_ext
from backup_server.catalog.frames import FrameKind, Operation

BLOCK_BYTES = 64 * KIB
BLOCKS_MAX = 512
"""32 MiB of cache: without it a walk asks for the same blocks a hundred times."""

REASONS: tuple[type[NotFound | InvalidRequest | WrongState], ...] = (NotFound, InvalidRequest, WrongState)
"""What a parser may say; its place here is the number in a FAILED frame."""

NOBODY = 65534
"""User and group of a parser that root starts."""

_SECTOR_BYTES = 512


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


class RemoteImage:
    """The image behind the wire, through a cache of blocks."""

    def __init__(self, wire: Wire, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._wire = wire
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes; fewer only at the image's end."""
        length = max(0, min(length, self.size_bytes - offset))
        parts = []
        at, end = offset, offset + length
        while at < end:
            number, skip = divmod(at, BLOCK_BYTES)
            part = self._block(number)[skip : skip + end - at]
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * BLOCK_BYTES
        self._wire.send(frames.encode_read(start, min(BLOCK_BYTES, self.size_bytes - start)))
        block = self._wire.receive(FrameKind.BYTES)
        self._blocks[number] = block
        if len(self._blocks) > BLOCKS_MAX:
            self._blocks.popitem(last=False)
        return block


def open_file_system(source: Source) -> ExtFileSystem:
    """Return the first readable file system: in the partitions in order, else on the whole disk."""
    refusal: WrongState | None = None
    for offset in (*_partitions(source), 0):
        if not is_ext(source, offset):
            continue
        try:
            return ExtFileSystem(source, offset)
        except WrongState as error:
            refusal = refusal or error
    raise refusal or WrongState(
        "the image holds no ext2, ext3 or ext4 file system, the only ones read so far"
    )


def _partitions(source: Source) -> Iterator[int]:
    """Yield the byte offsets of the partitions of a GPT or MBR, if there is one."""
    try:
        volume = pytsk3.Volume_Info(TskImage(source))
    except OSError:
        return
    sector_bytes = volume.info.block_size or _SECTOR_BYTES
    for part in volume:
        if (
            int(part.flags) & pytsk3.TSK_VS_PART_FLAG_ALLOC
            and not int(part.flags) & pytsk3.TSK_VS_PART_FLAG_META
        ):
            yield part.start * sector_bytes


def answer(source: Source, operation: Operation, path: bytes) -> Iterator[bytes]:
    """Yield the frames that answer one request, without the last."""
    file_system = open_file_system(source)
    if operation is Operation.LIST:
        for entry in file_system.list_directory(path):
            yield frames.encode_entry(entry)
    else:
        entry, pieces = file_system.open_file(path)
        yield frames.encode_entry(entry)
        yield from frames.encode_pieces(pieces)


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
    operation, image_bytes, path = frames.decode_ask(wire.receive(FrameKind.ASK))
    try:
        for data in answer(RemoteImage(wire, image_bytes), operation, path):
            wire.send(data)
    except REASONS as error:
        wire.send(frames.encode_failed(REASONS.index(type(error)), error.message))
    except BrokenPipeError:
        pass
    except MemoryError:
        wire.send(_failed("it needs more memory than a parser gets"))
    except Exception as error:  # noqa: BLE001 - whatever a library makes of a hostile image is an answer
        wire.send(_failed(f"{type(error).__name__}: {str(error).strip()}"))
    else:
        wire.send(frames.frame(FrameKind.DONE))
    os._exit(0)  # no destructors of a library that has seen a hostile image


def _failed(why: str) -> bytes:
    return frames.encode_failed(
        REASONS.index(WrongState), f"the file system in the image cannot be read: {why}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
