"""``python -m arraylift.cli``: the same as the ``arraylift`` command."""

from __future__ import annotations

from arraylift.cli import main

main()
