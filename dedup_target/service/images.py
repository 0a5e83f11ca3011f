"""Edge: ImageService."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from arraylift.errors import InvalidRequest
from arraylift.exchange import convert as shared
from arraylift.ids import GRANT_BYTES, ImageId, TransferId, check_id
from arraylift.rpc.long_call import stream_long_call
from arraylift.v1 import image_pb2 as pb
from dedup_target.backups import Backups
from dedup_target.convert import image_to_pb
from dedup_target.image_reader import ImageReader
from dedup_target.local_ingest import LocalIngest
from dedup_target.manifest_format import ImageManifest
from dedup_target.manifest_store import newest_first, page_key
from dedup_target.send_image import ImageSender, SendProgress, SendRequest
from dedup_target.service.backups import BackupsEdge
from dedup_target.service.files import FilesEdge
from dedup_target.service.maintenance import PreviewEdge
from dedup_target.service.scrub import VerifyEdge
from dedup_target.store import Store
from dedup_target.survey import Surveyor
from dedup_target.units import Member
from dedup_target.verify_image import ImageVerifier

PAGE_SIZE, PAGE_SIZE_MAX = 1000, 10_000


class ImageEdge(BackupsEdge, VerifyEdge, PreviewEdge, FilesEdge):
    """Serves the images of one target."""

    def __init__(
        self,
        store: Store,
        images: ImageReader,
        sender: ImageSender,
        backups: Backups,
        verifier: ImageVerifier,
        surveyor: Surveyor,
        local: LocalIngest,
    ) -> None:
        super().__init__(backups)
        self._verifier = verifier
        self._surveyor = surveyor
        self._local = local
        self._store = store
        self._images = images
        self._sender = sender

    def ListImages(
        self, request: pb.ListImagesRequest, context: grpc.ServicerContext
    ) -> pb.ListImagesResponse:
        """Pages go by the key of the last image sent, so that commits meanwhile shift nothing."""
        if request.page_size > PAGE_SIZE_MAX:
            raise InvalidRequest(f"a page has at most {PAGE_SIZE_MAX} images")
        size = request.page_size or PAGE_SIZE
        placed = {image.image_id: (image, member) for member, image in self._store.manifests.placed()}
        listed = newest_first(image for image, _ in placed.values())
        found = [image for image in listed if request.name in ("", image.name)]
        if request.page_token:
            last = page_key(request.page_token)
            found = [image for image in found if (image.committed_at_ns, image.image_id) < last]
        page = found[:size]
        more = len(found) > size
        token = f"{page[-1].committed_at_ns}.{page[-1].image_id}" if more else ""
        images = [_image(*placed[image.image_id]) for image in page]
        return pb.ListImagesResponse(images=images, next_page_token=token)

    def GetImage(self, request: pb.GetImageRequest, context: grpc.ServicerContext) -> pb.GetImageResponse:
        image_id = ImageId(check_id(request.image_id, "image id"))
        member = self._store.manifests.holders(image_id)[0]
        return pb.GetImageResponse(image=_image(member.manifests.get(image_id), member))

    def ReadRange(
        self, request: pb.ReadRangeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReadRangeResponse]:
        with self._images.held(ImageId(check_id(request.image_id, "image id"))) as image:
            for piece in self._images.read(image, request.offset, request.length):
                yield pb.ReadRangeResponse(
                    offset=piece.offset, data=bytes(piece.data), zero_bytes=piece.zero_bytes
                )

    def SendImage(
        self, request: pb.SendImageRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SendImageResponse]:
        if len(request.grant) != GRANT_BYTES:
            raise InvalidRequest("a grant has 32 bytes", next_step="get one by VolumeService.PrepareRestore")
        asked = SendRequest(
            image_id=ImageId(check_id(request.image_id, "image id")),
            transfer_id=TransferId(check_id(request.transfer_id, "transfer id")),
            receiver_address=request.receiver_address,
            grant=request.grant,
            patience_seconds=shared.patience_from_pb(request.patience_seconds),
        )
        cancelled = threading.Event()

        def run(report: Callable[[SendProgress], None]) -> SendProgress:
            return self._sender.send(asked, cancelled=cancelled, report=report)

        news = stream_long_call(context, run, cancelled=cancelled, what=f"send {asked.transfer_id}")
        yield from map(_progress, news)


def _image(manifest: ImageManifest, member: Member) -> pb.Image:
    return image_to_pb(manifest, member.entry.name, unit_absent=bool(member.problem))


def _progress(item: SendProgress) -> pb.SendImageResponse:
    return pb.SendImageResponse(
        spans_done=item.spans_done,
        figures=shared.figures_to_pb(item.figures),
        receipt_id=item.receipt.image_id if item.receipt else "",
        root=item.receipt.root if item.receipt else b"",
    )
