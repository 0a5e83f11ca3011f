"""``arraylift target names`` and the commands of ``target images`` that make and compare images.

A file travels in pieces; its holes, and granules of zeros, do not. The target cuts it.
Callers: the command line, main thread; requests are made on a thread of gRPC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arraylift.cli import transfers
from arraylift.cli.command import command, group
from arraylift.cli.local_files import SparseFile
from arraylift.cli.progress import Progress
from arraylift.cli.session import Session
from arraylift.cli.show import figures_rows, moment, pairs, plain, row, size_bytes, table
from arraylift.cli.volume_data import data_extents
from arraylift.errors import ArrayliftError, InvalidRequest
from arraylift.ids import random_id
from arraylift.sizes import (
    EXTENT_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SPAN_BYTES,
    human,
    parse_size,
)
from arraylift.v1 import common_pb2, image_pb2

LISTED_MAX = 100_000
EXTENTS_PER_MESSAGE = 4096
EXTENTS_FILE_BYTES_MAX = 64 << 20

NewName = Annotated[
    str, typer.Argument(metavar="NAME", help="What the new image is called; '/' makes folders.")
]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose image it is. [default: default]")]
TransferId = Annotated[
    str | None,
    typer.Option(
        "--transfer-id",
        metavar="ID",
        help="32 hex digits; the same again is answered with the same image. [default: a new one]",
    ),
]
Fixed = Annotated[
    str | None,
    typer.Option("--fixed", metavar="SIZE", help="Cut every SIZE (4K to 64K), not by content."),
]


def register_names(app: typer.Typer) -> None:
    """Add the noun to ``arraylift target``."""
    noun = group("Names on a target: folders, backups of VMs, files.")
    command(noun, "ls", examples="arraylift target names ls\narraylift target names ls web1")(list_names)
    app.add_typer(noun, name="names")


def register_images(noun: typer.Typer) -> None:
    """Add commands to ``arraylift target images``."""
    command(noun, "write", examples="arraylift target images write iso/debian debian.iso")(write)
    command(
        noun,
        "synthesize",
        examples="arraylift target images synthesize disk --base disk --change 1M=new.bin --zero 4M=64K",
    )(synthesize)
    command(
        noun,
        "compose",
        examples='echo \'[{"offset": 0, "length": "1M", "image": "disk"}]\' > extents.json\n'
        "arraylift target images compose joined --size 2M extents.json",
    )(compose)
    command(noun, "diff", examples="arraylift target images diff OLD-ID vm/disk")(diff)


# -- names --------------------------------------------------------------------------------------


def list_names(
    session: Session,
    folder: Annotated[str, typer.Argument(metavar="[FOLDER]", help="As it was listed.")] = "",
    tenant: Tenant = "",
    limit: Annotated[int, typer.Option(min=1, max=LISTED_MAX, help="At most so many.")] = 1000,
) -> None:
    """List one folder: VMs, their backups, the disks of one, and files."""
    target, found, token = session.target, list[image_pb2.Name](), ""
    while len(found) < limit:
        request = image_pb2.ListNamesRequest(
            tenant=tenant, folder=folder, page_size=min(1000, limit - len(found)), page_token=token
        )
        page = target.call(target.images.ListNames, request)
        found += page.names
        token = page.next_page_token
        if not token:
            break
    shown = table("name", ">size", "newest", ">versions", "id")
    for name in found:
        kind = ("", "") if name.is_folder else (human(name.size_bytes), f"{name.version_count:,}")
        label = f"{name.name}/" if name.is_folder else name.name
        row(shown, label, kind[0], moment(name.committed_at_ns), kind[1], name.image_id)
    session.emit([plain(name) for name in found], shown)


# -- making images ------------------------------------------------------------------------------


def write(
    session: Session,
    name: NewName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file or a block device.")],
    tenant: Tenant = "",
    fixed: Fixed = None,
    transfer_id: TransferId = None,
) -> None:
    """Make an image of a file's content."""
    target = session.target
    with SparseFile(file) as source, session.progress(f"write {name}", source.size_bytes) as bar:
        header = _header(name, source.size_bytes, tenant, transfer_id, fixed)
        answer = target.upload(
            target.images.WriteFile,
            _requests(image_pb2.WriteFileRequest, header, _pieces(source, 0, bar.update)),
        )
    _emit(session, answer.image)


