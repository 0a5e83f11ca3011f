"""The pool's figures at a small scale: that they can be had, and that a missed goal is told."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from arraylift.sizes import GIB, MIB
from benchmarks import pool


def test_every_figure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TIB", GIB), ("MAPPED_BYTES", 64 * MIB), ("OWNED_WRITES", 80), ("SNAPSHOTS", 3)):
        monkeypatch.setattr(pool, name, value)
    monkeypatch.setattr(pool, "CHANGED_GRANULES", 2000)
    monkeypatch.setattr(pool, "SMALL_BYTES", 8 * MIB)
    console = Console(record=True, width=200, file=io.StringIO())
    code = pool.run(console, tmp_path, seed=1, json_path=tmp_path / "figures.json")
    rows = json.loads((tmp_path / "figures.json").read_text())["pool"]
    assert len(rows) >= 14
    assert all(0 < row["best_ms"] <= row["median_ms"] <= row["worst_ms"] for row in rows[:5])
    shown = console.export_text()
    assert "tracker" in shown
    assert code == ("MISSED" in shown)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_missed_goal_is_told() -> None:
    assert pool.Figure("x", 2.0, 1.0, 3.0, 1, 1.5).reached == "MISSED"
    assert pool.Figure("x", 1.0, 2.0, 3.0, 1, 1.5).reached == "reached"
    assert not pool.Figure("x", 1.0, 2.0, 3.0, 1).reached
