"""What the demo tells: a line as each step ends, and one table at the end.

Callers: the demo, main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from arraylift.cli.session import Session
from arraylift.cli.show import plain, ratio, row, table
from arraylift.clock import SYSTEM_CLOCK
from arraylift.sizes import human
from arraylift.v1 import common_pb2


@dataclass(slots=True)
class Step:
    """One line of the result."""

    name: str
    seconds: float = 0.0
    note: str = ""
    figures: common_pb2.TransferFigures | None = None
    image_bytes: int = 0
    frozen_ns: int = 0


@dataclass(slots=True)
class Report:
    """All steps, in order."""

    session: Session
    title: str
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
                "frozen_ns": step.frozen_ns or None,
            }
            for step in self.steps
        ]
        return {"matched": True, "steps": steps, "kept": str(kept) if kept else None}

    def table(self) -> Table:
        shown = table(
            *("step", ">seconds", ">read", ">offered", ">sent", ">stored", ">ratio", ">frozen ms"),
            title=self.title,
        )
        shown.caption = "ratio: size of the disks to bytes stored; frozen: how long the guest stood still"
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
            frozen = f"{step.frozen_ns / 1e6:.1f}" if step.frozen_ns else ""
            row(shown, step.name, f"{step.seconds:.1f}", *sizes, frozen)
        return shown
