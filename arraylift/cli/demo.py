"""``arraylift demo``: the whole way of two disks, on this machine, checked to the last byte.

Invariant:
  M1 whatever happens, Ctrl-C included, no process and no file is left (with --keep: the files).
Callers: the command line, main thread.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli import demo_disks, house, transfers, volume_data
from arraylift.cli.command import command
from arraylift.cli.connection import Connection
from arraylift.cli.demo_disks import DemoDisks
from arraylift.cli.interrupts import shielded
from arraylift.cli.local_files import NewFile, SourceImage
from arraylift.cli.session import Session
from arraylift.cli.settings import KINDS, Layout, callable_address
from arraylift.cli.show import plain, ratio, row, size_bytes, table
from arraylift.clock import SYSTEM_CLOCK
from arraylift.errors import ArrayliftError, Corruption
from arraylift.rpc.channel import LONG_CALL_SECONDS
from arraylift.sizes import human
from arraylift.v1 import common_pb2, volume_pb2

RESTORED = "restored-one"


@dataclass(slots=True)
class Step:
    """One line of the result."""

    name: str
    seconds: float = 0.0
    note: str = ""
    figures: common_pb2.TransferFigures | None = None
    image_bytes: int = 0


@dataclass(slots=True)
class Report:
    """All steps, in order."""

    session: Session
    steps: list[Step] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step; the block may add figures or a note."""
        step = Step(name)
        started = SYSTEM_CLOCK.monotonic()
        yield step
        step.seconds = SYSTEM_CLOCK.monotonic() - started
        self.steps.append(step)
        self.session.note(f"{name}: {step.seconds:.1f} s{', ' if step.note else ''}{step.note}")

    def document(self, kept: Path | None) -> dict[str, object]:
        steps = [
            {
                "step": step.name,
                "seconds": round(step.seconds, 3),
                "note": step.note,
                "figures": plain(step.figures) if step.figures is not None else None,
                "image_bytes": step.image_bytes or None,
            }
            for step in self.steps
        ]
        return {"matched": True, "steps": steps, "kept": str(kept) if kept else None}

    def table(self) -> Table:
        shown = table(
            *("step", ">seconds", ">read", ">offered", ">sent", ">stored", ">ratio"),
            title="Arraylift demo: the restored disk equals its source in every byte",
        )
        shown.caption = "ratio: size of the disk to bytes stored"
        shown.caption_justify = "left"
        for step in self.steps:
            figures = step.figures
            sizes = ("", "", "", "", "")
            if figures is not None:
                sizes = (
                    human(figures.bytes_read),
                    human(figures.bytes_offered),
                    human(figures.bytes_sent_wire),
                    human(figures.bytes_stored),
                    ratio(step.image_bytes, figures.bytes_stored) if step.image_bytes else "",
                )
            row(shown, step.name, f"{step.seconds:.1f}", *sizes)
        return shown


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    command(app, "demo", examples="arraylift demo\narraylift demo --size 64M --keep")(demo)


def demo(
    session: Session,
    keep: Annotated[bool, typer.Option("--keep", help="Keep disks and state, and say where.")] = False,
    size: Annotated[str, typer.Option(help="How many bytes of real files to take.")] = "336M",
) -> None:
    """Back up two disks of real files, restore one, compare every byte.

    Runs its own array and target on free ports of this machine, in a temporary directory (TMPDIR),
    and removes both. Takes about a minute and 3 GiB of disk; needs e2fsprogs.
    """
    demo_disks.find_programs()
    files_bytes = size_bytes(size)
    report = Report(session)
    root = Path(tempfile.mkdtemp(prefix="arraylift-demo-")).resolve()
    layout = Layout(root / "state")
    try:
        _run(session, report, root, layout, files_bytes)
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


def _run(session: Session, report: Report, root: Path, layout: Layout, files_bytes: int) -> None:
    with report.step("make two disks") as step:
        disks = demo_disks.build(root, files_bytes=files_bytes)
        step.note = f"{human(disks.files_bytes)} of real files"
    with report.step("start daemons"):
        _up(layout)
    with contextlib.ExitStack() as stack:
        array, target = (
            stack.enter_context(
                contextlib.closing(
                    Connection(kind.noun, callable_address(layout.load(kind).listen), layout.pki)
                )
            )
            for kind in KINDS
        )
        _back_up(session, report, array, target, disks)
        _restore(session, report, array, target, disks)


