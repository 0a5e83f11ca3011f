"""Volumes to and from files: sparse, exact, and never a part taken for the whole."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.cli import volume_data
from arraylift.cli.connection import Connection
from arraylift.cli.local_files import NewFile, SourceImage
from arraylift.errors import AlreadyExists, Conflict, Corruption, InvalidRequest, NotFound
from arraylift.sizes import EXTENT_BYTES_MAX, GRANULE_BYTES, MIB
from arraylift.v1 import volume_pb2
from tests.unit.cli.conftest import Daemons

SIZE = 8 * MIB + 512  # ends within a granule


def ignore(_done: int) -> None:
    pass


def content(seed: int = 1) -> bytes:
    """Data with holes of every size."""
    source = random.Random(seed)
    made = bytearray(SIZE)
    for _ in range(12):
        start = source.randrange(SIZE)
        piece = source.randbytes(source.choice((1, 100, 5000, 200_000)))[: SIZE - start]
        made[start : start + len(piece)] = piece
    made[-1] = 7
    return bytes(made)


def sparse_file(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        file.truncate(len(data))
        for start in range(0, len(data), 4096):
            if any(data[start : start + 4096]):
                file.seek(start)
                file.write(data[start : start + 4096])
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sparse_file(tmp_path / "disk.img", content())


def test_an_import_brings_every_byte_and_no_hole(array: Connection, daemons: Daemons, disk: Path) -> None:
    seen: list[int] = []
    with SourceImage(disk) as source:
        answer = volume_data.import_volume(array, source, "v", seen.append)
    assert bytes(daemons.volumes.volumes["v"]) == content()
    extents = [request.extent for request in daemons.volumes.received if request.HasField("extent")]
    assert answer.bytes_written == sum(len(extent.data) for extent in extents) < SIZE // 2
    assert all(len(extent.data) <= EXTENT_BYTES_MAX for extent in extents)
    assert seen == sorted(seen)
    assert seen[-1] == SIZE


def test_zeros_that_take_space_in_the_file_do_not_travel(
    array: Connection, daemons: Daemons, tmp_path: Path
) -> None:
    (tmp_path / "zeros.img").write_bytes(bytes(3 * MIB))
    with SourceImage(tmp_path / "zeros.img") as source:
        assert volume_data.import_volume(array, source, "v", ignore).bytes_written == 0
    assert bytes(daemons.volumes.volumes["v"]) == bytes(3 * MIB)


def test_a_taken_name_comes_back_as_the_array_said_it(
    array: Connection, daemons: Daemons, disk: Path
) -> None:
    daemons.volumes.volumes["v"] = bytearray(512)
    with SourceImage(disk) as source, pytest.raises(AlreadyExists, match="volume v exists"):
        volume_data.import_volume(array, source, "v", ignore)


def test_a_file_that_shrinks_under_the_import_leaves_no_volume(
    array: Connection, daemons: Daemons, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(3).randbytes(4 * MIB))
    with SourceImage(path) as source:
        os.truncate(path, 2 * MIB + 100)
        source.data_ranges = lambda start, end: iter([(start, end)])  # type: ignore[method-assign]  # as before it shrank
        with pytest.raises(Conflict, match="became shorter"):
            volume_data.import_volume(array, source, "v", ignore)
    assert "v" not in daemons.volumes.volumes


def test_an_export_is_exact_and_sparse(array: Connection, daemons: Daemons, tmp_path: Path) -> None:
    daemons.volumes.volumes["v"] = bytearray(content())
    out = tmp_path / "out.img"
    with NewFile(out, overwrite=False) as destination:
        request = volume_pb2.ReadExtentsRequest(volume_name="v")
        volume_data.export(array, request, SIZE, destination, ignore)
    assert out.read_bytes() == content()
    assert out.stat().st_blocks * 512 < SIZE // 2


def test_an_export_that_is_cut_leaves_nothing(array: Connection, daemons: Daemons, tmp_path: Path) -> None:
    daemons.volumes.volumes["v"] = bytearray(content())
    daemons.volumes.cut_reads_at = 5 * MIB
    request = volume_pb2.ReadExtentsRequest(volume_name="v")
    with (
        pytest.raises(Corruption, match="of 8,389,120 bytes"),
        NewFile(tmp_path / "o", overwrite=False) as out,
    ):
        volume_data.export(array, request, SIZE, out, ignore)
    assert list(tmp_path.iterdir()) == []


def test_equal_means_nothing_to_write(array: Connection, daemons: Daemons, disk: Path) -> None:
    daemons.volumes.volumes["v"] = bytearray(content())
    volume = volume_data.get_volume(array, "v")
    with SourceImage(disk) as source:
        assert volume_data.differences(array, volume, source, ignore).ranges == ()


@pytest.mark.parametrize("seed", range(4))
def test_only_granules_that_differ_are_written(
    array: Connection, daemons: Daemons, tmp_path: Path, seed: int
) -> None:
    old, new = content(), content(seed + 10)
    daemons.volumes.volumes["v"] = bytearray(old)
    expected = {
        start // GRANULE_BYTES
        for start in range(0, SIZE, GRANULE_BYTES)
        if old[start : start + GRANULE_BYTES] != new[start : start + GRANULE_BYTES]
    }
    volume = volume_data.get_volume(array, "v")
    with SourceImage(sparse_file(tmp_path / "new.img", new)) as source:
        difference = volume_data.differences(array, volume, source, ignore)
        volume_data.write_differences(array, "v", source, difference, ignore)
    touched = {
        offset // GRANULE_BYTES
        for start, end in difference.ranges
        for offset in range(start, end, GRANULE_BYTES)
    }
    assert touched == expected
    assert bytes(daemons.volumes.volumes["v"]) == new
    written = sum(len(request.extent.data) + request.zero_bytes for request in daemons.volumes.received)
    assert written == difference.total_bytes
    assert any(request.zero_bytes for request in daemons.volumes.received), "what became zero is trimmed"


def test_one_changed_bit_is_seen(array: Connection, daemons: Daemons, disk: Path) -> None:
    changed = bytearray(content())
    changed[-1] ^= 1
    daemons.volumes.volumes["v"] = changed
    volume = volume_data.get_volume(array, "v")
    with SourceImage(disk) as source:
        assert volume_data.differences(array, volume, source, ignore).ranges == ((8 * MIB, SIZE),)


def test_a_file_of_another_size_is_refused(array: Connection, daemons: Daemons, disk: Path) -> None:
    daemons.volumes.volumes["v"] = bytearray(512)
    volume = volume_data.get_volume(array, "v")
    with SourceImage(disk) as source, pytest.raises(InvalidRequest, match="8,389,120 bytes, volume v 512"):
        volume_data.differences(array, volume, source, ignore)


def test_a_missing_volume_is_named(array: Connection, daemons: Daemons) -> None:
    with pytest.raises(NotFound, match="no volume nobody"):
        volume_data.get_volume(array, "nobody")


@given(st.lists(st.sampled_from([b"\0", b"x"]), max_size=12), st.integers(0, GRANULE_BYTES - 1))
def test_nonzero_runs_cover_what_is_set_and_nothing_else(granules: list[bytes], tail: int) -> None:
    data = b"".join(granule * GRANULE_BYTES for granule in granules) + b"x" * tail
    rebuilt = bytearray(len(data))
    runs = list(volume_data.nonzero_runs(data))
    for start, end in runs:
        rebuilt[start:end] = data[start:end]
    assert bytes(rebuilt) == data
    assert sum(end - start for start, end in runs) == granules.count(b"x") * GRANULE_BYTES + tail
    assert all(earlier[1] < later[0] for earlier, later in pairwise(runs))
