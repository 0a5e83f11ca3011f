"""Fixtures of the target's unit tests."""

from __future__ import annotations

from tests.contract.backend_rig import object_store

__all__ = ["object_store"]
