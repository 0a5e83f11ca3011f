"""Composition root of the backup server: ``python -m backup_server``."""

from __future__ import annotations

import dataclasses
import sys

from arraylift import config

config.quiet_grpc()

from arraylift import daemon
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.errors import InvalidRequest
from arraylift.pki import TlsMaterial
from arraylift.rpc.server import service_of
from arraylift.v1 import backup_pb2_grpc, catalog_pb2_grpc, policy_pb2_grpc
from backup_server.catalog import browse
from backup_server.config import ServerSettings
from backup_server.job_rules import Pacing
from backup_server.job_turns import LIMIT_MAX, Limits
from backup_server.peers import GrpcPeers
from backup_server.server import BackupServer
from backup_server.service.backup import BackupEdge
from backup_server.service.catalog import CatalogEdge, CatalogQueryEdge
from backup_server.service.file_restores import FileRestoreEdge
from backup_server.service.policies import PolicyEdge


def build(settings: ServerSettings, tls: TlsMaterial) -> daemon.Built:
    """Open the database, resume jobs, join the service to it all."""
    if not 1 <= settings.patience_seconds <= 24 * 3600:
        raise InvalidRequest(f"patience_seconds is 1 to 86400, not {settings.patience_seconds}")
    limits = Limits(
        running=settings.jobs_running_max,
        per_host=settings.jobs_per_host_max,
        per_array=settings.jobs_per_array_max,
        per_target=settings.jobs_per_target_max,
    )
    for one in dataclasses.fields(limits):
        if not 1 <= getattr(limits, one.name) <= LIMIT_MAX:
            raise InvalidRequest(f"jobs_{one.name}_max is 1 to {LIMIT_MAX}, not {getattr(limits, one.name)}")
    peers = GrpcPeers(tls)
    server = BackupServer(
        RealFiles(),
        str(settings.state.expanduser().absolute()),
        peers,
        center_address=settings.vcenter,
        clock=SYSTEM_CLOCK,
        pacing=dataclasses.replace(Pacing(), patience_seconds=settings.patience_seconds),
        limits=limits,
        cataloguing=settings.catalog,
    )
    server.start()
    edge = BackupEdge(
        server.engine, server.orders, server.backups, server.registry, peers=peers, browser=browse
    )
    policies = PolicyEdge(server.policies, server.policy_runs, server.reports, server.registry, SYSTEM_CLOCK)
    catalog = CatalogEdge(
        CatalogQueryEdge(server.cataloguing, server.backups),
        FileRestoreEdge(server.disks, browse, server.orders),
    )
    services = [
        service_of(backup_pb2_grpc.add_BackupServiceServicer_to_server, edge),
        service_of(catalog_pb2_grpc.add_CatalogServiceServicer_to_server, catalog),
        service_of(policy_pb2_grpc.add_PolicyServiceServicer_to_server, policies),
    ]
    return daemon.Built(services, lambda: server.close(peers.close))


if __name__ == "__main__":
    sys.exit(daemon.run("server", ServerSettings, build))
