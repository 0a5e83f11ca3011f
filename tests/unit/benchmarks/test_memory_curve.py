"""The memory benchmark drives a real target, and its content is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arraylift.sizes import GIB, MIB
from benchmarks import memory_curve
from benchmarks.__main__ import main
from benchmarks.material import KEY


@pytest.mark.timeout(120)
def test_a_gibibyte_passes_and_comes_back(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert main(["memory", "--logical", "1", "--work", str(tmp_path / "work"), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert [mark["what"] for mark in found["marks"]][1:] == ["1 GiB passed", "the last image read back"]
    last = found["marks"][-1]
    assert last["logical_bytes"] == GIB
    assert GIB // 10 <= last["unique_bytes"] < GIB // 10 + 2 * MIB
    assert 50 * MIB < last["peak_bytes"] < memory_curve.GOAL_BYTES
    assert found["samples"]
    assert not (tmp_path / "work" / "memory").exists()


def test_one_span_in_ten_is_new_and_no_two_segments_are_alike() -> None:
    content = memory_curve._Content(KEY, np.random.default_rng(1))
    picked = [content.pick(span) for span in range(40)]
    assert content.span_count == 4
    assert set(picked) == {0, 1, 2, 3}
    pieces = [piece for number in range(4) for piece in content.plain(number)]
    assert len(set(pieces)) == len(pieces) == 4 * memory_curve.SEGMENTS
    assert {len(piece) for piece in pieces} == {memory_curve.SEGMENT_BYTES}
    assert content.fingerprints(2) == KEY.segments(content.plain(2))


def test_marks_that_make_no_sense_are_refused() -> None:
    for marks in ("0", "a", "1,,2"):
        with pytest.raises(SystemExit):
            main(["memory", "--logical", marks])
