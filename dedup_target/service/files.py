"""Edge: those methods of ImageService that treat images as files: names, writing, composing, comparing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np

from arraylift.errors import Cancelled, InvalidRequest, NotFound
from arraylift.exchange import convert as shared
from arraylift.ids import ImageId, TransferId, check_id, check_name
from arraylift.rpc.long_call import stream_long_call
from arraylift.segments.segmentation import DEFAULT_SEGMENTATION, Segmentation
from arraylift.sizes import EXTENT_BYTES_MAX, IMAGE_BYTES_MAX, spans_of
from arraylift.v1 import image_pb2 as pb
from arraylift.v1 import image_pb2_grpc as pb_grpc
from dedup_target.convert import image_to_pb
from dedup_target.image_diff import diff_images
from dedup_target.image_reader import ImageReader
from dedup_target.key_store import DEFAULT_TENANT
from dedup_target.local_ingest import FileOrder, FilePatch, LocalIngest
from dedup_target.manifest_format import ImageManifest
from dedup_target.namespace import BackupNames, check_path, folder_of, list_folder, page_of
from dedup_target.store import Store

NAMES, NAMES_MAX = 1000, 10_000
RANGES_PER_MESSAGE = 4096
EXTENTS_PER_MESSAGE = 4096


class FilesEdge(pb_grpc.ImageServiceServicer):
    """The part of ImageService that is a file service; ``images`` has the whole."""

    _store: Store
    _images: ImageReader
    _local: LocalIngest

    # -- names ----------------------------------------------------------------------------------

    def ListNames(self, request: pb.ListNamesRequest, context: grpc.ServicerContext) -> pb.ListNamesResponse:
        if request.page_size > NAMES_MAX:
            raise InvalidRequest(f"a page has at most {NAMES_MAX} names")
        folder = folder_of(request.folder)
        try:
            tenant = self._store.keys.by_name(request.tenant).tenant
        except NotFound:
            if folder or request.tenant not in {"", DEFAULT_TENANT}:
                raise
            return pb.ListNamesResponse()  # nothing was ever stored for anybody unnamed
        images = [image for image in self._store.manifests.all() if image.tenant == tenant]
        keys = self._store.unit.backups.keys()
        backups = [
            BackupNames(key.backup_id, key.vm_name, key.images) for key in keys if key.tenant == tenant
        ]
        names = list_folder(images, backups, folder)
        page, token = page_of(names, request.page_size or NAMES, request.page_token)
        return pb.ListNamesResponse(
            names=[
                pb.Name(
                    name=name.part,
                    is_folder=name.is_folder,
                    image_id=name.image_id or "",
                    size_bytes=name.size_bytes,
                    committed_at_ns=name.committed_at_ns,
                    version_count=name.version_count,
                )
                for name in page
            ],
            next_page_token=token,
        )

    # -- what arrives uncut ---------------------------------------------------------------------

    def WriteFile(
        self, requests: Iterator[pb.WriteFileRequest], context: grpc.ServicerContext
    ) -> pb.WriteFileResponse:
        header: pb.FileHeader = _header(requests)
        order = _order(header, size_bytes=header.size_bytes, segmentation=DEFAULT_SEGMENTATION)
        made = self._local.take_in(order, _patches(requests, _piece), cancelled=_cancelled(context))
        return pb.WriteFileResponse(image=image_to_pb(made))

    def Synthesize(
        self, requests: Iterator[pb.SynthesizeRequest], context: grpc.ServicerContext
    ) -> pb.SynthesizeResponse:
        header: pb.SynthesizeHeader = _header(requests)
        base = self._store.manifests.get(ImageId(check_id(header.base_image_id, "base image id")))
        order = _order(
            header.file,
            size_bytes=header.file.size_bytes or base.image_bytes,
            segmentation=base.segmentation,
            base=base,
            state=header.source_state,
        )
        made = self._local.take_in(order, _patches(requests, _piece), cancelled=_cancelled(context))
        return pb.SynthesizeResponse(image=image_to_pb(made))

    def ComposeImage(
        self, requests: Iterator[pb.ComposeImageRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ComposeImageResponse]:
        header: pb.FileHeader = _header(requests)
        order = _order(header, size_bytes=header.size_bytes, segmentation=DEFAULT_SEGMENTATION)
        spans, cancelled = spans_of(order.size_bytes), threading.Event()

        def run(report: Callable[[pb.ComposeImageResponse], None]) -> pb.ComposeImageResponse:
            made = self._local.take_in(
                order,
                _patches(requests, _extents),
                cancelled=cancelled,
                report=lambda done: report(pb.ComposeImageResponse(spans_done=done, spans_total=spans)),
            )
            return pb.ComposeImageResponse(spans_done=spans, spans_total=spans, image=image_to_pb(made))

        yield from stream_long_call(context, run, cancelled=cancelled, what=f"compose {order.transfer_id}")

    # -- comparing ------------------------------------------------------------------------------

    def DiffImages(
        self, request: pb.DiffImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DiffImagesResponse]:
        one = ImageId(check_id(request.from_image_id, "image id"))
        other = ImageId(check_id(request.to_image_id, "image id"))
        ranges: list[tuple[int, int]] = []
        for found in diff_images(self._images, one, other):
            ranges.append(found)
            if len(ranges) == RANGES_PER_MESSAGE:
                yield _ranges(ranges)
                ranges = []
        if ranges:
            yield _ranges(ranges)


def _ranges(ranges: list[tuple[int, int]]) -> pb.DiffImagesResponse:
    starts, ends = np.array(ranges, dtype="<u8").T
    return pb.DiffImagesResponse(offsets=starts.tobytes(), lengths=(ends - starts).tobytes())


# -- requests -----------------------------------------------------------------------------------


def _header(requests: Iterator[Any]) -> Any:
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise InvalidRequest("the stream begins with its header")
    return first.header


def _order(
    header: pb.FileHeader,
    *,
    size_bytes: int,
    segmentation: Segmentation,
    base: ImageManifest | None = None,
    state: Any = None,
) -> FileOrder:
    if not 1 <= size_bytes <= IMAGE_BYTES_MAX:
        raise InvalidRequest(f"a file has 1 to {IMAGE_BYTES_MAX} bytes, not {size_bytes}")
    given = header.HasField("segmentation")
    return FileOrder(
        transfer_id=TransferId(check_id(header.transfer_id, "transfer id")),
        tenant_name=check_name(header.tenant, "tenant name") if header.tenant else DEFAULT_TENANT,
        name=check_path(header.name, "file name"),
        size_bytes=size_bytes,
        segmentation=shared.segmentation_from_pb(header.segmentation) if given else segmentation,
        source_state=shared.state_from_pb(state) if state is not None else None,
        base_image_id=base.image_id if base is not None else None,
    )


def _cancelled(context: grpc.ServicerContext) -> threading.Event:
    """Set when the caller leaves."""
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    return cancelled


def _patches(requests: Iterator[Any], read: Callable[[Any], Iterator[FilePatch]]) -> Iterator[FilePatch]:
    """Yield what comes up to the end, which must match: anything else is a cut, and raises."""
    count = covered = 0
    try:
        for request in requests:
            which = request.WhichOneof("message")
            if which == "end":
                if (request.end.extent_count, request.end.bytes_written) != (count, covered):
                    raise InvalidRequest(f"the end does not match the {count} extents before it")
                return
            if which is None or which == "header":
                raise InvalidRequest("after one header come extents, then the end")
            for patch in read(request):
                count, covered = count + 1, covered + patch.length
                yield patch
    except grpc.RpcError:
        raise Cancelled("the caller left before the end") from None
    raise InvalidRequest("the stream was cut before its end", next_step="repeat it with the same transfer id")


def _piece(request: Any) -> Iterator[FilePatch]:
    piece: pb.FilePiece = request.piece
    if bool(piece.data) == bool(piece.zero_bytes) or len(piece.data) > EXTENT_BYTES_MAX:
        raise InvalidRequest(f"a piece has 1 to {EXTENT_BYTES_MAX} bytes of data, or zero_bytes")
    yield FilePatch(piece.offset, len(piece.data) or piece.zero_bytes, piece.data or None)


def _extents(request: Any) -> Iterator[FilePatch]:
    extents = request.extents.extents
    if len(extents) > EXTENTS_PER_MESSAGE or sum(len(one.literal) for one in extents) > EXTENT_BYTES_MAX:
        raise InvalidRequest(
            f"a message has at most {EXTENTS_PER_MESSAGE} extents, {EXTENT_BYTES_MAX} bytes of literals"
        )
    for extent in extents:
        if extent.image_id and extent.literal:
            raise InvalidRequest("an extent is a literal, or of an image, or zeros")
        if extent.literal and len(extent.literal) != extent.length:
            raise InvalidRequest(f"a literal of {len(extent.literal)} bytes is not {extent.length} long")
        image_id = ImageId(check_id(extent.image_id, "image id")) if extent.image_id else None
        yield FilePatch(extent.offset, extent.length, extent.literal or None, image_id, extent.image_offset)
