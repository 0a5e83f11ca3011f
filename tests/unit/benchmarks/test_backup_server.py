"""The benchmark of the backup server asks every question, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from benchmarks import backup_server


def test_a_small_server_answers_all(tmp_path: Path) -> None:
    found = tmp_path / "figures.json"
    # How fast it was is not for a test to judge.
    backup_server.run(Console(quiet=True), tmp_path, vms=20, json_path=found, rounds=1)
    figures = json.loads(found.read_text(encoding="utf-8"))["figures"]
    assert len(figures) == 14
    assert all(one["median"] > 0 for one in figures)
    assert not (tmp_path / "server").exists()