def synthesize(
    session: Session,
    name: NewName,
    base: Annotated[str, typer.Option("--base", metavar="IMAGE", help="An id, or a name: its newest image.")],
    change: Annotated[
        list[str] | None, typer.Option("--change", metavar="OFFSET=FILE", help="Lay a file over it there.")
    ] = None,
    zero: Annotated[
        list[str] | None, typer.Option("--zero", metavar="OFFSET=LENGTH", help="Lay zeros over it there.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Cut or extend it. [default: the base's size]")] = None,
    tenant: Tenant = "",
    transfer_id: TransferId = None,
) -> None:
    """Make a full image of a base and changes; only what changes is sent and cut."""
    target = session.target
    found = transfers.find_image(target, base)
    file_header = _header(name, size_bytes(size) if size else 0, tenant or found.tenant, transfer_id, None)
    header = image_pb2.SynthesizeHeader(file=file_header, base_image_id=found.image_id)
    with ExitStack() as opened:
        changes: list[tuple[int, SparseFile | int]] = []
        for text in change or []:
            offset, path = _pair(text, "--change")
            changes.append((size_bytes(offset), opened.enter_context(SparseFile(Path(path)))))
        for text in zero or []:
            offset, length = _pair(text, "--zero")
            changes.append((size_bytes(offset), size_bytes(length)))
        changes.sort(key=lambda pair: pair[0])
        lengths = [what if isinstance(what, int) else what.size_bytes for _, what in changes]
        bar = opened.enter_context(session.progress(f"synthesize {name}", sum(lengths)))

        def pieces() -> Iterator[image_pb2.FilePiece]:
            for before, (start, what) in zip(_sums(lengths), changes, strict=True):
                if isinstance(what, int):
                    yield image_pb2.FilePiece(offset=start, zero_bytes=what)
                else:
                    yield from _whole(what, start, partial(_advance, bar, before))

        sent = _requests(image_pb2.SynthesizeRequest, header, pieces())
        answer = target.upload(target.images.Synthesize, sent)
    _emit(session, answer.image)


def compose(
    session: Session,
    name: NewName,
    extents: Annotated[
        Path, typer.Argument(metavar="EXTENTS", help="A JSON file; see `docs/operations.md`.")
    ],
    size: Annotated[str, typer.Option(help="Of the new image; what no extent covers is zero.")],
    tenant: Tenant = "",
    fixed: Fixed = None,
    transfer_id: TransferId = None,
) -> None:
    """Make an image of extents of other images, zeros and literal bytes."""
    target = session.target
    chosen = _read_extents(extents, lambda reference: transfers.find_image(target, reference).image_id)
    header = _header(name, size_bytes(size), tenant, transfer_id, fixed)
    last = image_pb2.ComposeImageResponse()
    with (
        session.progress(f"compose {name}", header.size_bytes) as bar,
        target.stream(target.images.ComposeImage, _composition(header, chosen)) as answers,
    ):
        for last in answers:
            bar.update(min(last.spans_done * SPAN_BYTES, header.size_bytes))
    if not last.HasField("image"):
        raise ArrayliftError(f"{target.label} ended the composition without an image")
    _emit(session, last.image)


def _advance(bar: Progress, before: int, done: int) -> None:
    bar.update(before + done)


def _emit(session: Session, image: image_pb2.Image) -> None:
    rows: list[tuple[str, object]] = [
        ("image", image.image_id),
        ("name", image.name),
        ("size", human(image.image_bytes)),
        ("root", image.root.hex()),
        *figures_rows(image.figures),
    ]
    session.emit(plain(image), pairs(rows))


def _header(
    name: str, size: int, tenant: str, transfer_id: str | None, fixed: str | None
) -> image_pb2.FileHeader:
    header = image_pb2.FileHeader(
        transfer_id=transfer_id or random_id(), tenant=tenant, name=name, size_bytes=size
    )
    if fixed is not None:
        header.segmentation.CopyFrom(
            common_pb2.Segmentation(
                policy=common_pb2.SEGMENTATION_POLICY_FIXED,
                segment_bytes_min=SEGMENT_BYTES_MIN,
                segment_bytes_average=size_bytes(fixed),
                segment_bytes_max=SEGMENT_BYTES_MAX,
                span_bytes=SPAN_BYTES,
            )
        )
    return header


def _requests(kind: Any, header: Any, pieces: Iterable[image_pb2.FilePiece]) -> Iterator[Any]:
    """A whole stream: header, pieces, end."""
    yield kind(header=header)
    count = covered = 0
    for piece in pieces:
        yield kind(piece=piece)
        count, covered = count + 1, covered + (len(piece.data) or piece.zero_bytes)
    yield kind(end=image_pb2.FileEnd(extent_count=count, bytes_written=covered))


def _pieces(source: SparseFile, at: int, on_bytes: Callable[[int], None]) -> Iterator[image_pb2.FilePiece]:
    """The data of a file; what is zero is left out."""
    for extent in data_extents(source, 0, source.size_bytes, on_bytes):
        yield image_pb2.FilePiece(offset=at + extent.offset, data=extent.data)


def _whole(source: SparseFile, at: int, on_bytes: Callable[[int], None]) -> Iterator[image_pb2.FilePiece]:
    """A file with its zeros, as what lies under it may be something else."""
    done = 0
    for piece in _pieces(source, 0, on_bytes):
        if piece.offset > done:
            yield image_pb2.FilePiece(offset=at + done, zero_bytes=piece.offset - done)
        done = piece.offset + len(piece.data)
        piece.offset += at
        yield piece
    if source.size_bytes > done:
        yield image_pb2.FilePiece(offset=at + done, zero_bytes=source.size_bytes - done)


