"""The catalog's benchmark walks every file of an image that it made."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.__main__ import main
from tests.programs import need


def test_a_small_image_is_made_walked_and_removed(tmp_path: Path) -> None:
    need("mke2fs")
    figures = tmp_path / "figures.json"
    arguments = ["catalog", "--files", "600", "--work", str(tmp_path / "work")]
    main([*arguments, "--json", str(figures)])  # how fast it was is not for a test to judge
    found = json.loads(figures.read_text())
    assert found["entries"] == 600 + 3 + 2
    assert found["pieces"] >= 599
    assert list((tmp_path / "work").iterdir()) == []
