"""A check that runs beside flushes, snapshots and checkpoints: in nobody's way, and no false alarm."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import pytest

from primary_array import file_check, map_journal, page_file
from primary_array.block_map import Page
from primary_array.findings import Severity
from tests.unit.primary_array.test_pool_check import G, Rig


@pytest.mark.parametrize("looked_at", ["pages", "journal"])
def test_no_flush_and_no_snapshot_waits_for_a_check_of_files(
    monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    """Guests are frozen meanwhile: gigabytes of pages, and what a journal says, are gone through beside."""
    rig = Rig()
    flushed = []

    def used() -> None:
        rig.pool.write("a", 0, b"9" * G)
        rig.pool.flush("a")
        flushed.append(rig.pool.snapshot(["a"]))

    def meanwhile() -> None:
        user = threading.Thread(target=used, daemon=True)
        user.start()
        user.join(5)
        assert not user.is_alive(), "it waits for the check"

    def patched(module: ModuleType, name: str) -> None:
        found = getattr(module, name)

        def beside(*args: Any, **named: Any) -> Any:
            meanwhile()
            return found(*args, **named)

        monkeypatch.setattr(module, name, beside)

    patched(*((file_check, "read_places") if looked_at == "pages" else (map_journal, "scan")))
    assert [one for one in rig.found() if one.severity is not Severity.NOTE] == []
    assert flushed


def test_a_page_that_has_a_home_has_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check looks at pages beside the thread that writes them: it would call the machine's memory bad."""
    rig, slot = Rig(), Page.__dict__["home"]
    homes = []

    def moved_in(page: Page, place: int) -> None:
        slot.__set__(page, place)
        if place:
            homes.append(place)
            assert page.checksum == page_file.checksum_of(page_file.page_bytes(page))

    monkeypatch.setattr(Page, "home", property(slot.__get__, moved_in))
    rig.checkpoint()
    assert homes


def test_no_checkpoint_is_written_between_two_looks_at_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commits write them: it is put off, and written by the next commit."""
    rig = Rig()
    rig.pool._commit._rotate_at = 0
    before = rig.files.list_dir("/pool")
    found = page_file.read_places

    def beside(*args: Any) -> Any:
        rig.pool.write("a", 0, b"9" * G)
        rig.pool.flush("a")
        assert rig.files.list_dir("/pool") == before
        return found(*args)

    with monkeypatch.context() as patch:
        patch.setattr(file_check, "read_places", beside)
        assert [one for one in rig.found() if one.severity is not Severity.NOTE] == []
    rig.pool.write("a", G, b"9" * G)
    rig.pool.flush("a")
    assert rig.files.list_dir("/pool") != before
