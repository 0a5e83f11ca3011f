"""A missing program skips, or fails where everything was promised, and is listed at the end."""

from __future__ import annotations

import pytest

from tests.programs import left_out, need

MISSING = "arraylift-no-such-program"


def test_what_is_there_is_no_reason_to_skip() -> None:
    need("sh")


def test_what_is_missing_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARRAYLIFT_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception) as caught:
        need("sh", MISSING)
    assert left_out([str(caught.value), str(caught.value), "Skipped: other"]) == {MISSING: 2}


def test_what_is_missing_fails_where_all_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARRAYLIFT_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match=MISSING):
        need(MISSING)