def _pair(text: str, option: str) -> tuple[str, str]:
    first, equals, second = text.partition("=")
    if not equals or not second:
        raise InvalidRequest(f"{option} {text} has no '='", next_step="write OFFSET=, then the rest")
    return first, second


def _sums(lengths: list[int]) -> Iterator[int]:
    total = 0
    for length in lengths:
        yield total
        total += length


# -- extents ------------------------------------------------------------------------------------

_EXTENT_KEYS = frozenset({"offset", "length", "image", "image_offset", "hex"})


def _read_extents(path: Path, image_id_of: Callable[[str], str]) -> list[image_pb2.ComposeExtent]:
    """Extents of a JSON file, in ascending order. Raises InvalidRequest naming the one that is wrong."""
    with SparseFile(path) as source:
        if source.size_bytes > EXTENTS_FILE_BYTES_MAX:
            raise InvalidRequest(f"{path} has more than {human(EXTENTS_FILE_BYTES_MAX)}", subject=str(path))
        text = source.read(0, source.size_bytes)
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{path} is no JSON: {error}", subject=str(path)) from error
    if not isinstance(rows, list):
        raise InvalidRequest(f"{path} is no list of extents", subject=str(path))
    ids: dict[str, str] = {}
    found = []
    for number, fields in enumerate(rows):
        try:
            extent, name = _extent(fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(
                f"extent {number} of {path} is wrong: {error}",
                subject=str(path),
                next_step="an extent has offset, length, and image with image_offset, or hex, or neither",
            ) from error
        if name:
            extent.image_id = ids.get(name) or ids.setdefault(name, image_id_of(name))
        found.append(extent)
    return sorted(found, key=lambda extent: extent.offset)


def _extent(fields: dict[str, Any]) -> tuple[image_pb2.ComposeExtent, str]:
    """One extent, and the image that it names."""
    unknown = fields.keys() - _EXTENT_KEYS
    if unknown:
        raise ValueError(f"it has {', '.join(sorted(unknown))}")
    extent = image_pb2.ComposeExtent(
        offset=_bytes(fields["offset"]), literal=bytes.fromhex(fields.get("hex", ""))
    )
    extent.length = _bytes(fields["length"]) if "length" in fields else len(extent.literal)
    extent.image_offset = _bytes(fields.get("image_offset", 0))
    name = fields.get("image", "")
    if not isinstance(name, str) or len(extent.literal) > EXTENT_BYTES_MAX:
        raise ValueError(f"it names no image, or has more than {human(EXTENT_BYTES_MAX)} of hex")
    return extent, name


def _bytes(value: object) -> int:
    """A count of bytes, as a number or as people write sizes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return parse_size(str(value))


def _composition(
    header: image_pb2.FileHeader, extents: list[image_pb2.ComposeExtent]
) -> Iterator[image_pb2.ComposeImageRequest]:
    """A whole stream, of messages within their limits."""
    yield image_pb2.ComposeImageRequest(header=header)
    message, literal_bytes = image_pb2.ComposeExtents(), 0
    for extent in extents:
        full = len(message.extents) == EXTENTS_PER_MESSAGE
        if full or literal_bytes + len(extent.literal) > EXTENT_BYTES_MAX:
            yield image_pb2.ComposeImageRequest(extents=message)
            message, literal_bytes = image_pb2.ComposeExtents(), 0
        message.extents.append(extent)
        literal_bytes += len(extent.literal)
    yield image_pb2.ComposeImageRequest(extents=message)
    covered = sum(extent.length for extent in extents)
    end = image_pb2.FileEnd(extent_count=len(extents), bytes_written=covered)
    yield image_pb2.ComposeImageRequest(end=end)


# -- comparing ----------------------------------------------------------------------------------


def diff(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="IMAGE", help="An id, or a name: its newest image.")],
    new: Annotated[str, typer.Argument(metavar="IMAGE", help="Another one of the same tenant.")],
    limit: Annotated[int, typer.Option(min=1, max=LISTED_MAX, help="Show at most so many ranges.")] = 1000,
) -> None:
    """Show in which ranges two images may differ, without reading what they share."""
    target = session.target
    one, other = (transfers.find_image(target, reference) for reference in (old, new))
    request = image_pb2.DiffImagesRequest(from_image_id=one.image_id, to_image_id=other.image_id)
    shown = table(">offset", ">length")
    ranges: list[tuple[int, int]] = []
    count = total = 0
    with target.stream(target.images.DiffImages, request) as answers:
        for answer in answers:
            offsets, lengths = (np.frombuffer(packed, "<u8") for packed in (answer.offsets, answer.lengths))
            count, total = count + len(offsets), total + int(lengths.sum())
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                if len(ranges) < limit:
                    ranges.append((offset, length))
                    row(shown, f"{offset:,}", f"{length:,}")
    row(shown, f"{count:,} ranges", human(total))
    document = {
        "from_image_id": one.image_id,
        "to_image_id": other.image_id,
        "range_count": count,
        "total_bytes": total,
        "ranges": [{"offset": offset, "length": length} for offset, length in ranges],
    }
    session.emit(document, shown)
