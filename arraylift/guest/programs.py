"""Run the programs that a guest is built with.

Callers: this package, main thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from arraylift.config import child_environment
from arraylift.errors import ArrayliftError, NotFound

PROGRAM_SECONDS = 300.0
_SYSTEM_PATH = "/usr/sbin:/sbin"
_SAID_CHARS_MAX = 300


def find(name: str, package: str) -> str:
    """Return where a program is. Raises NotFound."""
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise NotFound(
            f"there is no {name} on this machine, which the guest is built with",
            subject=name,
            next_step=f"install it (Debian: {package})",
        )
    return found


def run(command: Sequence[str | Path], *, cwd: Path | None = None, also_in: Path | None = None) -> str:
    """Run a program to its end and return what it said; ``also_in`` comes first on its path."""
    path = os.defpath if also_in is None else f"{also_in}:{os.defpath}"
    try:
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_SECONDS,
            env=child_environment(LC_ALL="C", PATH=f"{path}:{_SYSTEM_PATH}"),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ArrayliftError(f"{command[0]} did not end within {PROGRAM_SECONDS:.0f} s") from None
    except OSError as error:
        raise NotFound(f"{command[0]} cannot be run: {error.strerror}", subject=str(command[0])) from None
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip() or "no word")[-_SAID_CHARS_MAX:]
        raise ArrayliftError(f"{command[0]} failed with exit status {ended.returncode}: {said}")
    return ended.stdout
