"""The index's benchmark measures a real index and extrapolates from what it saw."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.__main__ import main
from benchmarks.index_memory import ENTRIES_PER_TIB, RECORDS


def test_a_small_index_is_filled_searched_and_removed(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["index", "--entries", str(40 * RECORDS), "--work", str(tmp_path / "work")]
    assert main([*arguments, "--json", str(figures)]) in {0, 1}, "so small a one says little of memory"
    found = json.loads(figures.read_text())
    assert found["filled"]["records_per_second"] > 0
    assert min(found["searched"][f"{name}_per_second"] for name in ("hits", "misses", "entries")) > 0
    grown = found["bytes_per_tib"] - found["fixed_bytes"]
    assert abs(grown - found["bytes_per_million"] * ENTRIES_PER_TIB / 1e6) < 2
    assert list((tmp_path / "work").iterdir()) == []
