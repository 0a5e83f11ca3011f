"""Edge: the target's values to and from the generated classes."""

from __future__ import annotations

from arraylift.exchange import convert as shared
from arraylift.exchange.messages import Figures
from arraylift.v1 import image_pb2 as pb
from dedup_target.manifest_format import ImageManifest


def image_to_pb(manifest: ImageManifest, unit: str = "", *, unit_absent: bool = False) -> pb.Image:
    return pb.Image(
        image_id=manifest.image_id,
        name=manifest.name,
        tenant=manifest.tenant_name,
        root=manifest.root,
        image_bytes=manifest.image_bytes,
        segmentation=shared.segmentation_to_pb(manifest.segmentation),
        key_id=manifest.key_id,
        source_state=shared.state_to_pb(manifest.source_state),
        committed_at_ns=manifest.committed_at_ns,
        figures=shared.figures_to_pb(Figures(**manifest.figures)),
        base_image_id=manifest.base_image_id or "",
        unit=unit,
        unit_absent=unit_absent,
        lock_until_ns=manifest.lock_until_ns or 0,
    )
