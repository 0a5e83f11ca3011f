"""Commit a transfer: nodes, re-check, manifest. The only place where images come to be.

Invariants:
  M1 the order of law 1: data containers are sealed and indexed (ingest), then nodes here,
     then the manifest; a crash between any two leaves no image or the whole one.
  M2 every span is covered: offered, durable from an earlier attempt, or inherited.
  M3 if anything was condemned, quarantined or removed since the attempt promised what is
     present, every reused fingerprint is looked up again, under the lock that guards
     condemning; what is gone is voided and the sender asked to resume (law 7).
  M4 only the lane's own attempt commits, and no newer one begins before the log says so.
  M5 of a base's nodes only those above changes are read and built anew; the others are what
     its root promises (REF), which nothing is believed to do once something may be lost.
Callers: the handler thread of the lane that sent Commit, alone on its transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from arraylift.clock import Clock
from arraylift.errors import Conflict, Corruption, InvalidRequest
from arraylift.exchange.messages import Commit, Committed, Figures, Flags
from arraylift.ids import Fingerprint, ImageId
from arraylift.logs import get_logger
from arraylift.segments.codecs import Codec
from arraylift.segments.tree import Leaves, build, encode_leaf, holes_of, no_leaves
from arraylift.segments.tree_update import update
from arraylift.segments.tree_view import TreeView
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
    _check_covered(transfer, message.inherit_base)
    with _NodeWriter(transfer, attempt) as writer:
        return _commit(transfer, attempt, message, clock, writer)


def _commit(
    transfer: Transfer, attempt: Attempt, message: Commit, clock: Clock, writer: _NodeWriter
) -> Committed:
    store, inherit = transfer.store, message.inherit_base
    root = _write_nodes(transfer, inherit, writer, whole=not store.all_healthy)
    # In this order: an Open holds its transfer's lock while a damaged base is condemned.
    with transfer.lock, store.commit_lock:
        attempt.check()  # M4
        if store.generation != attempt.generation:
            _recheck(transfer, attempt, inherit)
            root = _write_nodes(transfer, inherit, writer, whole=True)  # those that are gone, once more
        figures = message.figures
        figures.bytes_stored = transfer.bytes_stored + writer.bytes_stored
        manifest = _manifest(transfer, root, figures, clock)
        store.unit.manifests.publish(manifest)
        receipt = {name: getattr(figures, name) for name in Figures.__slots__}
        transfer.log.append_committed(CommittedTransfer(root, manifest.image_id, receipt))
        transfer.log.sync()
    attempt.pins.release()
    _log.info("image_committed", image=manifest.image_id, name=manifest.name, root=root.hex(), **receipt)
    return Committed(root, manifest.image_id, figures)


def _check_covered(transfer: Transfer, inherit: bool) -> None:
    """Raise InvalidRequest unless every span is offered or inherited (M2)."""
    covered, image_bytes = transfer.log.state.covered, transfer.opened.image_bytes
    missing = ~covered
    if inherit:
        base = transfer.base_tree
        if base is None:
            raise InvalidRequest("the transfer has no base to inherit spans from")
        missing[: base.spans] = False
        if base.info.image_bytes != image_bytes:
            last = spans_of(min(base.info.image_bytes, image_bytes)) - 1
            missing[last] = not covered[last]  # its length differs between the two
    if missing.any():
        raise InvalidRequest(
            f"{int(missing.sum())} of {len(covered)} spans were neither offered nor inherited",
            next_step="open the transfer again and offer what durable_spans does not list",
        )


def _write_nodes(transfer: Transfer, inherit: bool, writer: _NodeWriter, *, whole: bool) -> Fingerprint:
    """Store every node that the index does not know; returns the root.

    Inner nodes above unchanged spans are the base's, unless ``whole`` has all of them built and
    looked up (M5).
    """
    state = transfer.log.state
    covered = np.flatnonzero(state.covered)
    rows = state.leaves[covered]
    own = covered[~holes_of(rows)]
    known = writer.present(state.leaves[own].tobytes())
    absent = set(own[~known].tolist())
    if absent:
        writer.write(_leaves_of(transfer, absent))
    opened, base = transfer.opened, transfer.base_tree if inherit else None
    with transfer.believing_base():
        if base is None or whole:
            leaves, how = _joined(transfer, base), opened.segmentation
            made = build(leaves, image_bytes=opened.image_bytes, segmentation=how, key=transfer.key)
        else:
            size = opened.image_bytes
            made = update(base, image_bytes=size, changed=covered, leaves=rows, key=transfer.key)
        nodes = list(made)
    present = writer.present(b"".join(node[0] for node in nodes))
    writer.write(node for node, known_node in zip(nodes, present, strict=True) if not known_node)
    writer.finish()
    return nodes[-1][0]


def _leaves_of(transfer: Transfer, spans: set[int]) -> Iterator[tuple[Fingerprint, bytes]]:
    """The leaves of offered spans, read back from the log. Raises Corruption."""
    state, key = transfer.log.state, transfer.key
    for span, lengths, fingerprints in transfer.log.iter_leaves():
        if span in spans:
            leaf = encode_leaf(lengths, fingerprints)
            fingerprint = key.node(leaf)
            if fingerprint != state.leaves[span].tobytes():
                raise Corruption(
                    f"the log of transfer {transfer.transfer_id} does not hold the leaf of span {span}",
                    subject=f"transfer {transfer.transfer_id}",
                    next_step="repeat the transfer under another id",
                )
            yield fingerprint, leaf


def _joined(transfer: Transfer, base: TreeView | None) -> Leaves:
    """The leaves of all spans, offered and inherited."""
    state = transfer.log.state
    if base is None:
        return state.leaves
    leaves = no_leaves(len(state.covered))
    kept = min(base.spans, len(leaves))
    leaves[:kept] = base.leaves_of(0, kept)
    leaves[state.covered] = state.leaves[state.covered]
    return leaves


class _NodeWriter:
    """Packs nodes into node containers, each once."""

    def __init__(self, transfer: Transfer, attempt: Attempt) -> None:
        self._transfer = transfer
        self._attempt = attempt
        self._containers, self._seal_queue = transfer.store.containers, transfer.store.seal_queue
        self._buffer: ContainerBuffer | None = None
        self._written: set[Fingerprint] = set()
        self.bytes_stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what a failure left unsealed: its buffer is one of few."""
        if self._buffer is not None:
            self._containers.release(self._buffer)
            self._buffer = None

    def present(self, packed: bytes) -> Flags:
        """Which nodes need not be written; they stay until the attempt ends (law 7)."""
        return self._transfer.store.present(self._transfer.tenant, packed, self._attempt.pins)

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
            self._seal()
        if self._buffer is None:
            transfer = self._transfer
            self._buffer = self._containers.acquire(
                tenant=transfer.tenant, key_id=transfer.key.key_id, kind=Kind.NODES
            )
            self._attempt.pins.add([self._buffer.container_id])
        return self._buffer

    def finish(self) -> None:
        """Seal and index what is packed (M1). From now on the index answers for it, and nobody else: it
        may be lost as everything may, and is written again then."""
        self._seal()
        self._written.clear()

    def _seal(self) -> None:
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self.bytes_stored += self._seal_queue.seal_now(buffer).file_bytes


def _frames(nodes: Iterator[tuple[Fingerprint, bytes]]) -> Iterator[list[tuple[Fingerprint, bytes]]]:
    frame: list[tuple[Fingerprint, bytes]] = []
    for node in nodes:
        frame.append(node)
        if len(frame) == NODES_PER_FRAME:
            yield frame
            frame = []
    if frame:
        yield frame


def _recheck(transfer: Transfer, attempt: Attempt, inherit: bool) -> None:
    """Void spans that rest on a segment which is gone (M3)."""
    if inherit and not transfer.base_is_whole():
        raise Conflict(
            "the base lost a segment meanwhile",
            subject=f"transfer {transfer.transfer_id}",
            next_step="open the transfer again and read the whole disk",
        )
    lost_count = transfer.void_lost(attempt.pins)
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
