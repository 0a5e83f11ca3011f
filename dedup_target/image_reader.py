"""Open images and read ranges of them ([0056]).

Owns: a small cache of opened images: of each the part of its tree that was read, at most 32
bytes a span. Opening reads the root node alone; a range reads the nodes above it, once.
Limits: IMAGES_OPEN_MAX images; a read decodes SPANS_AT_ONCE spans at a time, and looks ahead as
``read_ahead`` says.
Callers: any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.ids import Fingerprint, ImageId, TenantId
from arraylift.segments.fingerprint import FingerprintKey, unpack
from arraylift.segments.tree import FAN_OUT, Leaf, Leaves, decode_leaf
from arraylift.segments.tree_view import TreeView
from arraylift.sizes import SPAN_BYTES, span_length, spans_of
from dedup_target.manifest_format import ImageManifest
from dedup_target.read_ahead import Located, ReadAhead
from dedup_target.segment_reader import SegmentReader
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store

IMAGES_OPEN_MAX = 8
SPANS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An image, and its tree as far as it has been read."""

    manifest: ImageManifest
    key: FingerprintKey
    tree: TreeView
    unit: StorageUnit
    reader: SegmentReader
    """Of the unit."""

    @property
    def leaves(self) -> Leaves:
        """Fingerprints of all leaves, 32 bytes a span. Raises Corruption."""
        return self.tree.leaves

    @property
    def tenant(self) -> TenantId:
        return self.manifest.tenant


@dataclass(frozen=True, slots=True)
class Piece:
    """Plain bytes at ``offset``, or a hole of ``zero_bytes``."""

    offset: int
    data: bytes | memoryview
    zero_bytes: int


