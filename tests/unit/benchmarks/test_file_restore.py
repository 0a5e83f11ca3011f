"""The benchmark of one file reads every byte of what it made, through a target that runs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.__main__ import main
from tests.programs import need


def test_files_come_whole_out_of_an_image_and_nothing_is_left(tmp_path: Path) -> None:
    need("mke2fs")
    figures = tmp_path / "figures.json"
    main(["file", "--quick", "--work", str(tmp_path / "work"), "--json", str(figures)])
    found = json.loads(figures.read_text())
    assert found["whole"]
    assert found["reads"] == 20
    assert list((tmp_path / "work").iterdir()) == []
