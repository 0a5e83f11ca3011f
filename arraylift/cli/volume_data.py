"""Volumes' bytes, to and from files: import, export, compare, write what differs.

Invariants:
  V1 a stream that is cut anywhere raises; what was seen of it is never taken for the whole.
  V2 what a daemon answers is checked against the bounds of what was asked.
Memory: one message on the way, and for a comparison one byte a granule.
Callers: main thread; requests are made on a thread of gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arraylift.cli.connection import Connection
from arraylift.cli.disk_files import DiskFile, NewDisk
from arraylift.errors import Corruption, InvalidRequest, NotFound
from arraylift.sizes import EXTENT_BYTES_MAX, GRANULE_BYTES
from arraylift.v1 import volume_pb2

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes at ``offset``; ``data`` is None where they are zero."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Granules of a file that differ from a volume, as ascending (offset, end) ranges."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def total_bytes(self) -> int:
        return sum(end - offset for offset, end in self.ranges)


def get_volume(array: Connection, name: str) -> volume_pb2.Volume:
    """Return the volume of that name. Raises NotFound."""
    found: Sequence[volume_pb2.Volume] = array.call(
        array.volumes.ListVolumes, volume_pb2.ListVolumesRequest(name=name)
    ).volumes
    if not found:
        raise NotFound(
            f"there is no volume {name} on {array.label}",
            subject=f"volume {name}",
            next_step="see `arraylift array volumes ls`",
        )
    return found[0]


def import_volume(
    array: Connection, source: DiskFile, name: str, on_bytes: OnBytes
) -> volume_pb2.ImportVolumeResponse:
    """Make a volume of a file's content; holes and zero granules do not travel."""

    def requests() -> Iterator[volume_pb2.ImportVolumeRequest]:
        header = volume_pb2.ImportHeader(name=name, size_bytes=source.size_bytes)
        yield volume_pb2.ImportVolumeRequest(header=header)
        extent_count = bytes_written = 0
        for extent in data_extents(source, 0, source.size_bytes, on_bytes):
            yield volume_pb2.ImportVolumeRequest(extent=extent)
            extent_count += 1
            bytes_written += len(extent.data)
        end = volume_pb2.ImportEnd(extent_count=extent_count, bytes_written=bytes_written)
        yield volume_pb2.ImportVolumeRequest(end=end)

    answer: volume_pb2.ImportVolumeResponse = array.upload(array.volumes.ImportVolume, requests())
    return answer


def read_pieces(
    array: Connection, request: volume_pb2.ReadExtentsRequest, size_bytes: int
) -> Iterator[Piece]:
    """Yield a volume's or snapshot's bytes from 0 to its end, holes included (V1, V2)."""
    request.with_holes = True
    cursor = 0
    with array.stream(array.volumes.ReadExtents, request) as responses:
        for response in responses:
            data = response.extent.data
            length = len(data) or response.zero_bytes
            if not length:
                continue
            offset = response.extent.offset
            if offset != cursor or length > size_bytes - offset or (data and response.zero_bytes):
                raise Corruption(
                    f"{array.label} answered bytes {offset:,}+{length:,} where {cursor:,} is next"
                )
            cursor += length
            yield Piece(offset, length, data or None)
    if cursor != size_bytes:
        raise Corruption(f"{array.label} answered {cursor:,} of {size_bytes:,} bytes")


def export(
    array: Connection,
    request: volume_pb2.ReadExtentsRequest,
    size_bytes: int,
    destination: NewDisk,
    on_bytes: OnBytes,
) -> None:
    """Write a volume or snapshot into a sparse file and commit it."""
    write_whole(read_pieces(array, request, size_bytes), size_bytes, destination, on_bytes)


def write_whole(pieces: Iterable[Piece], size_bytes: int, destination: NewDisk, on_bytes: OnBytes) -> None:
    """Write all bytes of a disk, which come in order, into a sparse file and commit it."""
    for piece in pieces:
        if piece.data is not None:
            for start, end in nonzero_runs(piece.data):
                destination.write(piece.offset + start, piece.data[start:end])
        on_bytes(piece.offset + piece.length)
    destination.commit(size_bytes)


def differences(
    array: Connection, volume: volume_pb2.Volume, source: DiskFile, on_bytes: OnBytes
) -> Difference:
    """Compare every byte of a volume with a file of the same size. Raises InvalidRequest (size)."""
    if source.size_bytes != volume.size_bytes:
        raise InvalidRequest(
            f"{source.path} has {source.size_bytes:,} bytes, volume {volume.name} {volume.size_bytes:,}",
            subject=f"volume {volume.name}",
            next_step="give a file of the volume's size",
        )
    request = volume_pb2.ReadExtentsRequest(volume_name=volume.name)
    return differing(read_pieces(array, request, volume.size_bytes), source, on_bytes)


