"""The inventory's benchmark asks a real center that hosts report to, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from rich.console import Console

from benchmarks import inventory
from benchmarks.__main__ import main


def test_a_small_inventory_is_reported_asked_and_removed(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    found = inventory.run(Console(quiet=True), tmp_path, vms=30, rounds=3, json_path=figures)
    assert found in (0, 1)
    told = json.loads(figures.read_text())
    assert [one["what"] for one in told["figures"]] == [
        "list all",
        "list one host's",
        "find by name",
        "find by id",
        "a change, to a watcher",
    ]
    assert all(0 < one["median"] <= one["worst"] for one in told["figures"])
    assert not (tmp_path / "inventory").exists()


def test_the_command_knows_it(capsys) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(SystemExit):
        main(["--help"])
    assert "thousands of VMs" in " ".join(capsys.readouterr().out.split())
