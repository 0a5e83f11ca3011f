"""The kernel of the unpacked packages, and the small root in memory it begins with.

That one knows how to find the disk with the guest's root, and nothing else (``files/initramfs``).
Callers: build, main thread.
"""

from __future__ import annotations

import lzma
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from arraylift.errors import NotFound

MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng")
"""What every guest needs; modules built into the kernel are left out."""
MODULES_IF_THERE = ("virtio_scsi", "sd_mod", "crc32c_generic", "efivarfs", "button", "evdev")
_FORMAT = "070701"  # cpio, "newc"
_NODES = {"dev/console": (5, 1), "dev/null": (1, 3)}
_DIRECTORIES = ("bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "sys")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where the parts of one version are."""

    version: str
    image: Path
    modules: Path


def find_kernel(root: Path) -> Kernel:
    """Return the kernel below ``root``. Raises NotFound."""
    for folder in (root / "usr/lib/modules", root / "lib/modules"):
        for modules in sorted(folder.glob("*")):
            image = root / "boot" / f"vmlinuz-{modules.name}"
            if image.is_file():
                return Kernel(modules.name, image, modules)
    raise NotFound("the kernel's package has no kernel in it", subject=str(root))


def initramfs(root: Path, kernel: Kernel, init: bytes) -> bytes:
    """Return a root in memory, as a cpio archive: busybox, modules, and ``init``."""
    loaded = _modules(kernel)
    files = {
        "bin/busybox": ((root / "bin/busybox").read_bytes(), 0o755),
        "init": (init, 0o755),
        "etc/modules": ("".join(f"{name}\n" for name in loaded).encode(), 0o644),
    }
    files |= {f"lib/modules/{name}.ko": (data, 0o644) for name, data in loaded.items()}
    archive = bytearray()
    for name in _DIRECTORIES:
        _add(archive, name, stat.S_IFDIR | 0o755)
    for name, device in _NODES.items():
        _add(archive, name, stat.S_IFCHR | 0o600, device=device)
    for name, (data, mode) in files.items():
        _add(archive, name, stat.S_IFREG | mode, data)
    _add(archive, "TRAILER!!!", 0)
    return bytes(archive)


def _modules(kernel: Kernel) -> dict[str, bytes]:
    """Return name -> content, every module after those it needs."""
    paths = {_name(path): path for path in kernel.modules.rglob("*.ko*")}
    builtin = {_name(Path(line)) for line in (kernel.modules / "modules.builtin").read_text().split()}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name not in paths:
            raise NotFound(f"kernel {kernel.version} has no module {name}", subject=name)
        data = paths[name].read_bytes()
        data = lzma.decompress(data) if paths[name].suffix == ".xz" else data
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in needs.group(1).decode().split(",") if needs else []:
            if needed:
                load(_name(Path(needed)))
        loaded[name] = data

    for name in (*MODULES, *(name for name in MODULES_IF_THERE if name in paths)):
        load(name)
    return loaded


def _name(path: Path) -> str:
    """A module's name, as the kernel has it: virtio-rng.ko is virtio_rng."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _add(
    archive: bytearray, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
) -> None:
    """One member of a "newc" archive: a header of numbers in hex, name, data, both padded to 4 bytes."""
    path = name.encode() + b"\0"
    inode = len(archive) + 1  # unlike all others
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    for part in (_FORMAT.encode() + b"".join(b"%08X" % field for field in fields) + path, data):
        archive += part
        archive += bytes(-len(archive) % 4)
