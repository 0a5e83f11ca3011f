"""A progress bar on standard error, for work that moves bytes.

Callers: main thread; ``update`` may also come from the thread on which gRPC makes requests.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from arraylift.cli.show import printable
from arraylift.sizes import SPAN_BYTES, human
from arraylift.v1 import common_pb2


class Progress:
    """A context manager; nothing is drawn unless ``enabled``."""

    def __init__(self, console: Console, what: str, total_bytes: int, *, enabled: bool) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not enabled,
        )
        self._task = self._bar.add_task(printable(what), total=total_bytes or None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done_bytes: int) -> None:
        """Say how many bytes are done."""
        self._bar.update(self._task, completed=done_bytes)

    def sized(self, done_bytes: int, total_bytes: int) -> None:
        """Say how many bytes are done, and how many there are, where that is learned on the way."""
        self._bar.update(self._task, completed=done_bytes, total=total_bytes or None)

    def counted(self, done: int, total: int, what: str) -> None:
        """Say how many of so many things are done, where bytes are not what counts."""
        note = f"{done:,}/{total:,} {what}"
        self._bar.update(self._task, completed=done, total=total or None, note=note)

    def transfer(self, spans_done: int, figures: common_pb2.TransferFigures) -> None:
        """Say how far a transfer is."""
        total = figures.spans_total
        sent = figures.bytes_sent_wire
        note = f"{spans_done}/{total} spans, read {human(figures.bytes_read)}, sent {human(sent)}"
        if sent:
            note += f", {figures.bytes_read / sent:.1f}:1"
        self._bar.update(
            self._task, completed=spans_done * SPAN_BYTES, total=total * SPAN_BYTES or None, note=note
        )


class Steps:
    """A bar for work that is counted, in phases; a context manager."""

    def __init__(self, console: Console, what: str, *, enabled: bool) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not enabled,
        )
        self._what = what
        self._task = self._bar.add_task(printable(what), total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, phase: str, done: int, total: int) -> None:
        """Say how far a phase is."""
        said = printable(f"{self._what}: {phase}" if phase else self._what)
        self._bar.update(self._task, description=said, completed=done, total=total or None)
