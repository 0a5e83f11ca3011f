"""Composition root of the virtual center: ``python -m vcenter``."""

from __future__ import annotations

import sys

from arraylift import config

config.quiet_grpc()

from arraylift import daemon
from arraylift.clock import SYSTEM_CLOCK, Clock
from arraylift.durable import RealFiles
from arraylift.pki import TlsMaterial
from arraylift.rpc.server import service_of
from arraylift.v1 import virtual_center_pb2_grpc
from vcenter.config import CenterSettings
from vcenter.inventory_store import InventoryStore
from vcenter.live_inventory import LiveInventory
from vcenter.migrate import Migrator
from vcenter.moves import Moves
from vcenter.peers import HostPeers
from vcenter.prepare_backup import BackupPreparer
from vcenter.provision import Provisioner
from vcenter.routing import Router
from vcenter.service.virtual_center import VirtualCenterEdge
from vcenter.watch import SilenceWatch, Watchers


def build(settings: CenterSettings, tls: TlsMaterial, *, clock: Clock = SYSTEM_CLOCK) -> daemon.Built:
    """Open the inventory, join the service to it, begin to watch for silent hosts."""
    directory = str(settings.state.expanduser().absolute())
    # A database that is begun anew must not repeat revisions that watchers of the old one know.
    store = InventoryStore(RealFiles(), directory, first_revision=clock.wall_ns() // 1_000_000)
    try:
        live = LiveInventory(store, clock)
        peers = HostPeers(tls)
        moves = Moves(store)
        router = Router(live, peers, moves)
        provisioner = Provisioner(router, store, moves, clock)
        migrator = Migrator(router, moves, provisioner, clock)
        watchers = Watchers(live)
        edge = VirtualCenterEdge(
            live=live,
            router=router,
            moves=moves,
            migrator=migrator,
            preparer=BackupPreparer(router, store),
            provisioner=provisioner,
            watchers=watchers,
            clock=clock,
        )
        silence = SilenceWatch(live)
        migrator.start()
    except BaseException:
        store.close()
        raise

    def close() -> None:
        watchers.close()
        silence.close()
        migrator.close()
        peers.close()
        migrator.join()
        store.close()

    service = service_of(virtual_center_pb2_grpc.add_VirtualCenterServiceServicer_to_server, edge)
    return daemon.Built([service], close)


if __name__ == "__main__":
    sys.exit(daemon.run("vcenter", CenterSettings, build))