def differing(pieces: Iterable[Piece], source: DiskFile, on_bytes: OnBytes) -> Difference:
    """Compare all bytes of a disk, which come in order, with a file of the same size."""
    differs = np.zeros(-(-source.size_bytes // GRANULE_BYTES), dtype=np.bool_)
    for piece in pieces:
        if piece.data is None:
            _compare_hole(source, piece, differs)
        else:
            _compare_data(source, piece, differs)
        on_bytes(piece.offset + piece.length)
    return Difference(tuple(_runs(differs, source.size_bytes)))


def write_differences(
    array: Connection, name: str, source: DiskFile, difference: Difference, on_bytes: OnBytes
) -> volume_pb2.WriteExtentsResponse:
    """Overwrite those ranges of a volume with the file's bytes; zero granules are trimmed."""

    def requests() -> Iterator[volume_pb2.WriteExtentsRequest]:
        yield volume_pb2.WriteExtentsRequest(volume_name=name)
        done = 0
        for start, end in difference.ranges:
            for offset in range(start, end, EXTENT_BYTES_MAX):
                data = source.read(offset, min(EXTENT_BYTES_MAX, end - offset))
                yield from _writes(offset, data)
                done += len(data)
                on_bytes(done)

    answer: volume_pb2.WriteExtentsResponse = array.upload(array.volumes.WriteExtents, requests())
    return answer


def nonzero_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the granules in ``data`` that are not all zero, neighbours joined."""
    flags = np.fromiter(
        (any_set(data[start : start + GRANULE_BYTES]) for start in range(0, len(data), GRANULE_BYTES)),
        dtype=np.bool_,
    )
    return _runs(flags, len(data))


def any_set(data: bytes) -> bool:
    """Return whether a byte of ``data`` is not zero."""
    return data != bytes(len(data))


def data_extents(source: DiskFile, start: int, end: int, on_bytes: OnBytes) -> Iterator[volume_pb2.Extent]:
    """Data of a file in pieces that lie in whole EXTENT_BYTES_MAX windows."""
    for begin, stop in source.data_ranges(start, end):
        offset = begin
        while offset < stop:
            length = min(EXTENT_BYTES_MAX - offset % EXTENT_BYTES_MAX, stop - offset)
            data = source.read(offset, length)
            for run_start, run_end in nonzero_runs(data):
                yield volume_pb2.Extent(offset=offset + run_start, data=data[run_start:run_end])
            offset += length
            on_bytes(offset)
    on_bytes(end)


def _writes(offset: int, data: bytes) -> Iterator[volume_pb2.WriteExtentsRequest]:
    cursor = 0
    for start, end in [*nonzero_runs(data), (len(data), len(data))]:
        if start > cursor:
            gap = volume_pb2.Extent(offset=offset + cursor)
            yield volume_pb2.WriteExtentsRequest(extent=gap, zero_bytes=start - cursor)
        if end > start:
            extent = volume_pb2.Extent(offset=offset + start, data=data[start:end])
            yield volume_pb2.WriteExtentsRequest(extent=extent)
        cursor = end


def _compare_hole(source: DiskFile, piece: Piece, differs: npt.NDArray[np.bool_]) -> None:
    for begin, end in source.data_ranges(piece.offset, piece.offset + piece.length):
        for offset in range(begin, end, EXTENT_BYTES_MAX):
            data = source.read(offset, min(EXTENT_BYTES_MAX, end - offset))
            _mark(offset, data, bytes(len(data)), differs)


def _compare_data(source: DiskFile, piece: Piece, differs: npt.NDArray[np.bool_]) -> None:
    assert piece.data is not None
    _mark(piece.offset, piece.data, source.read(piece.offset, piece.length), differs)


def _mark(offset: int, one: bytes, other: bytes, differs: npt.NDArray[np.bool_]) -> None:
    """Mark the granules in which two byte strings at ``offset`` differ."""
    if one == other:
        return
    start = 0
    while start < len(one):
        end = start + GRANULE_BYTES - (offset + start) % GRANULE_BYTES
        if one[start:end] != other[start:end]:
            differs[(offset + start) // GRANULE_BYTES] = True
        start = end


def _runs(flags: npt.NDArray[np.bool_], size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of each run of set granules; the last may be short."""
    padded = np.concatenate(([False], flags, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    for first, last in edges:
        yield int(first) * GRANULE_BYTES, min(int(last) * GRANULE_BYTES, size_bytes)
