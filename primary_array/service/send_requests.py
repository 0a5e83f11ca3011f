"""Edge: what is asked to be sent, checked and taken apart.

Callers: backup_logic, gRPC's threads.
"""

from __future__ import annotations

import numpy as np

from arraylift.errors import InvalidRequest
from arraylift.exchange import convert as shared
from arraylift.ids import GRANT_BYTES, SnapshotId, TransferId, check_id
from arraylift.nbd.client_tls import ClientCredentials, house_credentials
from arraylift.nbd.uri import parse_uri
from arraylift.pki import TlsMaterial
from arraylift.rpc.address import split_address
from arraylift.v1 import backup_logic_pb2 as pb
from primary_array.change_sources import ChangeRequest, Supplied
from primary_array.change_types import ChangeSource
from primary_array.doubt_table import DoubtTable
from primary_array.foreign_disk import Bitmap, ForeignSource
from primary_array.pool import Pool
from primary_array.send import SendRequest
from primary_array.snapshot_disk import SnapshotSource

PEM_BYTES_MAX = 64 << 10

_ASKED = {
    pb.ChangeSource.CHANGE_SOURCE_UNSPECIFIED: ChangeSource.ANY,
    pb.ChangeSource.CHANGE_SOURCE_BIRTHS: ChangeSource.BIRTHS,
    pb.ChangeSource.CHANGE_SOURCE_FULL_READ: ChangeSource.FULL_READ,
    pb.ChangeSource.CHANGE_SOURCE_DIFF: ChangeSource.DIFF,
    pb.ChangeSource.CHANGE_SOURCE_SUPPLIED: ChangeSource.SUPPLIED,
}
TOLD = {
    **{source: number for number, source in _ASKED.items()},
    ChangeSource.BITMAP: pb.ChangeSource.CHANGE_SOURCE_BITMAP,
}


def send_request(request: pb.SendSnapshotRequest | pb.SendForeignDiskRequest) -> SendRequest:
    """What both kinds of sending need."""
    if len(request.grant) != GRANT_BYTES:
        raise InvalidRequest("a grant has 32 bytes", next_step="get one by TargetAdminService.CreateGrant")
    split_address(request.target_address)
    return SendRequest(
        transfer_id=TransferId(check_id(request.transfer_id, "transfer id")),
        target_address=request.target_address,
        grant=request.grant,
        patience_seconds=shared.patience_from_pb(request.patience_seconds),
    )


def snapshot_source(request: pb.SendSnapshotRequest, pool: Pool) -> SnapshotSource:
    """A snapshot of the pool."""
    if request.change_source not in _ASKED:
        raise InvalidRequest(f"change source {request.change_source} cannot be asked for")
    snapshot_id = SnapshotId(check_id(request.snapshot_id, "snapshot id"))
    return SnapshotSource(pool, snapshot_id, _changes(request))


def foreign_source(request: pb.SendForeignDiskRequest, tls: TlsMaterial, doubts: DoubtTable) -> ForeignSource:
    """A disk behind somebody else's NBD server."""
    state = shared.state_from_pb(request.state)
    if state is None:
        raise InvalidRequest("say what the state that the export shows is to be called")
    bitmap = None
    if request.HasField("bitmap"):
        since = shared.state_from_pb(request.bitmap.since)
        if since is None:
            raise InvalidRequest("say since which state the bitmap counts")
        bitmap = Bitmap(request.bitmap.name, since)
    uri = parse_uri(request.uri)
    credentials = _credentials(request, tls) if uri.tls else None
    return ForeignSource(uri, credentials, state, bitmap, doubts)


def _credentials(request: pb.SendForeignDiskRequest, tls: TlsMaterial) -> ClientCredentials:
    if not request.HasField("credentials"):
        return house_credentials(tls)
    given = request.credentials
    if max(len(given.ca_pem), len(given.certificate_pem), len(given.key_pem)) > PEM_BYTES_MAX:
        raise InvalidRequest(f"a PEM has at most {PEM_BYTES_MAX:,} bytes")
    if not given.ca_pem or bool(given.certificate_pem) != bool(given.key_pem):
        raise InvalidRequest("give a CA, and certificate and key both or neither")
    return ClientCredentials(given.ca_pem, given.certificate_pem, given.key_pem)


def _changes(request: pb.SendSnapshotRequest) -> ChangeRequest:
    diff_base = request.diff_base_snapshot_id
    supplied = None
    if request.HasField("supplied"):
        since = shared.state_from_pb(request.supplied.since)
        if since is None:
            raise InvalidRequest("say since which state the supplied changes hold")
        packed = [np.frombuffer(part, "<u8") for part in _whole(request.supplied)]
        supplied = Supplied(since, *(part.astype(np.uint64) for part in packed))
    return ChangeRequest(
        _ASKED[request.change_source],
        SnapshotId(check_id(diff_base, "diff base")) if diff_base else None,
        supplied,
    )


def _whole(supplied: pb.SuppliedChanges) -> tuple[bytes, bytes]:
    if len(supplied.offsets) % 8 or len(supplied.lengths) % 8:
        raise InvalidRequest("offsets and lengths are packed 8 bytes each")
    return supplied.offsets, supplied.lengths
