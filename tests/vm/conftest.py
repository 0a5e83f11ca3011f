"""The guest of this package's tests: built once, kept in the user's cache."""

from __future__ import annotations

import pytest

from arraylift.errors import ArrayliftError
from arraylift.guest import build
from arraylift.guest.build import Guest
from tests.programs import lacking, need


@pytest.fixture(scope="session")
def guest() -> Guest:
    """Our guest's images; the test is left out where there are none and none can be built."""
    need("qemu-system-x86_64", "mke2fs", "debugfs")
    try:
        return build.build()
    except ArrayliftError as error:
        lacking(f"needs the guest, which cannot be built: {error}")
