"""One restore on its way in: a draft volume, what of it is written, and the key to check it.

Invariants:
  D1 a span counts as durable only after the draft's progress note that lists it was saved.
  D2 the volume appears only if the tree of what was written has the root that was sent;
     spans from before a restart are read back from the draft and cut again for that.
  D3 zero granules are not written: a restored volume is as thin as its image.
  D4 one attempt at a time writes; an older one is fenced first.
  D5 a draft that began with content changes only in granules that differ from the image, so that it
     shares the others with what it was cloned from, and holes are trimmed.
  D6 a restore in place is only verified here, and noted as whole; its group swaps it in.
Limits: PROGRESS_BYTES or PROGRESS_SECONDS between two progress notes.
Callers: handler threads of its lanes; ``lock`` guards all but the draft's own writes.
"""

from __future__ import annotations

import base64
import json
import threading
import zlib
from dataclasses import dataclass, field

import numpy as np

from arraylift.clock import Clock
from arraylift.durable import Buffer
from arraylift.errors import ArrayliftError, Corruption, InvalidRequest, LeaseLost, WrongState
from arraylift.exchange.coverage import Coverage
from arraylift.exchange.messages import Commit, Committed, Figures, Offer, Open
from arraylift.ids import ImageId, TransferId
from arraylift.segments.fingerprint import FingerprintKey, unpack
from arraylift.segments.segmentation import Policy, Segmentation, Segmenter
from arraylift.segments.tree import Leaves, encode_leaf, no_leaves, root_of
from arraylift.sizes import GRANULE_BYTES, IMAGE_BYTES_MAX, MIB, SPAN_BYTES, span_length, spans_of
from primary_array.draft import Draft

PROGRESS_BYTES = 256 * MIB
PROGRESS_SECONDS = 2.0
TAG_VERSION = 2
TAG_VERSIONS_READ = (1, 2)
"""Version 1 knew no references and no restores in place."""


@dataclass(frozen=True, slots=True)
class RestoreGrant:
    """Who may restore what: one target, one new volume, or one that is there (``group_id``)."""

    transfer_id: TransferId
    target: str
    volume_name: str
    grant: bytes = field(repr=False)
    group_id: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """What a restarted array needs to go on with a restore, but the key, which never rests here."""

    grant: RestoreGrant
    opened: Open
    written: Coverage
    has_content: bool = False
    whole: bool = False