def _up(layout: Layout) -> None:
    """Start on free ports; another process may take one in between, so choose again."""
    tries = 3
    for last in (number == tries - 1 for number in range(tries)):
        ports = _free_ports(len(KINDS))
        house.prepare(layout)
        for kind, port in zip(KINDS, ports, strict=True):
            settings = kind.settings(
                name=kind.name, listen=f"127.0.0.1:{port}", state=layout.data(kind), pki=layout.pki
            )
            house.write_settings(layout, kind, settings)
        try:
            house.up(layout)
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


def _back_up(
    session: Session, report: Report, array: Connection, target: Connection, disks: DemoDisks
) -> None:
    for name, path in (("one", disks.one), ("two", disks.two)):
        with report.step(f"import disk {name}") as step, SourceImage(path) as source:
            with session.progress(f"import {name}", source.size_bytes) as bar:
                answer = volume_data.import_volume(array, source, name, bar.update)
            step.note = f"{human(source.size_bytes)}, {human(answer.bytes_written)} of data"
    with report.step("back up disk one, full") as step:
        _send(session, step, array, target, "one", "monday")
    with report.step("change files in disk one") as step, session.progress("write", 0) as bar:
        step.note = disks.change_one()
        with SourceImage(disks.one) as source:
            volume = volume_data.get_volume(array, "one")
            difference = volume_data.differences(array, volume, source, bar.update)
            volume_data.write_differences(array, "one", source, difference, bar.update)
        step.note += f", {human(difference.total_bytes)} of granules"
    with report.step("back up disk one, increment") as step:
        _send(session, step, array, target, "one", "tuesday")
    with report.step("back up disk two, full") as step:
        _send(session, step, array, target, "two", "tuesday")


def _send(
    session: Session, step: Step, array: Connection, target: Connection, volume: str, name: str
) -> None:
    request = volume_pb2.CreateSnapshotsRequest(volume_names=[volume], name=name)
    snapshot = array.call(
        array.volumes.CreateSnapshots, request, timeout_seconds=LONG_CALL_SECONDS
    ).snapshots[0]
    with session.progress(f"send {volume}", snapshot.size_bytes) as bar:
        receipt = transfers.send_snapshot(
            array, target, snapshot.snapshot_id, image_name=volume, full=False, on_spans=bar.transfer
        )
    step.figures, step.image_bytes = receipt.figures, snapshot.size_bytes


def _restore(
    session: Session, report: Report, array: Connection, target: Connection, disks: DemoDisks
) -> None:
    with report.step("restore disk one") as step:
        image = transfers.find_image(target, "one")
        with session.progress("restore", image.image_bytes) as bar:
            receipt = transfers.restore_image(
                target, array, image.image_id, volume_name=RESTORED, on_spans=bar.transfer
            )
        step.figures = receipt.figures
    with report.step("compare every byte") as step:
        step.note = compare(session, array, RESTORED, disks.one)
    with report.step("check its file system") as step:
        exported = disks.directory / "restored.img"
        volume = volume_data.get_volume(array, RESTORED)
        request = volume_pb2.ReadExtentsRequest(volume_name=RESTORED)
        with (
            NewFile(exported, overwrite=False) as destination,
            session.progress("export", volume.size_bytes) as bar,
        ):
            volume_data.export(array, request, volume.size_bytes, destination, bar.update)
        demo_disks.check_file_system(exported)
        step.note = "e2fsck: clean"


def compare(session: Session, array: Connection, name: str, source_path: Path) -> str:
    """Return what was found equal. Raises Corruption where a volume differs from its source."""
    with SourceImage(source_path) as source:
        volume = volume_data.get_volume(array, name)
        if volume.size_bytes != source.size_bytes:
            raise Corruption(
                f"volume {name} has {volume.size_bytes:,} bytes, its source {source.size_bytes:,}"
            )
        with session.progress("compare", volume.size_bytes) as bar:
            difference = volume_data.differences(array, volume, source, bar.update)
    if difference.ranges:
        raise Corruption(
            f"volume {name} differs from its source in {len(difference.ranges)} ranges, the first at byte "
            f"{difference.ranges[0][0]:,}",
            subject=f"volume {name}",
            next_step="run it again with --keep and look into the daemons' logs",
        )
    return f"{human(volume.size_bytes)} equal"


def _clean_up(layout: Layout, root: Path, *, keep: bool) -> None:
    """M1. The processes first: they would write into what is being removed."""
    try:
        if layout.run.is_dir():
            house.down(layout)
    finally:
        if not keep:
            shutil.rmtree(root)
