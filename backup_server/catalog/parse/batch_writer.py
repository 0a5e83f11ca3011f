"""Pack entries into batches of bounded size.

Invariant: B1 a frame is sent when it holds RECORDS_MAX entries or FLUSH_BYTES, whichever comes first.
Used in the parser's process only. Format: ``batch_format``.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence

from backup_server.catalog import batch_format as form
from backup_server.catalog import frames
from backup_server.catalog.batch_format import ATTRIBUTES_BYTES_MAX, FLAW_BYTES_MAX, NO_DIRECTORY
from backup_server.catalog.parse.filesystem import Node
from backup_server.catalog.pieces import Piece

RECORDS_MAX = 4096
FLUSH_BYTES = 512 * 1024


class BatchWriter:
    """Collects entries; ``send`` gets whole frames."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._clear()

    def add(
        self,
        *,
        parent: int,
        name: bytes,
        node: Node,
        pieces: Sequence[Piece] = (),
        directory: int = NO_DIRECTORY,
    ) -> None:
        attributes = b"".join(
            form.ATTRIBUTE.pack(len(key), len(value)) + key + value for key, value in node.attributes
        )
        flaw = node.flaw
        if len(attributes) > ATTRIBUTES_BYTES_MAX:
            flaw = flaw or f"its attributes take {len(attributes)} bytes, more than is kept"
            attributes = b""
        flaw_bytes = flaw.encode("utf-8", "backslashreplace")[:FLAW_BYTES_MAX]
        literal = b"".join(piece.literal for piece in pieces)
        parts = (name, node.target, flaw_bytes, attributes, literal)
        major, minor = node.device
        self._records += form.RECORD.pack(
            parent, directory, node.mode, node.uid, node.gid, node.links, major, minor,
            len(pieces), len(literal), len(attributes), len(name), len(node.target), len(flaw_bytes), 0,
            node.size_bytes, node.number if node.inode < 0 else node.inode,
            node.modified_ns, node.changed_ns, node.accessed_ns, node.created_ns,
        )  # fmt: skip
        pack = form.PIECE.pack
        for piece in pieces:
            self._pieces += pack(piece.kind, piece.disk, 0, piece.offset, piece.length)
        for heap, part in zip(self._heaps, parts, strict=True):
            heap.extend(part)
        self._count += 1
        self._bytes += form.RECORD.size + form.PIECE.size * len(pieces) + sum(map(len, parts))
        if self._count >= RECORDS_MAX or self._bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._count:
            return
        heads = form.HEADS.pack(
            self._count, len(self._pieces) // form.PIECE.size, *(len(heap) for heap in self._heaps)
        )
        payload = b"".join((heads, self._records, self._pieces, *self._heaps))
        self._send(frames.frame(frames.FrameKind.BATCH, payload))
        self._clear()

    def _clear(self) -> None:
        self._count = self._bytes = 0
        self._records, self._pieces = bytearray(), bytearray()
        self._heaps = [bytearray() for _ in form.HEAPS]


def is_node_sound(node: Node) -> bool:
    """Say whether the parent would believe it: what a damaged inode may claim."""
    types = {
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFSOCK,
    }
    return (
        stat.S_IFMT(node.mode) in types
        and node.mode <= 0o177777
        and 0 <= node.size_bytes <= form.SIZE_BYTES_MAX
        and len(node.target) <= form.LINK_BYTES_MAX
        and b"\0" not in node.target
    )
