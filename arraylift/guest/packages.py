"""Fetch Debian's packages and unpack them side by side; nothing is installed, nobody need be root.

Callers: build, main thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from arraylift.errors import ArrayliftError, NotFound
from arraylift.guest import programs

KERNEL = "linux-image-cloud-amd64"  # names the newest in its dependencies
AGENT = "qemu-guest-agent"
_PLAIN = ("busybox-static", "mtools", "syslinux", "syslinux-common", "systemd-boot-efi")
_LIBRARY = re.compile(r"lib|zlib")
_KERNEL_IMAGE = re.compile(r"linux-image-\d")
PACKAGES_MAX = 64
"""Far more than the agent's libraries are."""


def names() -> list[str]:
    """Return the packages that the guest is made of. Raises NotFound (apt, or its lists)."""
    kernels = [name for name in _depends(KERNEL) if _KERNEL_IMAGE.match(name)]
    if not kernels:
        raise NotFound(
            f"apt knows no kernel behind {KERNEL}",
            subject=KERNEL,
            next_step="apt-get update, on Debian amd64",
        )
    return [*_PLAIN, kernels[0], AGENT, *_libraries(AGENT)]


def fetch(wanted: Iterable[str], root: Path, folder: Path) -> list[str]:
    """Download into ``folder`` and unpack below ``root``; returns names and versions."""
    folder.mkdir()
    programs.run([programs.find("apt-get", "apt"), "-q", "download", *wanted], cwd=folder)
    archives = sorted(folder.glob("*.deb"))
    unpack = programs.find("dpkg-deb", "dpkg")
    for archive in archives:
        programs.run([unpack, "-x", archive, root])
    return [archive.stem.replace("%3a", ":") for archive in archives]


def _libraries(package: str) -> list[str]:
    """Return what a program needs to be loaded: the libraries among what it depends on, and theirs."""
    found: list[str] = []
    todo = [package]
    while todo:
        for name in _depends(todo.pop()):
            if _LIBRARY.match(name) and name not in found:
                found.append(name)
                todo.append(name)
        if len(found) > PACKAGES_MAX:
            raise ArrayliftError(f"{package} depends on more than {PACKAGES_MAX} libraries")
    return sorted(found)


def _depends(package: str) -> list[str]:
    said = programs.run([programs.find("apt-cache", "apt"), "depends", "--important", package])
    return re.findall(r"^ +Depends: ([^<\s]+)$", said, flags=re.MULTILINE)
