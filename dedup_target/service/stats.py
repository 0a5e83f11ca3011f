"""Edge: sizes and counts of a target, and of each of its units."""

from __future__ import annotations

import grpc

from arraylift.v1 import target_admin_pb2 as pb
from arraylift.v1 import target_admin_pb2_grpc as pb_grpc
from dedup_target.lock_clock import LockClock
from dedup_target.segment_index import IndexTotals
from dedup_target.store import Store
from dedup_target.transfers import Transfers
from dedup_target.units import Member


class StatsEdge(pb_grpc.TargetAdminServiceServicer):
    """GetTargetStats."""

    _store: Store
    _transfers: Transfers
    _lock_clock: LockClock

    def GetTargetStats(
        self, request: pb.GetTargetStatsRequest, context: grpc.ServicerContext
    ) -> pb.GetTargetStatsResponse:
        store = self._store
        images, opened = store.manifests.all(), list(store.units.open_units())
        units = [_unit_stats(member) for member in store.units.members]
        lock_time = self._lock_clock.now()
        return pb.GetTargetStatsResponse(
            image_count=len(images),
            logical_bytes=sum(image.image_bytes for image in images),
            segment_count=sum(unit.segment_count for unit in units),
            container_count=sum(unit.container_count for unit in units),
            container_bytes=sum(unit.container_bytes for unit in units),
            plain_bytes=sum(unit.plain_bytes for unit in units),
            free_bytes=store.free_bytes(),
            open_transfer_count=self._transfers.open_count,
            quarantined_count=sum(unit.quarantine.record_count for unit in opened),
            reserve_bytes=store.reserve.low_water_bytes,
            below_reserve=store.reserve.is_low(),
            condemned_bytes=sum(unit.condemned_bytes() for unit in opened),
            lock_clock_ns=lock_time.time_ns,
            lock_clock_lags=lock_time.lags,
            cache_bytes=sum(unit.containers.stats().cache_bytes for unit in opened),
            units=units,
        )


def _unit_stats(member: Member) -> pb.UnitStats:
    """Of an absent unit: what its replica knows."""
    unit = member.unit
    totals = unit.index.totals() if unit is not None else IndexTotals()
    return pb.UnitStats(
        unit=member.entry.name,
        image_count=len(member.manifests.all()),
        segment_count=totals.record_count,
        container_count=totals.container_count,
        container_bytes=totals.file_bytes,
        plain_bytes=totals.plain_bytes,
        free_bytes=0 if unit is None or member.problem else unit.backend.free_bytes() or 0,
        absent=bool(member.problem),
    )