class ImageReader:
    """Reads the images of one target."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: OrderedDict[ImageId, OpenImage] = OrderedDict()

    def open(self, image_id: ImageId) -> OpenImage:
        """Return an image. Raises NotFound, Corruption, PeerUnavailable (its unit is absent)."""
        with self._lock:
            known = self._open.get(image_id)
            if known is not None and known.unit.manifests.has(image_id):
                self._open.move_to_end(image_id)
                return known
        unit = self._store.manifests.unit_of(image_id)
        image = self.view(unit, unit.manifests.get(image_id))
        with self._lock:
            self._open[image_id] = image
            while len(self._open) > IMAGES_OPEN_MAX:
                self._open.popitem(last=False)
        return image

    @contextlib.contextmanager
    def held(self, image_id: ImageId) -> Iterator[OpenImage]:
        """Open an image to be read to its end, also if it is deleted meanwhile. Raises as ``open``."""
        with contextlib.ExitStack() as holds:
            image = self.open(image_id)
            holds.enter_context(image.unit.pins.hold_root(image.tenant, image.manifest.root))
            if not image.unit.manifests.has(image_id):  # deleted meanwhile, or moved
                image = self.open(image_id)
                holds.enter_context(image.unit.pins.hold_root(image.tenant, image.manifest.root))
                image.unit.manifests.get(image_id)
            yield image

    def forget(self, image_id: ImageId) -> None:
        """An image was deleted: who opens it again gets NotFound."""
        with self._lock:
            self._open.pop(image_id, None)

    @staticmethod
    def view(unit: StorageUnit, manifest: ImageManifest) -> OpenImage:
        """Open an image of a unit outside the cache: nothing of it was read before. Raises Corruption."""
        key, reader = unit.fingerprint_key(manifest.tenant), SegmentReader(unit)
        tree = TreeView(Fingerprint(manifest.root), lambda wanted: reader.nodes(manifest.tenant, key, wanted))
        return OpenImage(manifest, key, tree, unit, reader)

    def leaves(self, image: OpenImage, spans: list[int]) -> list[Leaf | None]:
        """Return the segments of each span, None for a hole."""
        rows = image.tree.leaves_at(np.array(spans, dtype=np.int64))
        named = {span: Fingerprint(row.tobytes()) for span, row in zip(spans, rows, strict=True) if row.any()}
        solid, fingerprints = list(named), list(named.values())
        nodes = image.reader.nodes(image.tenant, image.key, fingerprints)
        size = image.manifest.image_bytes
        found = {
            span: decode_leaf(node, span_length(span, size)) for span, node in zip(solid, nodes, strict=True)
        }
        return [found.get(span) for span in spans]

    def lost_spans(self, image: OpenImage, *, between: Callable[[], None] = lambda: None) -> list[int]:
        """Look every node and segment of an image up; returns the spans that lack one.

        For a store that is known to have lost something: costs a look-up a segment. What was read of the
        image before does not count. ``between`` is called often; what it raises ends the look. Raises
        Corruption for a node above the leaves.
        """
        image = self.view(image.unit, image.manifest)
        lost: list[int] = []
        solid = np.flatnonzero(image.leaves.any(axis=1)).tolist()
        for start in range(0, len(solid), SPANS_AT_ONCE):
            between()
            spans = solid[start : start + SPANS_AT_ONCE]
            present = image.unit.contains(image.tenant, image.leaves[spans].tobytes())
            lost.extend(span for span, here in zip(spans, present, strict=True) if not here)
            whole = [span for span, here in zip(spans, present, strict=True) if here]
            for span, leaf in zip(whole, self.leaves(image, whole), strict=True):
                if leaf and not image.unit.contains(image.tenant, leaf.fingerprints).all():
                    lost.append(span)
        return lost

    def read(self, image: OpenImage, offset: int, length: int) -> Iterator[Piece]:
        """Yield the bytes of a range in order, a span or less at a time; every segment verified.

        A hole is one piece, however large. Raises InvalidRequest, Corruption.
        """
        size = image.manifest.image_bytes
        if offset > size or length > size - offset:
            raise InvalidRequest(
                f"range {offset}+{length} is outside the image's {size} bytes",
                subject=f"image {image.manifest.image_id}",
            )
        end = offset + (length or size - offset)
        if end == offset:
            return
        hole = offset  # where the hole begins that the last piece ended with
        for located in self.located(image, _solid(image, offset, end), offset, end):
            for piece in self._pieces(image, located, offset, end):
                if hole < piece.offset:
                    yield Piece(hole, b"", piece.offset - hole)
                yield piece
                hole = piece.offset + len(piece.data)
        if hole < end:
            yield Piece(hole, b"", end - hole)

    def read_into(self, image: OpenImage, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the image's bytes from ``offset``, each verified. Raises as ``read``."""
        if not len(into):
            return
        for piece in self.read(image, offset, len(into)):
            start = piece.offset - offset
            if piece.zero_bytes:
                into[start : start + piece.zero_bytes] = bytes(piece.zero_bytes)
            else:
                into[start : start + len(piece.data)] = piece.data

    def located(
        self, image: OpenImage, groups: Iterable[list[int]], offset: int = 0, end: int | None = None
    ) -> Iterator[Located]:
        """Yield groups of spans with their segments located; reads ahead. Of spans that the range
        [offset, end) cuts, only the segments that it touches."""
        size = image.manifest.image_bytes

        def locate(spans: list[int]) -> Located:
            leaves = self.leaves(image, spans)
            fingerprints: list[bytes] = []
            for span, leaf in zip(spans, leaves, strict=True):
                if leaf is not None:
                    touched = _touched(span, leaf, offset, size if end is None else end)
                    fingerprints += unpack(leaf.fingerprints)[touched]
            return Located(spans, leaves, fingerprints, image.reader.locate(image.tenant, fingerprints))

        return iter(
            ReadAhead(groups, locate, image.reader.prefetch, whole_from_bytes=image.reader.whole_from_bytes)
        )

    def _pieces(self, image: OpenImage, located: Located, offset: int, end: int) -> Iterator[Piece]:
        """Decode a group at once, then join its spans."""
        size, at = image.manifest.image_bytes, 0
        plain = image.reader.plain(image.tenant, image.key, located.fingerprints, located.locators)
        for span, leaf in zip(located.spans, located.leaves, strict=True):
            start = span * SPAN_BYTES
            low, high = max(offset, start), min(end, start + span_length(span, size))
            assert leaf is not None, "holes were left out"
            touched = _touched(span, leaf, offset, end)
            count = touched.stop - touched.start
            skipped = int(leaf.lengths[: touched.start].sum(dtype=np.uint64))
            data = b"".join(plain[at : at + count])
            at += count
            if high - low != len(data):
                data = data[low - start - skipped : high - start - skipped]
            yield Piece(low, data, 0)


def _solid(image: OpenImage, offset: int, end: int) -> Iterator[list[int]]:
    """Yield groups of the spans within [offset, end) that are no holes."""
    first, last = offset // SPAN_BYTES, spans_of(end)
    for start in range(first, last, FAN_OUT):
        rows = image.tree.leaves_of(start, min(last, start + FAN_OUT))
        solid = (start + np.flatnonzero(rows.any(axis=1))).tolist()
        for place in range(0, len(solid), SPANS_AT_ONCE):
            yield solid[place : place + SPANS_AT_ONCE]


def _touched(span: int, leaf: Leaf, offset: int, end: int) -> slice:
    """Which segments of a span have bytes in [offset, end)."""
    start = span * SPAN_BYTES
    if offset <= start and end >= start + SPAN_BYTES:
        return slice(0, len(leaf.lengths))
    ends = np.cumsum(leaf.lengths, dtype=np.int64) + start
    first = int(np.searchsorted(ends, offset, side="right"))
    return slice(first, min(int(np.searchsorted(ends, end, side="left")) + 1, len(ends)))
