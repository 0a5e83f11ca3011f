"""``python -m arraylift.guest``: build the guest, and say where it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arraylift import exit_codes
from arraylift.errors import ArrayliftError
from arraylift.guest import build


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m arraylift.guest", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=build.CACHE, help=f"where guests are kept [{build.CACHE}]"
    )
    parser.add_argument(
        "--anew", action="store_true", help="build it also where it is there, of today's packages"
    )
    parser.add_argument("--qcow2", type=Path, metavar="DIR", help="also write its disks there as qcow2")
    words = parser.parse_args()
    try:
        guest = build.build(words.cache, anew=words.anew)
        written = guest.write_qcow2(words.qcow2) if words.qcow2 else guest.disks
    except ArrayliftError as error:
        exit_codes.report(error, sys.stderr)
        return exit_codes.exit_code(error)
    sys.stdout.write("".join(f"{disk}\n" for disk in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
