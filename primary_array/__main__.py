"""Composition root of the primary array: ``python -m primary_array``."""

from __future__ import annotations

import sys

from arraylift import config

config.quiet_grpc()

from arraylift import daemon  # noqa: E402
from arraylift.clock import SYSTEM_CLOCK  # noqa: E402
from arraylift.durable import RealFiles  # noqa: E402
from arraylift.errors import InvalidRequest  # noqa: E402
from arraylift.exchange.messages import Limits  # noqa: E402
from arraylift.exchange.peers import ExchangePeers  # noqa: E402
from arraylift.pki import TlsMaterial  # noqa: E402
from arraylift.rpc.server import service_of  # noqa: E402
from arraylift.v1 import backup_logic_pb2_grpc, volume_pb2_grpc  # noqa: E402
from primary_array.config import ArraySettings  # noqa: E402
from primary_array.pool import Pool  # noqa: E402
from primary_array.restores import Restores  # noqa: E402
from primary_array.send import Sender  # noqa: E402
from primary_array.service.backup_logic import BackupLogicEdge  # noqa: E402
from primary_array.service.exchange import exchange_service  # noqa: E402
from primary_array.service.volumes import VolumeEdge  # noqa: E402
from primary_array.worker_pool import WorkerPool  # noqa: E402


def build(settings: ArraySettings, tls: TlsMaterial) -> daemon.Built:
    """Open the pool, start the workers, join the services to them."""
    if not 1 <= settings.send_workers <= 16:
        raise InvalidRequest(f"send_workers is 1 to 16, not {settings.send_workers}")
    pool = Pool.open(RealFiles(), str(settings.state.expanduser().absolute()))
    workers = WorkerPool(settings.send_workers)
    restores = Restores(pool, clock=SYSTEM_CLOCK, limits=Limits())
    peers = ExchangePeers(tls, "target")
    backup_logic = BackupLogicEdge(Sender(pool, workers, tls=tls, open_stream=peers.open_stream))

    def close() -> None:
        backup_logic.close()
        restores.close()
        peers.close()
        workers.close()
        pool.close()

    services = [
        service_of(volume_pb2_grpc.add_VolumeServiceServicer_to_server, VolumeEdge(pool, restores)),
        service_of(backup_logic_pb2_grpc.add_BackupLogicServiceServicer_to_server, backup_logic),
        exchange_service(restores),
    ]
    return daemon.Built(services, close)


if __name__ == "__main__":
    sys.exit(daemon.run("array", ArraySettings, build))
