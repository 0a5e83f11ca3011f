"""The guest's root, as a folder out of which a file system is made.

Callers: build, main thread.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from arraylift.guest import programs
from arraylift.guest.content import sample_files

_PLACES = {
    "boot": "etc/init.d/boot",
    "agent": "etc/init.d/agent",
    "tasks": "etc/init.d/tasks",
    "halt": "etc/init.d/halt",
    "writer": "usr/sbin/writer",
    "shutdown": "sbin/shutdown",
    "power-button": "etc/init.d/power-button",
    "fsfreeze-hook": "etc/qemu/fsfreeze-hook",
    "inittab": "etc/inittab",
}
_DIRECTORIES = (
    *("bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "tmp", "root", "data1", "data2"),
    *("etc", "var/log", "srv/files"),
)
_TEXTS = {
    "etc/hostname": "guest\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/motd": "This guest was built to be backed up.\n",
}
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER = "lib64/ld-linux-x86-64.so.2"


def guest_file(name: str) -> bytes:
    """Return one of ``files/``."""
    return (resources.files("arraylift.guest") / "files" / name).read_bytes()


def stage(root: Path, to: Path) -> None:
    """Lay the guest's root below ``to``: busybox, the agent and its libraries, and our scripts."""
    for name in _DIRECTORIES:
        (to / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "bin/busybox", to / "bin/busybox")
    for applet in programs.run([root / "bin/busybox", "--list-full"]).split():
        link = to / applet
        if not link.exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("/bin/busybox")
    shutil.copy(root / "usr/sbin/qemu-ga", to / "usr/sbin/qemu-ga")
    _copy_libraries(root, to)
    (to / "var/run").symlink_to("/run")
    for name, place in _PLACES.items():
        _write(to / place, guest_file(name), mode=0o644 if name == "inittab" else 0o755)
    for place, text in _TEXTS.items():
        _write(to / place, text.encode())
    for name, data in sample_files("root"):
        _write(to / "srv/files" / name, data)


def _copy_libraries(root: Path, to: Path) -> None:
    """Into one folder, which the loader looks into; plug-ins are not needed."""
    folder = to / _LIBRARY_FOLDERS[0]
    folder.mkdir(parents=True)
    for source in _LIBRARY_FOLDERS:
        for library in (root / source).glob("*.so*"):
            shutil.copy(library, folder / library.name)  # a link becomes what it names
    loader = to / _LOADER
    loader.parent.mkdir()
    loader.symlink_to(f"/{_LIBRARY_FOLDERS[0]}/{loader.name}")


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()  # ours instead of busybox's
    path.write_bytes(data)
    path.chmod(mode)
