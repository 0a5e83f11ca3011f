"""Edge: the host agent's own values to and from messages; VMs are in ``arraylift.vm.convert``."""

from __future__ import annotations

from arraylift.v1 import vm_pb2 as pb
from hostagent.vm_types import GuestFile


def file_to_pb(file: GuestFile) -> pb.GuestFile:
    return pb.GuestFile(
        path=file.path,
        size_bytes=file.size_bytes,
        mode=file.mode,
        uid=file.uid,
        gid=file.gid,
        modified_at_ns=file.modified_at_ns,
    )
