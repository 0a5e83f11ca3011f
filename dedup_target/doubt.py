"""After a loss or a rebuild: look every image up, and end the doubt if all are whole.

Callers: a thread of the composition root, once at start; whoever began a doubt later.
"""

from __future__ import annotations

import threading

from arraylift.errors import Cancelled, Corruption, NotFound, StoreFailed
from arraylift.logs import get_logger
from dedup_target.image_reader import ImageReader
from dedup_target.store import Store

_log = get_logger("doubt")


def settle_doubt(store: Store, images: ImageReader, stopping: threading.Event) -> None:
    """Return at once when there is no doubt; else check all images, stoppable within seconds."""

    def check() -> None:
        if stopping.is_set():
            raise Cancelled("the target is stopping")

    number = store.doubt_number
    if not store.in_doubt:
        return
    unit, damaged = store.unit, 0
    for manifest in unit.manifests.all():
        try:
            check()
            lost = len(images.lost_spans(images.open(manifest.image_id), between=check))
        except Cancelled:
            return
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
        if not damaged and not unit.manifests.damaged:
            store.end_doubt(number)
    except StoreFailed as error:
        _log.error("doubt_not_ended", error=str(error))
