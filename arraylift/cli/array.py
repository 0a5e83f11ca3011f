"""``arraylift array``: the nouns of a primary array.

Callers: the command line, main thread.
"""

from __future__ import annotations

import typer

from arraylift.cli import snapshots, volumes
from arraylift.cli.command import group


def register(app: typer.Typer) -> None:
    """Add the noun to the root."""
    noun = group("Volumes and snapshots of a primary array.")
    volumes.register(noun)
    snapshots.register(noun)
    app.add_typer(noun, name="array")
