"""Composition root of the dedup target: ``python -m dedup_target``."""

from __future__ import annotations

import sys
import threading
from functools import partial

from arraylift import config

config.quiet_grpc()

from arraylift import daemon
from arraylift.clock import SYSTEM_CLOCK
from arraylift.durable import RealFiles
from arraylift.exchange.edge import exchange_service
from arraylift.exchange.messages import Limits
from arraylift.exchange.peers import ExchangePeers
from arraylift.pki import TlsMaterial
from arraylift.rpc.server import Service, service_of
from arraylift.v1 import image_pb2_grpc, target_admin_pb2_grpc
from dedup_target.backups import Backups
from dedup_target.collect import CollectOptions, Collector
from dedup_target.config import TargetSettings
from dedup_target.container_store import ContainerLimits
from dedup_target.doubt import settle_doubt
from dedup_target.housekeeping import Housekeeping
from dedup_target.image_reader import ImageReader
from dedup_target.ingest import Ingest
from dedup_target.local_ingest import LocalIngest
from dedup_target.lock_clock import LockClock
from dedup_target.mark import LiveTransfers, NoTransfers
from dedup_target.move_images import Mover
from dedup_target.rebuild_unit import UnitRebuilder
from dedup_target.reserve import BALLAST_AT_START_BYTES_MAX, Reserve
from dedup_target.scrub import Scrub
from dedup_target.scrubs import Scrubs
from dedup_target.send_image import ImageSender
from dedup_target.service.admin import AdminEdge
from dedup_target.service.images import ImageEdge
from dedup_target.storage_unit import StorageUnit
from dedup_target.store import Store
from dedup_target.survey import Surveyor
from dedup_target.transfers import Transfers
from dedup_target.unit_admin import UnitAdmin
from dedup_target.verify_image import ImageVerifier, lost_images

RESERVE_SECONDS = 30.0
SCRUB_SECONDS = 300.0
"""How often it is looked whether a period is due; one that has begun goes on to its end."""
MEND_SECONDS = 60.0
"""How often it is looked whether a read met damage in the index."""
UNITS_SECONDS = 60.0
"""How often it is looked whether units can be reached."""
REPLICAS_SECONDS = 600.0
"""How often replicas of metadata are looked after, besides after each change."""
ARCHIVE_SECONDS = 3600.0
"""How often it is looked which images are old enough to be moved."""
DAY_SECONDS = 24 * 3600
LOCK_CLOCK_SECONDS = 60.0
"""How often it is looked at, so that a jump is told when it happens."""


def _collecting(store: Store, transfers: Transfers) -> tuple[Collector, Surveyor]:
    def live(unit: StorageUnit) -> LiveTransfers:
        return transfers if unit is store.unit else NoTransfers()

    return Collector(live, SYSTEM_CLOCK), Surveyor(store.units.reachable, live)


def _opened(files: RealFiles, state: str, settings: TargetSettings) -> tuple[Store, Reserve]:
    limits = ContainerLimits(cache_bytes_max=settings.container_cache_bytes)
    reserve = Reserve(files, state, low_water_bytes=settings.reserve_bytes)
    # A full disk must not stop a start: who else could delete?
    store = reserve.with_room(
        lambda: Store(files, state, limits=limits, files_for=RealFiles, reserve=reserve)
    )
    reserve.tend(size_bytes_max=BALLAST_AT_START_BYTES_MAX)
    return store, reserve


