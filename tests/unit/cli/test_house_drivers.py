"""``arraylift up --driver``: what it writes, and when it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arraylift.cli import house, processes
from arraylift.cli.settings import HOST, HostSettings, Layout
from arraylift.errors import InvalidRequest, WrongState


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A state directory whose host has the first of two drivers."""
    monkeypatch.setattr(house, "DRIVERS", ("emulated", "other"))
    made = Layout(tmp_path)
    house.prepare(made)
    house.configure(made, HOST, None, None)
    return made


def _driver(layout: Layout) -> str:
    settings = layout.load(HOST)
    assert isinstance(settings, HostSettings)
    return settings.driver


def test_a_driver_is_written_down(layout: Layout) -> None:
    chosen = house.choose_driver(layout, layout.load(HOST), "other")
    assert chosen == layout.load(HOST)
    assert _driver(layout) == "other"


def test_a_driver_that_is_none_changes_nothing(layout: Layout) -> None:
    with pytest.raises(InvalidRequest, match="'abacus' is no driver: emulated, other"):
        house.choose_driver(layout, layout.load(HOST), "abacus")
    assert _driver(layout) == "emulated"


def test_a_host_that_runs_keeps_its_driver(layout: Layout) -> None:
    ticks, boot_id = processes._started_ticks(os.getpid()), processes._boot_id()
    assert ticks is not None
    processes.write_record(layout.pid(HOST), processes.ProcessRecord(os.getpid(), ticks, boot_id, "1"))
    assert house.choose_driver(layout, layout.load(HOST), "emulated") == layout.load(HOST)
    with pytest.raises(WrongState, match="driver emulated"):
        house.choose_driver(layout, layout.load(HOST), "other")
    assert _driver(layout) == "emulated"
