"""The mark's benchmark marks every record of a unit that it made."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.__main__ import main


def test_a_small_unit_is_made_marked_and_removed(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["mark", "--segments", "4000", "--work", str(tmp_path / "work")]
    assert main([*arguments, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["records"] > 3000
    assert found["bits_bytes"] == -(-found["records"] // 8)
    assert list((tmp_path / "work").iterdir()) == []
