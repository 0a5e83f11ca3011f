"""``arraylift demo``: the whole way of two VMs, or of a real guest, on this machine, checked.

Invariant:
  M1 whatever happens, Ctrl-C included, no process and no file is left (with --keep: the files).
Callers: the command line, main thread.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from arraylift.cli import demo_disks, demo_story, demo_vm_story, house, running_vms
from arraylift.cli.command import command
from arraylift.cli.demo_report import Report
from arraylift.cli.interrupts import shielded
from arraylift.cli.session import Session
from arraylift.cli.settings import KINDS, Layout, with_nbd_port
from arraylift.cli.show import size_bytes
from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import ArrayliftError
from arraylift.guest import build, programs
from arraylift.sizes import human

FILES_TITLE = "Arraylift demo: the restored VM equals its source in every byte"
GUEST_TITLE = "Arraylift demo: a real guest, lost and back, with every file as it was"

Tale = Callable[[Session, Report, Path, Layout], None]


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    command(app, "demo", examples="arraylift demo\narraylift demo --size 64M --keep\narraylift demo --vm")(
        demo
    )


def demo(
    session: Session,
    keep: Annotated[bool, typer.Option("--keep", help="Keep disks and state, and say where.")] = False,
    size: Annotated[str, typer.Option(help="How many bytes of real files to take.")] = "336M",
    vm: Annotated[
        bool,
        typer.Option(
            "--vm", help="A real guest under QEMU instead: booted, backed up while it writes, lost, back."
        ),
    ] = False,
) -> None:
    """Back up two VMs of real files, change one, restore it, compare every byte.

    Runs daemons of its own on free ports of this machine, in a temporary directory (TMPDIR), and
    removes all of it. Takes about a minute and 4 GiB of disk; needs e2fsprogs. With --vm it needs
    QEMU too, and builds its guest out of Debian's packages, which it keeps for the next time.
    """
    tell = _guest(session) if vm else _files(size_bytes(size))
    report = Report(session, title=GUEST_TITLE if vm else FILES_TITLE)
    root = Path(tempfile.mkdtemp(prefix="arraylift-demo-")).resolve()
    layout = Layout(root / "state")
    try:
        tell(session, report, root, layout)
    except Exception:
        if not keep:
            session.note("failed; what it made is removed: run it again with --keep to look into the logs")
        raise
    finally:
        with shielded():
            _clean_up(layout, root, keep=keep)
            if keep:
                session.note(f"kept: {root}; look around with `arraylift up --state {layout.root}`")
    session.emit(report.document(root if keep else None), report.table())


def _files(files_bytes: int) -> Tale:
    """Two VMs of the emulated VMM, with real files on their disks. Raises NotFound (a program)."""
    demo_disks.find_programs()

    def tell(session: Session, report: Report, root: Path, layout: Layout) -> None:
        with report.step("make three disks") as step:
            disks = demo_disks.build(root, files_bytes=files_bytes)
            step.note = f"{human(disks.files_bytes)} of real files"
        with report.step("start daemons") as step:
            _up(layout)
            step.note = f"{len(KINDS)} on free ports"
        with demo_story.connected(layout) as daemons:
            demo_story.Story(session, report, daemons, disks).run()

    return tell


def _guest(session: Session) -> Tale:
    """One VM of QEMU. Raises NotFound (a program, a package)."""
    programs.find("qemu-system-x86_64", "qemu-system-x86")
    started, kept = SYSTEM_CLOCK.monotonic(), build.kept() is not None
    if not kept:
        session.note("building the guest, once: 30 MB of Debian's packages")
    guest = build.build()
    seconds = SYSTEM_CLOCK.monotonic() - started
    how = "built before" if kept else f"built of Debian's packages in {seconds:.1f} s"
    session.note(f"guest: Linux {guest.about['kernel']}, {how}")

    def tell(session: Session, report: Report, root: Path, layout: Layout) -> None:
        with report.step("start daemons") as step:
            _up(layout, driver="qemu")
            step.note = f"{len(KINDS)} on free ports, VMs run by QEMU"
        with demo_story.connected(layout) as daemons:
            demo_vm_story.VmStory(session, report, daemons, guest, root).run()

    return tell


def _up(layout: Layout, driver: str | None = None) -> None:
    """Start on free ports; another process may take one in between, so choose again."""
    tries = 3
    for last in (number == tries - 1 for number in range(tries)):
        ports = _free_ports(len(KINDS))
        house.prepare(layout)
        for kind, port in zip(KINDS, ports, strict=True):
            made = house.new_settings(layout, kind, port, layout.pki)
            house.write_settings(layout, kind, with_nbd_port(made, 0))
        try:
            house.up(layout, driver=driver)
        except ArrayliftError as error:
            if last or "is taken" not in error.message:
                raise
        else:
            return


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _clean_up(layout: Layout, root: Path, *, keep: bool) -> None:
    """M1. The processes first, they would write into what is removed; and guests before their host agent."""
    try:
        if layout.run.is_dir():
            running_vms.end_all(layout, force=True)
            house.down(layout)
    finally:
        if not keep:
            shutil.rmtree(root)
