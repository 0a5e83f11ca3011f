"""Commit a transfer: nodes, re-check, manifest. The only place where images come to be.

Invariants:
  M1 the order of law 1: data containers are sealed and indexed (ingest), then nodes here,
     then the manifest; a crash between any two leaves no image or the whole one.
  M2 every span is covered: offered, durable from an earlier attempt, or inherited.
  M3 if anything was condemned, quarantined or removed since the attempt promised what is
     present, every reused fingerprint is looked up again, under the lock that guards
     condemning; what is gone is voided and the sender asked to resume (law 7).
  M4 only the lane's own attempt commits, and no newer one begins before the log says so.
Callers: the handler thread of the lane that sent Commit, alone on its transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import Conflict, InvalidRequest
from arraylift.exchange.messages import Commit, Committed, Figures
from arraylift.ids import Fingerprint, ImageId
from arraylift.logs import get_logger
from arraylift.segments.codecs import Codec
from arraylift.segments.tree import Leaves, build, encode_leaf, no_leaves
from arraylift.sizes import spans_of
from dedup_target.attempt import Attempt
from dedup_target.container_buffer import ContainerBuffer
from dedup_target.container_format import Kind
from dedup_target.manifest_format import ImageManifest
from dedup_target.transfer import Transfer
from dedup_target.transfer_format import CommittedTransfer

NODES_PER_FRAME = 256

_log = get_logger("commit")


def commit(transfer: Transfer, attempt: Attempt, message: Commit, clock: Clock) -> Committed:
    """Make the image. Raises InvalidRequest (M2), Conflict (M3), LeaseLost (M4), OutOfSpace, StoreFailed."""
    done = transfer.receipt()
    if done is not None:
        return done
    leaves = _leaves(transfer, message.inherit_base)
    writer = _NodeWriter(transfer)
    root = _write_nodes(transfer, leaves, writer)
    store = transfer.store
    # In this order: an Open holds its transfer's lock while a damaged base is condemned.
    with transfer.lock, store.commit_lock:
        attempt.check()  # M4
        if store.generation != attempt.generation:
            _recheck(transfer, message.inherit_base)
            root = _write_nodes(transfer, leaves, writer)  # those that are gone, once more
        figures = message.figures
        figures.bytes_stored = transfer.bytes_stored + writer.bytes_stored
        manifest = _manifest(transfer, root, figures, clock)
        store.manifests.publish(manifest)
        receipt = {name: getattr(figures, name) for name in Figures.__slots__}
        transfer.log.append_committed(CommittedTransfer(root, manifest.image_id, receipt))
        transfer.log.sync()
    _log.info("image_committed", image=manifest.image_id, name=manifest.name, root=root.hex(), **receipt)
    return Committed(root, manifest.image_id, figures)


def _leaves(transfer: Transfer, inherit: bool) -> Leaves:
    """Join what was offered with what is inherited (M2)."""
    state = transfer.log.state
    covered, spans = state.covered, spans_of(transfer.opened.image_bytes)
    leaves = no_leaves(spans)
    if inherit:
        base = transfer.base_leaves
        if base is None or transfer.base is None:
            raise InvalidRequest("the transfer has no base to inherit spans from")
        kept = min(len(base), spans)
        leaves[:kept] = base[:kept]
        sizes = (transfer.base.manifest.image_bytes, transfer.opened.image_bytes)
        missing = np.zeros(spans, dtype=np.bool_)
        missing[len(base) :] = True
        if sizes[0] != sizes[1]:
            missing[spans_of(min(sizes)) - 1] = True  # its length differs between the two
        missing &= ~covered
    else:
        missing = ~covered
    if missing.any():
        raise InvalidRequest(
            f"{int(missing.sum())} of {spans} spans were neither offered nor inherited",
            next_step="open the transfer again and offer what durable_spans does not list",
        )
    leaves[covered] = state.leaves[covered]
    return leaves


def _write_nodes(transfer: Transfer, leaves: Leaves, writer: _NodeWriter) -> Fingerprint:
    """Store every node that the index does not know; returns the root."""
    state = transfer.log.state
    own = np.flatnonzero(state.covered & state.leaves.any(axis=1))
    known = transfer.store.contains(transfer.tenant, state.leaves[own].tobytes())
    absent = set(own[~known].tolist())
    if absent:
        writer.write(
            (Fingerprint(state.leaves[span].tobytes()), encode_leaf(lengths, fingerprints))
            for span, lengths, fingerprints in transfer.log.iter_leaves()
            if span in absent
        )
    opened = transfer.opened
    nodes = list(
        build(leaves, image_bytes=opened.image_bytes, segmentation=opened.segmentation, key=transfer.key)
    )
    present = transfer.store.contains(transfer.tenant, b"".join(node[0] for node in nodes))
    writer.write(node for node, known_node in zip(nodes, present, strict=True) if not known_node)
    writer.finish()
    return nodes[-1][0]


class _NodeWriter:
    """Packs nodes into node containers, each once."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._buffer: ContainerBuffer | None = None
        self._written: set[Fingerprint] = set()
        self.bytes_stored = 0

    def write(self, nodes: Iterable[tuple[Fingerprint, bytes]]) -> None:
        for frame in _frames(self._fresh(nodes)):
            sizes = np.array([len(node) for _, node in frame], dtype=np.uint32)
            self._room_for(len(frame), int(sizes.sum())).append_frame(
                fingerprints=b"".join(fingerprint for fingerprint, _ in frame),
                stored_bytes=sizes,
                plain_bytes=sizes,
                codecs=np.full(len(frame), Codec.PLAIN, dtype=np.uint8),
                payload=[node for _, node in frame],
            )

    def _fresh(self, nodes: Iterable[tuple[Fingerprint, bytes]]) -> Iterator[tuple[Fingerprint, bytes]]:
        for fingerprint, node in nodes:
            if fingerprint not in self._written:
                self._written.add(fingerprint)
                yield fingerprint, node

    def _room_for(self, count: int, payload_bytes: int) -> ContainerBuffer:
        if self._buffer is not None and not self._buffer.fits(count, payload_bytes):
            self.finish()
        if self._buffer is None:
            transfer = self._transfer
            self._buffer = transfer.store.containers.acquire(
                tenant=transfer.tenant, key_id=transfer.key.key_id, kind=Kind.NODES
            )
        return self._buffer

    def finish(self) -> None:
        """Seal and index what is packed (M1)."""
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self.bytes_stored += self._transfer.store.seal_queue.seal_now(buffer).file_bytes


