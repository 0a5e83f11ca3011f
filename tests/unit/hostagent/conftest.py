"""A certificate authority for the folder, and a stage for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arraylift import pki
from tests.unit.hostagent.stage import Stage, staged
from tests.wire.stage import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    directory = str(tmp_path_factory.mktemp("pki"))
    pki.init_ca(directory)
    return House(directory)


@pytest.fixture
def stage(tmp_path: Path, house: House) -> Iterator[Stage]:
    with staged(tmp_path, house) as one:
        yield one