def _keep_units(
    house: Housekeeping,
    settings: TargetSettings,
    store: Store,
    *,
    collector: Collector,
    scrubs: Scrubs,
    mover: Mover,
    rebuilder: UnitRebuilder,
) -> None:
    """Work on the units that comes round."""

    def collect(stopping: threading.Event) -> None:
        options = CollectOptions(bytes_per_second_max=settings.gc_bytes_per_second, gentle=True)
        collector.collect_all(store.units.reachable(), options, stopping)

    def scrub(stopping: threading.Event) -> None:
        scrubs.run_in_background(store.units.reachable(), stopping, period_days=settings.scrub_days)

    def archive(stopping: threading.Event) -> None:
        mover.finish(stopping)
        if settings.archive_after_days > 0:
            mover.archive("", older_than_seconds=settings.archive_after_days * DAY_SECONDS, stopping=stopping)

    def mend(stopping: threading.Event) -> None:
        for unit in store.units.reachable():
            rebuilder.mend(unit, stopping)

    house.add("index", MEND_SECONDS, mend)
    house.add("garbage-collection", settings.gc_interval_hours * 3600.0, collect)
    if settings.scrub_days > 0:
        house.add("scrub", SCRUB_SECONDS, scrub)
    house.add("units", UNITS_SECONDS, lambda _stopping: store.units.look_after())
    house.add("archive", ARCHIVE_SECONDS, archive)
    house.add("replicas", REPLICAS_SECONDS, store.replicas.catch_up)
    store.replica_journal.wake = partial(house.run_soon, "replicas")


def _exchange(transfers: Transfers) -> Service:
    return exchange_service(
        lambda opening, peer: Ingest(transfers.find(opening, role=peer.role, name=peer.name), SYSTEM_CLOCK)
    )


def build(settings: TargetSettings, tls: TlsMaterial) -> daemon.Built:
    """Open the unit, load transfers, join the services to them."""
    files, state = RealFiles(), str(settings.state.expanduser().absolute())
    store, reserve = _opened(files, state, settings)
    images = ImageReader(store)
    newest = max((image.committed_at_ns for image in store.manifests.all()), default=None)
    lock_clock = reserve.with_room(lambda: LockClock(files, state, SYSTEM_CLOCK, newest_image_ns=newest))
    transfers = Transfers(
        store, images, limits=Limits(), lease_seconds=settings.lease_seconds, clock=SYSTEM_CLOCK
    )
    peers = ExchangePeers(tls, "array")
    sender = ImageSender(store, images, open_stream=peers.open_stream, clock=SYSTEM_CLOCK)
    stopping = threading.Event()
    doubter = threading.Thread(target=settle_doubt, args=(store, images, stopping), name="doubt")
    doubter.start()

    scrubs = Scrubs(lambda unit: Scrub(unit, files, state, SYSTEM_CLOCK, affected=partial(lost_images, unit)))
    verifier = ImageVerifier(store, scrubs.of, SYSTEM_CLOCK)

    backups = Backups(store, images, lock_clock)
    mover = Mover(store, images, bases=lambda: transfers.bases, clock=SYSTEM_CLOCK)
    unit_admin = UnitAdmin(
        store, images, backups=backups, transfers=transfers, mover=mover, lock_clock=lock_clock
    )
    collector, surveyor = _collecting(store, transfers)

    house = Housekeeping()
    house.add("reserve", RESERVE_SECONDS, lambda _stopping: reserve.tend())
    house.add("lock-clock", LOCK_CLOCK_SECONDS, lambda _stopping: lock_clock.tick())
    rebuilder = UnitRebuilder(store, images)
    _keep_units(house, settings, store, collector=collector, scrubs=scrubs, mover=mover, rebuilder=rebuilder)
    house.start()
    house.run_soon("units")

    def close() -> None:
        stopping.set()
        house.close()
        doubter.join()
        peers.close()
        transfers.close()
        store.close()

    local = LocalIngest(store, images, transfers, SYSTEM_CLOCK)
    services = [
        service_of(
            image_pb2_grpc.add_ImageServiceServicer_to_server,
            ImageEdge(store, images, sender, backups, verifier, surveyor, local),
        ),
        service_of(
            target_admin_pb2_grpc.add_TargetAdminServiceServicer_to_server,
            AdminEdge(
                store,
                transfers,
                lock_clock=lock_clock,
                scrubs=scrubs,
                collector=collector,
                surveyor=surveyor,
                unit_admin=unit_admin,
                mover=mover,
                rebuilder=rebuilder,
            ),
        ),
        _exchange(transfers),
    ]
    return daemon.Built(services, close)


if __name__ == "__main__":
    sys.exit(daemon.run("target", TargetSettings, build))
