"""Numbers and structures of the NBD protocol, as its document has them; big-endian throughout.

Owns: what a byte on the wire means, nothing of what follows from it.
Callers: any. Protocol: docs/protocols/nbd.md
"""

from __future__ import annotations

import struct
from typing import Final

# -- negotiation --------------------------------------------------------------------------------

GREETING_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE: Final = 1
FLAG_NO_ZEROES: Final = 2

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
"""Set in every reply that refuses."""
REP_ERR_UNSUP: Final = 0x80000001
REP_ERR_POLICY: Final = 0x80000002
REP_ERR_INVALID: Final = 0x80000003
REP_ERR_TLS_REQD: Final = 0x80000005
REP_ERR_UNKNOWN: Final = 0x80000006
REP_ERR_SHUTDOWN: Final = 0x80000007
REP_ERR_TOO_BIG: Final = 0x80000009

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# -- transmission -------------------------------------------------------------------------------

HAS_FLAGS: Final = 1 << 0
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_FUA: Final = 1 << 3
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
SEND_DF: Final = 1 << 7
CAN_MULTI_CONN: Final = 1 << 8
SEND_CACHE: Final = 1 << 10
SEND_FAST_ZERO: Final = 1 << 11

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

CHUNK_DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_DATA: Final = 1
CHUNK_HOLE: Final = 2
CHUNK_STATUS: Final = 5
CHUNK_IS_ERROR: Final = 1 << 15
CHUNK_ERROR: Final = 0x8001
CHUNK_ERROR_OFFSET: Final = 0x8002

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
STATE_CHANGED: Final = 1
"""Of our own contexts, and dirty in those of QEMU's bitmaps."""

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

# -- structures ---------------------------------------------------------------------------------

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
OPTION: Final = struct.Struct(">8sII")
"""IHAVEOPT, option, bytes of data that follow."""
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Magic, option, type of the reply, bytes that follow."""
EXPORT: Final = struct.Struct(">QH")
"""Size, transmission flags."""
BLOCK_SIZES: Final = struct.Struct(">III")
"""Smallest, preferred, largest payload."""
REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, flags, command, cookie, offset, length; a write's payload follows."""
SIMPLE: Final = struct.Struct(">IIQ")
"""Magic, error, cookie; a read's data follow where the error is 0."""
CHUNK: Final = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, bytes that follow."""
HOLE: Final = struct.Struct(">QI")
"""Offset, length."""
STATUS: Final = struct.Struct(">II")
"""Length, state."""
ERROR: Final = struct.Struct(">IH")
"""Error, bytes of text that follow; then, for CHUNK_ERROR_OFFSET, the offset."""

EXPORT_PADDING: Final = bytes(124)


def greeting() -> bytes:
    """Return what a server says first."""
    return GREETING_MAGIC + OPTION_MAGIC + U16.pack(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """Return one reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data
