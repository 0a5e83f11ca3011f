"""Edge: the array's values to and from the generated classes."""

from __future__ import annotations

from arraylift.exchange import convert
from arraylift.v1 import volume_pb2 as pb
from primary_array.exports import ExportInfo
from primary_array.findings import Finding, Severity
from primary_array.pool_check import CheckNews
from primary_array.pool_types import PoolStats, SnapshotInfo, VolumeInfo

_SEVERITIES = {
    Severity.NOTE: pb.FindingSeverity.FINDING_SEVERITY_NOTE,
    Severity.WARNING: pb.FindingSeverity.FINDING_SEVERITY_WARNING,
    Severity.ERROR: pb.FindingSeverity.FINDING_SEVERITY_ERROR,
}


def volume_to_pb(info: VolumeInfo) -> pb.Volume:
    return pb.Volume(
        volume_id=info.volume_id,
        name=info.name,
        size_bytes=info.size_bytes,
        mapped_bytes=info.mapped_bytes,
        state=convert.state_to_pb(info.state),
        snapshot_count=info.snapshot_count,
        unique_bytes=info.unique_bytes,
    )


def snapshot_to_pb(info: SnapshotInfo) -> pb.Snapshot:
    return pb.Snapshot(
        snapshot_id=info.snapshot_id,
        volume_id=info.volume_id,
        volume_name=info.volume_name,
        name=info.label,
        size_bytes=info.size_bytes,
        state=convert.state_to_pb(info.state),
        created_at_ns=info.created_at_ns,
        pinned=info.pinned,
        group_id=info.group_id,
        mapped_bytes=info.mapped_bytes,
        unique_bytes=info.unique_bytes,
    )


def check_to_pb(news: CheckNews) -> pb.CheckPoolResponse:
    return pb.CheckPoolResponse(
        findings=map(_finding_to_pb, news.findings),
        granules_checked=news.granules_checked,
        granules_total=news.granules_total,
        done=news.done,
    )


def _finding_to_pb(finding: Finding) -> pb.Finding:
    return pb.Finding(
        severity=_SEVERITIES[finding.severity],
        kind=finding.kind,
        subject=finding.subject,
        message=finding.message,
        next_step=finding.next_step,
        repairable=finding.repairable,
        repaired=finding.repaired,
    )


def export_to_pb(info: ExportInfo, uri: str) -> pb.Export:
    record = info.record
    return pb.Export(
        name=record.name,
        volume_name="" if record.snapshot_id else info.volume_name,
        snapshot_id=record.snapshot_id or "",
        read_only=record.read_only,
        uri=uri,
        connection_count=info.connection_count,
    )


def stats_to_pb(stats: PoolStats) -> pb.GetPoolStatsResponse:
    return pb.GetPoolStatsResponse(
        pool_id=stats.pool_id,
        granule_bytes=stats.granule_bytes,
        slots_used=stats.slots_used,
        data_file_bytes=stats.data_file_bytes,
        free_bytes=stats.free_bytes,
        volume_count=stats.volume_count,
        snapshot_count=stats.snapshot_count,
        map_bytes=stats.map_bytes,
    )