def _frames(nodes: Iterator[tuple[Fingerprint, bytes]]) -> Iterator[list[tuple[Fingerprint, bytes]]]:
    frame: list[tuple[Fingerprint, bytes]] = []
    for node in nodes:
        frame.append(node)
        if len(frame) == NODES_PER_FRAME:
            yield frame
            frame = []
    if frame:
        yield frame


def _recheck(transfer: Transfer, inherit: bool) -> None:
    """Void spans that rest on a segment which is gone (M3)."""
    if inherit and not transfer.base_is_whole():
        raise Conflict(
            "the base lost a segment meanwhile",
            subject=f"transfer {transfer.transfer_id}",
            next_step="open the transfer again and read the whole disk",
        )
    lost_count = transfer.void_lost()
    if lost_count:
        raise Conflict(
            f"{lost_count} spans rest on segments that were lost meanwhile",
            subject=f"transfer {transfer.transfer_id}",
            next_step="open the transfer again: those spans are offered anew",
        )


def _manifest(transfer: Transfer, root: Fingerprint, figures: Figures, clock: Clock) -> ImageManifest:
    grant, opened = transfer.grant, transfer.opened
    return ImageManifest(
        # The image bears its transfer's id: a replayed commit can make it only once.
        image_id=ImageId(grant.transfer_id),
        name=grant.image_name,
        tenant=grant.tenant,
        tenant_name=grant.tenant_name,
        root=root,
        image_bytes=opened.image_bytes,
        segmentation=opened.segmentation,
        key_id=transfer.key.key_id,
        source_state=opened.source_state,
        base_image_id=grant.base_image_id,
        committed_at_ns=clock.wall_ns(),
        transfer_id=grant.transfer_id,
        figures={name: getattr(figures, name) for name in Figures.__slots__},
    )
