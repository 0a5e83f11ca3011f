"""``arraylift array``: the nouns of a primary array.

Callers: the command line, main thread.
"""

from __future__ import annotations

import typer

from arraylift.cli import array_check, array_transfers, exports, gateway, peers, snapshots, volumes
from arraylift.cli.command import group


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Primary arrays: the registry, and volumes and snapshots of one.")
    peers.register(noun, "array")
    volumes.register(noun)
    snapshots.register(noun)
    exports.register(noun)
    gateway.register(noun)
    array_transfers.register(noun)
    array_check.register(noun)
    app.add_typer(noun, name="array")
