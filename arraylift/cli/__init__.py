"""The ``arraylift`` command: one module per noun, around shared pieces for data and display.

The terminal is the product here: this package alone prints.
"""

from __future__ import annotations

from arraylift.config import quiet_grpc


def main() -> None:
    """Run the command line of this process and exit. Main thread."""
    quiet_grpc()  # before anything imports grpc
    from arraylift.cli.app import run

    raise SystemExit(run())