class RestoreDraft:
    """See the module's invariants."""

    def __init__(self, note: Note, draft: Draft, clock: Clock) -> None:
        self.grant = note.grant
        self.draft = draft
        self.opened = note.opened
        self.lock = threading.RLock()
        self.written = note.written
        self.has_content = note.has_content
        self.attempt = 0
        self.key = FingerprintKey(note.opened.key)
        self.receipt: Committed | None = self._receipt(Figures()) if note.whole else None
        """Of a restore in place that is whole and verified (D6)."""
        self._clock = clock
        self._error: ArrayliftError | None = None
        self._begin_counts()

    def _begin_counts(self) -> None:
        self.claimed = Coverage(len(self.written.flags))
        self.claimed.flags |= self.written.flags
        self.resumed = self.written.flags.copy()
        self.leaves: Leaves = no_leaves(len(self.written.flags))
        self.bytes_written = 0
        self._saved_bytes = 0
        self._saved_at = self._clock.monotonic()

    # -- attempts -------------------------------------------------------------------------------

    def begin_attempt(self, opened: Open) -> None:
        """Fence the older attempt and start over from what is written (D4). Raises Conflict."""
        same = (opened.image_bytes, opened.segmentation, opened.root)
        if same != (self.opened.image_bytes, self.opened.segmentation, self.opened.root):
            raise WrongState(
                f"transfer {self.grant.transfer_id} began with another image",
                next_step="prepare a new restore for another image",
            )
        with self.lock:
            self.save()
            self.attempt += 1
            self.opened, self.key = opened, FingerprintKey(opened.key)
            self._error = None
            self._begin_counts()

    def check(self, attempt: int) -> None:
        """Raise what ended ``attempt``."""
        if attempt != self.attempt:
            raise LeaseLost(f"attempt {attempt} of transfer {self.grant.transfer_id} is over")
        if self._error is not None:
            raise self._error

    def fail(self, error: ArrayliftError) -> None:
        """End the current attempt; the first reason stays."""
        with self.lock:
            self._error = self._error or error

    # -- progress -------------------------------------------------------------------------------

    @property
    def progress_due(self) -> bool:
        """True when enough was written, or enough time passed, since the last note."""
        if self.bytes_written - self._saved_bytes >= PROGRESS_BYTES:
            return True
        return self._clock.monotonic() - self._saved_at >= PROGRESS_SECONDS

    def save(self) -> None:
        """Make everything written so far durable, with a note of which spans that is (D1)."""
        with self.lock:
            whole = self.receipt is not None
            note = Note(self.grant, self.opened, self.written, self.has_content, whole)
            self.draft.save_progress(encode_tag(note))
            self._saved_bytes, self._saved_at = self.bytes_written, self._clock.monotonic()

    # -- spans ----------------------------------------------------------------------------------

    def claim(self, offer: Offer) -> None:
        """Take an offer's spans; its holes are done with that."""
        with self.lock:
            self.claimed.claim(offer)
        for first, count in offer.hole_runs.tolist():
            if self.has_content:
                start, stop = first * SPAN_BYTES, (first + count) * SPAN_BYTES
                self.draft.trim(start, min(stop, self.draft.size_bytes) - start)
        with self.lock:
            for first, count in offer.hole_runs.tolist():
                self.written.flags[first : first + count] = True

    def write_span(self, span: int, plain: bytes, leaf: bytes) -> None:
        """Write one span, leaving out zero granules (D3), and those that are there (D5)."""
        written = 0
        runs = solid_runs(plain)
        if self.has_content:
            runs = self._trim_and_compare(span, plain, runs)
        for start, stop in runs:
            self.draft.write(span * SPAN_BYTES + start, memoryview(plain)[start:stop])
            written += stop - start
        with self.lock:
            self.bytes_written += written if self.has_content else len(plain)
            self.leaves[span] = np.frombuffer(leaf, dtype=np.uint8)
            self.written.flags[span] = True

    def _trim_and_compare(
        self, span: int, plain: bytes, solid: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Trim what is zero and was not; return the runs of granules that differ (D5)."""
        found = self.read_span(span)
        base = span * SPAN_BYTES
        for start, stop in _gaps(solid, len(plain)):
            if any(solid_runs(found[start:stop])):
                self.draft.trim(base + start, stop - start)
        return [
            (start + first, start + last)
            for start, stop in solid
            for first, last in differing_runs(plain[start:stop], found[start:stop])
        ]

    def read_span(self, span: int) -> memoryview:
        """What the draft holds there now."""
        into = memoryview(bytearray(span_length(span, self.opened.image_bytes)))
        self.draft.read_into(span * SPAN_BYTES, into)
        return into

    def pieces_of(self, span: int) -> dict[bytes, tuple[int, int]]:
        """Cut and fingerprint what the draft holds: (offset, bytes) in the span, by fingerprint."""
        view = self.read_span(span)
        if not solid_runs(view):
            return {}
        pieces = Segmenter(self.opened.segmentation).cut(view)
        found: dict[bytes, tuple[int, int]] = {}
        offset = 0
        for piece, fingerprint in zip(pieces, unpack(self.key.segments(pieces)), strict=True):
            found[bytes(fingerprint)] = (offset, len(piece))
            offset += len(piece)
        return found

    def commit(self, message: Commit) -> Committed:
        """Check the root (D2) and make the volume, or note that it is whole (D6). Raises InvalidRequest,
        Corruption."""
        opened = self.opened
        if message.inherit_base:
            raise InvalidRequest("a restore has no base to inherit from")
        missing = int((~self.written.flags).sum())
        if missing:
            raise InvalidRequest(f"{missing} spans were not sent", next_step="open the transfer again")
        self._recut()
        root = root_of(
            self.leaves, image_bytes=opened.image_bytes, segmentation=opened.segmentation, key=self.key
        )
        if root != opened.root:
            raise Corruption(
                f"what arrived has root {root.hex()[:16]}, not {opened.root.hex()[:16]}",
                next_step="scrub the target, check this array's disk, then restore again",
            )
        figures = Figures()
        figures.add(message.figures)
        figures.bytes_stored = self.bytes_written
        receipt = self._receipt(figures)
        if self.grant.group_id:
            self.receipt = receipt
            self.save()
        else:
            self.draft.commit(root=root)
        return receipt

    def _receipt(self, figures: Figures) -> Committed:
        return Committed(self.opened.root, ImageId(self.draft.draft_id), figures)

    def _recut(self) -> None:
        """Fingerprint the spans of earlier attempts anew, from the disk."""
        segmenter = Segmenter(self.opened.segmentation)
        buffer = memoryview(bytearray(SPAN_BYTES))
        for span in np.flatnonzero(self.resumed).tolist():
            view = buffer[: span_length(span, self.opened.image_bytes)]
            self.draft.read_into(span * SPAN_BYTES, view)
            if any(solid_runs(view)):
                pieces = segmenter.cut(view)
                lengths = np.array([len(piece) for piece in pieces], dtype="<u4").tobytes()
                leaf = self.key.node(encode_leaf(lengths, self.key.segments(pieces)))
                self.leaves[span] = np.frombuffer(leaf, dtype=np.uint8)


def solid_runs(plain: bytes | memoryview) -> list[tuple[int, int]]:
    """Return (start, stop) of the runs of granules that are not all zero."""
    return _runs(_solid_granules(plain), len(plain))


def differing_runs(plain: Buffer, found: Buffer) -> list[tuple[int, int]]:
    """Return (start, stop) of the runs of granules in which two buffers of one size differ."""
    both = zip(
        *(
            [bytes(part[at : at + GRANULE_BYTES]) for at in range(0, len(plain), GRANULE_BYTES)]
            for part in (plain, found)
        ),
        strict=True,
    )
    return _runs([one != other for one, other in both], len(plain))


def _gaps(runs: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """What lies between runs."""
    starts = [0, *(stop for _, stop in runs)]
    stops = [*(start for start, _ in runs), length]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def _solid_granules(plain: bytes | memoryview) -> list[bool]:
    whole = len(plain) // GRANULE_BYTES
    solid: list[bool] = [False] * (-(-len(plain) // GRANULE_BYTES))
    if whole:
        words = np.frombuffer(plain, np.uint64, whole * GRANULE_BYTES // 8)
        solid[:whole] = np.logical_or.reduce(words.reshape(whole, -1), axis=1, dtype=np.bool_).tolist()
    if whole < len(solid):
        solid[whole] = any(memoryview(plain)[whole * GRANULE_BYTES :])
    return solid


def _runs(flags: list[bool], length: int) -> list[tuple[int, int]]:
    """Join flagged granules to runs of bytes."""
    runs: list[tuple[int, int]] = []
    for granule, full in enumerate(flags):
        if not full:
            continue
        start, stop = granule * GRANULE_BYTES, min((granule + 1) * GRANULE_BYTES, length)
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return runs


# -- the progress note --------------------------------------------------------------------------


def encode_tag(note: Note) -> bytes:
    """As JSON."""
    grant, opened, written = note.grant, note.opened, note.written
    how = opened.segmentation
    fields = {
        "version": TAG_VERSION,
        "transfer_id": grant.transfer_id,
        "target": grant.target,
        "volume_name": grant.volume_name,
        "grant": grant.grant.hex(),
        "image_bytes": opened.image_bytes,
        "segmentation": [
            int(how.policy),
            how.segment_bytes_min,
            how.segment_bytes_average,
            how.segment_bytes_max,
            how.span_bytes,
        ],
        "root": opened.root.hex(),
        "group_id": grant.group_id,
        "has_content": note.has_content,
        "whole": note.whole,
        "written": base64.b85encode(zlib.compress(written.to_bitmap())).decode(),
    }
    return json.dumps(fields).encode()


def decode_tag(tag: bytes) -> Note:
    """Raises Corruption for a note that this version did not write."""
    try:
        fields = json.loads(tag)
        if fields["version"] not in TAG_VERSIONS_READ:
            raise ValueError(f"version {fields['version']}")
        image_bytes = int(fields["image_bytes"])
        if not 0 < image_bytes <= IMAGE_BYTES_MAX:
            raise ValueError(f"an image of {image_bytes} bytes")
        policy, *sizes = fields["segmentation"]
        grant = RestoreGrant(
            TransferId(fields["transfer_id"]),
            fields["target"],
            fields["volume_name"],
            bytes.fromhex(fields["grant"]),
            str(fields.get("group_id", "")),
        )
        opened = Open(
            transfer_id=grant.transfer_id,
            grant=grant.grant,
            attempt=0,
            lane=0,
            image_bytes=image_bytes,
            segmentation=Segmentation(Policy(policy), *sizes),
            source_state=None,
            key=bytes(32),
            root=bytes.fromhex(fields["root"]),
        )
        spans = spans_of(image_bytes)
        bitmap_bytes = -(-spans // 8)
        packed = zlib.decompressobj().decompress(base64.b85decode(fields["written"]), bitmap_bytes)
        written = Coverage.from_bitmap(packed, spans)
        has_content, whole = bool(fields.get("has_content")), bool(fields.get("whole"))
        return Note(grant, opened, written, has_content, whole)
    except (ValueError, KeyError, TypeError, OverflowError, zlib.error, InvalidRequest) as error:
        raise Corruption(f"a restore's progress note cannot be read: {error}") from error
