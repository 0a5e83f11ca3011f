"""After a loss or a rebuild: look every image up, and end the doubt if all are whole.

Callers: a thread of the composition root, once at start.
"""

from __future__ import annotations

import threading

from arraylift.errors import Corruption, NotFound, StoreFailed
from arraylift.logs import get_logger
from dedup_target.image_reader import ImageReader
from dedup_target.store import Store

_log = get_logger("doubt")


def settle_doubt(store: Store, images: ImageReader, stopping: threading.Event) -> None:
    """Return at once when there is no doubt; else check all images, stoppable between two."""
    if not store.in_doubt:
        return
    damaged = 0
    for manifest in store.unit.manifests.all():
        if stopping.is_set():
            return
        try:
            lost = len(images.lost_spans(images.open(manifest.image_id)))
        except NotFound:
            continue
        except Corruption as error:
            _log.error("image_damaged", image=manifest.image_id, name=manifest.name, error=str(error))
            damaged += 1
            continue
        if lost:
            _log.error("image_damaged", image=manifest.image_id, name=manifest.name, lost_spans=lost)
            damaged += 1
    try:
        if not damaged and not store.unit.manifests.damaged:
            store.end_doubt()
    except StoreFailed as error:
        _log.error("doubt_not_ended", error=str(error))
