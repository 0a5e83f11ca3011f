"""The target as a file service, over gRPC and TLS: names, files, changes, compositions, differences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from arraylift.errors import (
    AlreadyExists,
    ArrayliftError,
    InvalidRequest,
    NotFound,
    NotPermitted,
)
from arraylift.ids import random_id
from arraylift.rpc.channel import call, connect, stream
from arraylift.rpc.status import from_rpc_error
from arraylift.sizes import IMAGE_BYTES_MAX, KIB, MIB, TIB
from arraylift.v1 import common_pb2, image_pb2, image_pb2_grpc
from tests.wire.stage import PEER, House
from tests.wire.test_exchange_fencing import Target

NOISE = np.random.default_rng(3).bytes(3 * MIB)
FIXED = common_pb2.Segmentation(
    policy=common_pb2.SEGMENTATION_POLICY_FIXED,
    segment_bytes_min=4 * KIB,
    segment_bytes_average=16 * KIB,
    segment_bytes_max=64 * KIB,
    span_bytes=MIB,
)


@pytest.fixture(scope="module")
def target(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    made = Target(house, Path(tmp_path_factory.mktemp("target")))
    yield made
    made.close()


def header(name: str, size: int, **fields: Any) -> image_pb2.FileHeader:
    return image_pb2.FileHeader(
        transfer_id=fields.pop("transfer_id", random_id()), name=name, size_bytes=size, **fields
    )


def pieces(plain: bytes, at: int = 0) -> list[image_pb2.FilePiece]:
    return [
        image_pb2.FilePiece(offset=at + start, data=plain[start : start + MIB])
        for start in range(0, len(plain), MIB)
    ]


def requests(kind: Any, head: Any, parts: list[image_pb2.FilePiece]) -> Iterator[Any]:
    """A whole stream of WriteFile or Synthesize."""
    yield kind(header=head)
    for part in parts:
        yield kind(piece=part)
    covered = sum(len(part.data) + part.zero_bytes for part in parts)
    yield kind(end=image_pb2.FileEnd(extent_count=len(parts), bytes_written=covered))


def write(target: Target, head: image_pb2.FileHeader, parts: list[image_pb2.FilePiece]) -> image_pb2.Image:
    sent = requests(image_pb2.WriteFileRequest, head, parts)
    image: image_pb2.Image = call(target.images.WriteFile, sent, peer=PEER).image
    return image


def synthesize(
    target: Target, head: image_pb2.SynthesizeHeader, parts: list[image_pb2.FilePiece]
) -> image_pb2.Image:
    sent = requests(image_pb2.SynthesizeRequest, head, parts)
    image: image_pb2.Image = call(target.images.Synthesize, sent, peer=PEER).image
    return image


def compose(
    target: Target, head: image_pb2.FileHeader, extents: list[image_pb2.ComposeExtent]
) -> list[image_pb2.ComposeImageResponse]:
    sent = iter(
        [
            image_pb2.ComposeImageRequest(header=head),
            image_pb2.ComposeImageRequest(extents=image_pb2.ComposeExtents(extents=extents)),
            image_pb2.ComposeImageRequest(
                end=image_pb2.FileEnd(
                    extent_count=len(extents), bytes_written=sum(one.length for one in extents)
                )
            ),
        ]
    )
    return list(stream(target.images.ComposeImage, sent, peer=PEER, timeout_seconds=60))


def diff(target: Target, one: str, other: str) -> list[tuple[int, int]]:
    request = image_pb2.DiffImagesRequest(from_image_id=one, to_image_id=other)
    found: list[tuple[int, int]] = []
    for answer in stream(target.images.DiffImages, request, peer=PEER, timeout_seconds=60):
        offsets, lengths = (
            np.frombuffer(packed, "<u8").tolist() for packed in (answer.offsets, answer.lengths)
        )
        found += zip(offsets, lengths, strict=True)
    return found


def names(target: Target, folder: str = "", **fields: Any) -> list[image_pb2.Name]:
    request = image_pb2.ListNamesRequest(folder=folder, **fields)
    return list(call(target.images.ListNames, request, peer=PEER).names)


def refused(error_class: type[ArrayliftError], method: Any, sent: list[Any]) -> ArrayliftError:
    with pytest.raises(error_class) as caught:
        call(method, iter(sent), peer=PEER)
    return caught.value


# -- writing ------------------------------------------------------------------------------------


def test_a_file_is_written_read_and_listed(target: Target) -> None:
    plain = NOISE[: 2 * MIB + 100] + bytes(MIB) + NOISE[:9]
    image = write(target, header("files/some/data", len(plain)), pieces(plain))
    assert (image.name, image.image_bytes, image.tenant) == ("files/some/data", len(plain), "default")
    assert not image.base_image_id
    assert target.read(image.image_id) == plain
    (folder,) = [name for name in names(target) if name.name == "files"]
    assert folder.is_folder
    (some,) = names(target, "files")
    assert (some.name, some.is_folder) == ("some", True)
    (data,) = names(target, "files/some")
    assert (data.name, data.is_folder, data.image_id) == ("data", False, image.image_id)
    assert (data.size_bytes, data.version_count, data.committed_at_ns) == (
        len(plain),
        1,
        image.committed_at_ns,
    )


def test_the_segmentation_that_was_asked_for_is_recorded(target: Target) -> None:
    image = write(target, header("fixed", MIB, segmentation=FIXED), pieces(NOISE[:MIB]))
    assert image.segmentation == FIXED
    got = call(target.images.GetImage, image_pb2.GetImageRequest(image_id=image.image_id), peer=PEER)
    assert got.image.segmentation == FIXED
    assert image.figures.segments_offered == 64


def test_a_sparse_file_of_any_size_is_read_as_one_hole(target: Target) -> None:
    image = write(target, header("sparse", TIB), [image_pb2.FilePiece(offset=TIB - 5, data=b"hello")])
    request = image_pb2.ReadRangeRequest(image_id=image.image_id)
    found = list(target.images.ReadRange(request, timeout=30))
    assert [(piece.offset, piece.zero_bytes, len(piece.data)) for piece in found] == [
        (0, TIB - MIB, 0),
        (TIB - MIB, 0, MIB),
    ]
    assert found[1].data.endswith(b"hello")


def test_a_retry_is_answered_with_the_same_image(target: Target) -> None:
    head = header("again", 5)
    first = write(target, head, pieces(b"hello"))
    assert write(target, head, pieces(b"other")) == first
    assert target.read(first.image_id) == b"hello"
    other = image_pb2.FileHeader()
    other.CopyFrom(head)
    other.name = "something-else"
    with pytest.raises(AlreadyExists):
        write(target, other, pieces(b"hello"))


def test_a_stream_without_its_end_leaves_nothing(target: Target) -> None:
    head, before = header("cut", 2 * MIB), target.image_count()
    opening = image_pb2.WriteFileRequest(header=head)
    part = image_pb2.WriteFileRequest(piece=pieces(NOISE[:MIB])[0])
    end = image_pb2.WriteFileRequest(end=image_pb2.FileEnd(extent_count=1, bytes_written=MIB))
    wrong = image_pb2.WriteFileRequest(end=image_pb2.FileEnd(extent_count=2, bytes_written=MIB))
    late = image_pb2.WriteFileRequest(piece=image_pb2.FilePiece(offset=0, data=b"x"))
    method = target.images.WriteFile
    for sent in (
        [],
        [part],
        [opening],
        [opening, part],
        [opening, part, wrong],
        [opening, opening, end],
        [opening, part, late, end],
        [opening, image_pb2.WriteFileRequest(), end],
        [opening, image_pb2.WriteFileRequest(piece=image_pb2.FilePiece(data=b"x", zero_bytes=1)), end],
        [opening, image_pb2.WriteFileRequest(piece=image_pb2.FilePiece(data=bytes(MIB + 1))), end],
    ):
        refused(InvalidRequest, method, sent)
        assert target.image_count() == before
    image = call(method, iter([opening, part, end]), peer=PEER).image
    assert target.read(image.image_id) == NOISE[:MIB] + bytes(MIB)


def test_a_caller_who_leaves_leaves_nothing(target: Target) -> None:
    before, sent = target.image_count(), []

    def endless() -> Iterator[image_pb2.WriteFileRequest]:
        yield image_pb2.WriteFileRequest(header=header("left", 3 * MIB))
        yield image_pb2.WriteFileRequest(piece=pieces(NOISE[:MIB])[0])
        sent.append(True)
        raise RuntimeError("the caller dies")

    with pytest.raises(grpc.RpcError) as caught:
        target.images.WriteFile(endless(), timeout=30)
    assert sent
    assert isinstance(from_rpc_error(caught.value, PEER), ArrayliftError)
    assert target.image_count() == before


@pytest.mark.parametrize("name", ["", "../x", "a/../b", "a//b", "/a", "a\0", "x" * 256])
def test_odd_names_are_refused(target: Target, name: str) -> None:
    refused(InvalidRequest, target.images.WriteFile, [image_pb2.WriteFileRequest(header=header(name, 5))])


@pytest.mark.parametrize("size", [0, IMAGE_BYTES_MAX + 1, (1 << 64) - 1])
def test_sizes_have_limits(target: Target, size: int) -> None:
    refused(InvalidRequest, target.images.WriteFile, [image_pb2.WriteFileRequest(header=header("s", size))])


def test_segmentations_have_limits(target: Target) -> None:
    for how in (
        common_pb2.Segmentation(),
        common_pb2.Segmentation(
            policy=9,  # type: ignore[arg-type]
            span_bytes=MIB,
        ),
    ):
        head = header("how", 5, segmentation=how)
        refused(InvalidRequest, target.images.WriteFile, [image_pb2.WriteFileRequest(header=head)])


# -- base and changes ---------------------------------------------------------------------------


def test_changes_over_a_base_make_a_full_image(target: Target) -> None:
    plain = NOISE[: 3 * MIB]
    base = write(target, header("vm/disk", len(plain)), pieces(plain))
    state = common_pb2.SourceState(pool_id="a" * 32, lineage_id="b" * 32, birth=4)
    head = image_pb2.SynthesizeHeader(
        file=header("vm/disk", 0), base_image_id=base.image_id, source_state=state
    )
    changes = [
        image_pb2.FilePiece(offset=10, data=b"changed"),
        image_pb2.FilePiece(offset=MIB, zero_bytes=MIB),
    ]
    image = synthesize(target, head, changes)
    expected = plain[:10] + b"changed" + plain[17:MIB] + bytes(MIB) + plain[2 * MIB :]
    assert target.read(image.image_id) == expected
    assert (image.base_image_id, image.source_state) == (base.image_id, state)
    assert (image.figures.spans_read, image.figures.spans_hole, image.figures.spans_total) == (1, 1, 3)
    (disk,) = names(target, "vm")
    assert (disk.name, disk.version_count, disk.image_id) == ("disk", 2, image.image_id)
    assert diff(target, base.image_id, base.image_id) == []
    (first, second) = diff(target, base.image_id, image.image_id)
    assert first[0] <= 10
    assert 17 <= sum(first) <= 3 * 64 * KIB
    assert second == (MIB, MIB)


def test_a_base_can_be_cut_and_extended(target: Target) -> None:
    base = write(target, header("base", MIB + 100), pieces(NOISE[: MIB + 100]))
    for size in (5, MIB, MIB + 99, 2 * MIB, 3 * MIB + 1):
        head = image_pb2.SynthesizeHeader(file=header("resized", size), base_image_id=base.image_id)
        image = synthesize(target, head, [])
        assert target.read(image.image_id) == NOISE[: MIB + 100][:size].ljust(size, b"\0")
        small, large = sorted((size, MIB + 100))
        ranges = diff(target, base.image_id, image.image_id)
        assert sum(ranges[-1]) == large
        assert ranges[-1][0] <= small


def test_an_unknown_base_is_not_found(target: Target) -> None:
    head = image_pb2.SynthesizeHeader(file=header("x", 0), base_image_id="9" * 32)
    refused(NotFound, target.images.Synthesize, [image_pb2.SynthesizeRequest(header=head)])


# -- composing ----------------------------------------------------------------------------------


def test_an_image_is_composed_of_extents(target: Target) -> None:
    one = write(target, header("one", 3 * MIB), pieces(NOISE))
    two = write(target, header("two", MIB, segmentation=FIXED), pieces(NOISE[5 : MIB + 5]))
    extents = [
        image_pb2.ComposeExtent(offset=0, length=2 * MIB, image_id=one.image_id, image_offset=MIB),
        image_pb2.ComposeExtent(offset=2 * MIB, length=7, literal=b"literal"),
        image_pb2.ComposeExtent(offset=2 * MIB + 7, length=20),
        image_pb2.ComposeExtent(offset=3 * MIB, length=MIB, image_id=two.image_id),
    ]
    *_, last = compose(target, header("composed", 5 * MIB), extents)
    expected = NOISE[MIB:] + b"literal" + bytes(MIB - 7) + NOISE[5 : MIB + 5] + bytes(MIB)
    assert target.read(last.image.image_id) == expected
    assert (last.spans_done, last.spans_total) == (5, 5)
    assert last.image.figures.bytes_read == MIB + 7, "whole spans that are cut alike are not read"


def test_compositions_have_rules(target: Target) -> None:
    one = write(target, header("rules", 10), pieces(b"0123456789"))
    stranger = write(target, header("theirs", 5, tenant="others"), pieces(b"hello"))
    extent = image_pb2.ComposeExtent
    for error, bad in (
        (NotFound, extent(offset=0, length=1, image_id="9" * 32)),
        (NotFound, extent(offset=0, length=1, image_id=stranger.image_id)),
        (InvalidRequest, extent(offset=0, length=1, image_id="x")),
        (InvalidRequest, extent(offset=0, length=11, image_id=one.image_id)),
        (InvalidRequest, extent(offset=0, length=5, image_id=one.image_id, image_offset=(1 << 64) - 1)),
        (InvalidRequest, extent(offset=0, length=1, image_id=one.image_id, literal=b"x")),
        (InvalidRequest, extent(offset=0, length=2, literal=b"x")),
        (InvalidRequest, extent(offset=99, length=2)),
        (InvalidRequest, extent(offset=(1 << 64) - 1, length=1)),
        (InvalidRequest, extent(offset=0, length=0)),
    ):
        with pytest.raises(error):
            compose(target, header("bad", 100), [bad])
    many = [extent(offset=place, length=1) for place in range(4097)]
    with pytest.raises(InvalidRequest, match="4096"):
        compose(target, header("bad", 5000), many)


# -- names and differences ----------------------------------------------------------------------


def test_a_backup_is_a_folder_of_its_vm(target: Target) -> None:
    disks = [write(target, header(f"web/{name}", 5), pieces(b"disk0")) for name in ("d0", "d1")]
    manifest = image_pb2.BackupManifest(
        backup_id="c" * 32,
        vm_id="d" * 32,
        vm_name="100% web",
        snapshot_at_ns=5,
        images=[image_pb2.BackupImage(disk_name="root", image_id=disks[0].image_id)],
    )
    call(target.images.PublishBackup, image_pb2.PublishBackupRequest(manifest=manifest), peer=PEER)
    (vm,) = [name for name in names(target) if name.name.startswith("100")]
    assert (vm.name, vm.is_folder) == ("100%25 web", True)
    (backup,) = names(target, vm.name)
    assert (backup.name, backup.is_folder) == ("c" * 32, True)
    (disk,) = names(target, f"{vm.name}/{backup.name}")
    assert (disk.name, disk.image_id, disk.size_bytes) == ("root", disks[0].image_id, 5)
    assert [name.name for name in names(target, "web")] == ["d1"], "what a backup names has its place there"


def test_names_are_listed_by_page_and_tenant(target: Target) -> None:
    for number in range(5):
        write(target, header(f"paged/{number}", 1, tenant="paging"), pieces(b"x"))
    found: list[str] = []
    token = ""
    while True:
        request = image_pb2.ListNamesRequest(tenant="paging", folder="paged", page_size=2, page_token=token)
        answer = call(target.images.ListNames, request, peer=PEER)
        found += [name.name for name in answer.names]
        token = answer.next_page_token
        if not token:
            break
    assert found == ["0", "1", "2", "3", "4"]
    assert [name.name for name in names(target, tenant="paging")] == ["paged"]
    assert "paged" not in [name.name for name in names(target)]
    for error, request in (
        (NotFound, image_pb2.ListNamesRequest(tenant="nobody")),
        (NotFound, image_pb2.ListNamesRequest(folder="nowhere")),
        (InvalidRequest, image_pb2.ListNamesRequest(folder="a/../b")),
        (InvalidRequest, image_pb2.ListNamesRequest(page_size=10_001)),
        (InvalidRequest, image_pb2.ListNamesRequest(page_token="x")),
    ):
        with pytest.raises(error):
            call(target.images.ListNames, request, peer=PEER)


def test_images_of_two_tenants_are_not_compared(target: Target) -> None:
    mine = write(target, header("mine", 5), pieces(b"hello"))
    theirs = write(target, header("theirs", 5, tenant="third"), pieces(b"hello"))
    for error, pair in (
        (InvalidRequest, (mine.image_id, theirs.image_id)),
        (NotFound, (mine.image_id, "9" * 32)),
        (InvalidRequest, ("x", mine.image_id)),
    ):
        with pytest.raises(error):
            diff(target, *pair)


def test_many_ranges_come_in_several_messages(target: Target) -> None:
    """Every second segment of 10,000 differs, so that no two ranges touch."""
    size, step = 80 * MIB, 8 * KIB
    how = common_pb2.Segmentation()
    how.CopyFrom(FIXED)
    how.segment_bytes_average = 4 * KIB
    block = bytes(range(1, 256)) * 20
    one = write(
        target, header("many", size, segmentation=how), pieces(block[: 4 * KIB] * (size // (4 * KIB)))
    )
    changes = b"".join((bytes([7]) * (4 * KIB), block[: 4 * KIB])) * (size // step)
    two = write(target, header("many", size, segmentation=how), pieces(changes))
    request = image_pb2.DiffImagesRequest(from_image_id=one.image_id, to_image_id=two.image_id)
    answers = list(stream(target.images.DiffImages, request, peer=PEER, timeout_seconds=60))
    assert [len(answer.offsets) // 8 for answer in answers] == [4096, 4096, 2048]
    assert diff(target, one.image_id, two.image_id) == [(at, 4 * KIB) for at in range(0, size, step)]


@pytest.mark.parametrize("role", ["array", "host", "vcenter"])
def test_other_roles_have_no_business_here(target: Target, role: str) -> None:
    channel = connect(target.server.address, target.house.identity(role, "r1"), "target")
    stub = image_pb2_grpc.ImageServiceStub(channel)
    with pytest.raises(NotPermitted):
        call(stub.ListNames, image_pb2.ListNamesRequest(), peer=PEER)
    with pytest.raises(NotPermitted):
        call(stub.WriteFile, iter([image_pb2.WriteFileRequest(header=header("x", 5))]), peer=PEER)
    channel.close()
