"""``arraylift array check``: look for contradictions in everything that the array keeps.

Callers: the command line, main thread.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from arraylift.cli.command import command
from arraylift.cli.session import Session
from arraylift.cli.show import plain, row, table
from arraylift.errors import Corruption
from arraylift.sizes import GRANULE_BYTES
from arraylift.v1 import volume_pb2

_WORDS = {
    volume_pb2.FINDING_SEVERITY_NOTE: "note",
    volume_pb2.FINDING_SEVERITY_WARNING: "warning",
    volume_pb2.FINDING_SEVERITY_ERROR: "error",
}


def register(noun: typer.Typer) -> None:
    """Add the command to ``arraylift array``."""
    command(noun, "check", examples="arraylift array check\narraylift array check --repair")(check)


def check(
    session: Session,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended; what is damaged is kept aside.")
    ] = False,
) -> None:
    """Check maps, counts, checksums and files. Changes nothing unless told."""
    array = session.array
    request = volume_pb2.CheckPoolRequest(repair=repair)
    findings: list[volume_pb2.Finding] = []
    with session.progress("check", 0) as bar:
        for news in array.stream(array.volumes.CheckPool, request):
            bar.sized(news.granules_checked * GRANULE_BYTES, news.granules_total * GRANULE_BYTES)
            findings.extend(news.findings)
    shown: Table | str = _table(findings) if findings else "nothing is wrong"
    session.emit([plain(finding) for finding in findings], shown)
    grave = [
        one for one in findings if one.severity == volume_pb2.FINDING_SEVERITY_ERROR and not one.repaired
    ]
    if grave:
        raise Corruption(
            f"{len(grave)} errors in the pool",
            next_step="; ".join(dict.fromkeys(one.next_step for one in grave if one.next_step)),
        )


def _table(findings: list[volume_pb2.Finding]) -> Table:
    shown = table("severity", "kind", "what", "next step", "repair")
    for one in findings:
        state = "done" if one.repaired else "possible" if one.repairable else ""
        row(shown, _WORDS.get(one.severity, ""), one.kind, one.message, one.next_step, state)
    return shown
