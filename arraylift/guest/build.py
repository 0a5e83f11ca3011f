"""Build the guest once, and keep it.

Owns: ``<cache>/<version>``; a version is made of everything that this package holds, so that a change of it
makes a new guest. Debian's packages may differ from day to day: ``guest.json`` names those that were taken.
Invariant:
  G1 a guest that has its name is whole: it is built elsewhere and renamed.
Callers: the demo, tests, ``python -m arraylift.guest``; main thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from arraylift.guest import disks, kernel, packages, programs, system
from arraylift.guest.content import sample_files
from arraylift.guest.disks import BootFiles
from arraylift.sizes import MIB

CACHE = Path("~/.cache/arraylift/guest")
DATA_DISK_BYTES = 64 * MIB
DATA_LABELS = ("data1", "data2")
PARAMETERS = "console=ttyS0 panic=-1 quiet mitigations=off"
_BOOT_DISK = "boot"
_ABOUT = "guest.json"
_PACKAGES = "packages"


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that was built: raw images, to be copied or imported, never run themselves."""

    folder: Path

    @property
    def disks(self) -> tuple[Path, ...]:
        """The boot disk, then the data disks."""
        return tuple(self.folder / f"{name}.img" for name in (_BOOT_DISK, *DATA_LABELS))

    @property
    def about(self) -> dict[str, object]:
        """The kernel's version, and the packages with theirs."""
        found: dict[str, object] = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
        return found

    def write_qcow2(self, folder: Path) -> tuple[Path, ...]:
        """Copy the disks into ``folder`` as qcow2. Raises NotFound (qemu-img)."""
        program = programs.find("qemu-img", "qemu-utils")
        made = tuple(folder / f"{disk.stem}.qcow2" for disk in self.disks)
        for disk, to in zip(self.disks, made, strict=True):
            programs.run([program, "convert", "-q", "-f", "raw", "-O", "qcow2", disk, to])
        return made


def kept(cache: Path = CACHE) -> Guest | None:
    """Return the guest of this version, if it was built."""
    folder = cache.expanduser() / _version()
    return Guest(folder) if folder.is_dir() else None


def build(cache: Path = CACHE, *, anew: bool = False) -> Guest:
    """Return the guest, built if need be (some seconds, 30 MB of downloads).

    Raises NotFound (a program, a package), ArrayliftError.
    """
    found = kept(cache)
    if found is not None and not anew:
        return found
    cache = cache.expanduser().absolute()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as scratch:
        made = Path(scratch, "guest")
        made.mkdir()
        _build(made, Path(scratch))
        folder = cache / _version()
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(FileExistsError):  # somebody was faster
            made.rename(folder)
    return Guest(folder)


def _build(made: Path, scratch: Path) -> None:
    root = scratch / _PACKAGES
    versions = packages.fetch(packages.names(), root, scratch / "archives")
    found = kernel.find_kernel(root)
    files = BootFiles(found.image, kernel.initramfs(root, found, system.guest_file("initramfs")), PARAMETERS)
    system.stage(root, scratch / "root")
    disks.make_ext4(scratch / "root.img", scratch / "root", disks.ROOT_BYTES, disks.ROOT_LABEL)
    guest = Guest(made)
    boot_disk, *data_disks = guest.disks
    disks.make_boot_disk(boot_disk, root, files, scratch / "root.img", scratch)
    for disk, label in zip(data_disks, DATA_LABELS, strict=True):
        folder = scratch / label
        folder.mkdir()
        for name, data in sample_files(label):
            (folder / name).write_bytes(data)
        disks.make_ext4(disk, folder, DATA_DISK_BYTES, label)
    about = {"kernel": found.version, "packages": versions}
    (made / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _version() -> str:
    """What a digest of this package's sources and of the guest's own files begins with."""
    digest = hashlib.sha256()
    for path in _sources(resources.files("arraylift.guest")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(folder: Traversable) -> list[Traversable]:
    found: list[Traversable] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += [] if entry.name == "__pycache__" else _sources(entry)
        else:
            found.append(entry)
    return found
