"""Composition root of the primary array: ``python -m primary_array``."""

from __future__ import annotations

import sys

from arraylift import config

config.quiet_grpc()

from arraylift import daemon
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest
from arraylift.exchange.edge import exchange_service
from arraylift.exchange.messages import Limits
from arraylift.exchange.peers import ExchangePeers
from arraylift.grants import load_grant_secret
from arraylift.pki import TlsMaterial
from arraylift.rpc.server import service_of
from arraylift.sizes import MIB
from arraylift.v1 import backup_logic_pb2_grpc, volume_pb2_grpc
from primary_array.config import ArraySettings
from primary_array.doubt_table import DoubtTable
from primary_array.exports import ArrayExports
from primary_array.nbd_service import NbdService
from primary_array.pool import Pool
from primary_array.restores import Restores
from primary_array.send import Sender
from primary_array.service.backup_logic import BackupLogicEdge
from primary_array.service.volumes import VolumeEdge
from primary_array.worker_pool import WorkerPool

RESTORE_LIMITS = Limits(undurable_bytes_max=512 * MIB)
"""Twice what a restore writes between two progress notes, so that the sender never waits for one."""


def build(settings: ArraySettings, tls: TlsMaterial) -> daemon.Built:
    """Open the pool, start the workers, join the services to them."""
    if not 1 <= settings.send_workers <= 16:
        raise InvalidRequest(f"send_workers is 1 to 16, not {settings.send_workers}")
    files, state = RealFiles(), str(settings.state.expanduser().absolute())
    pool = Pool.open(files, state, background=True)
    workers = WorkerPool(settings.send_workers)
    restores = Restores(pool, load_grant_secret(files, state), clock=SYSTEM_CLOCK, limits=RESTORE_LIMITS)
    peers = ExchangePeers(tls, "target")
    exports = ArrayExports(
        pool, files, state, connections_per_caller=max(1, settings.nbd_connections * 3 // 4)
    )
    nbd = NbdService(settings, tls, exports, files)
    backup_logic = BackupLogicEdge(
        Sender(workers, tls=tls, open_stream=peers.open_stream), pool, tls, DoubtTable(files, state)
    )

    def close() -> None:
        nbd.stop()
        exports.close()
        backup_logic.close()
        restores.close()
        peers.close()
        workers.close()
        pool.close()

    services = [
        service_of(
            volume_pb2_grpc.add_VolumeServiceServicer_to_server, VolumeEdge(pool, restores, exports, nbd.uri)
        ),
        service_of(backup_logic_pb2_grpc.add_BackupLogicServiceServicer_to_server, backup_logic),
        exchange_service(lambda opening, peer: restores.find(opening, role=peer.role, name=peer.name)),
    ]
    return daemon.Built(services, close)


if __name__ == "__main__":
    sys.exit(daemon.run("array", ArraySettings, build))
