"""Pytest plugin: an array and a target as processes; a failing test shows their logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster


class Logged(Protocol):
    """Daemons of a test."""

    def logs(self) -> str:
        """The ends of their logs."""
        ...


_RUNNING: list[Logged] = []


def run_cluster(home: Path) -> Iterator[Cluster]:
    """Start one, and end it; meanwhile a failing test shows its logs."""
    from tests.e2e.cluster import Cluster  # gRPC and all: only for those who ask

    cluster = Cluster(home)
    with shown_when_failing(cluster):
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


@contextlib.contextmanager
def shown_when_failing(cluster: Logged) -> Iterator[None]:
    """Meanwhile a failing test shows this cluster's logs."""
    _RUNNING.append(cluster)
    try:
        yield
    finally:
        _RUNNING.remove(cluster)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A fresh array and target for one test, which may kill and damage them."""
    yield from run_cluster(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One array and target for a module whose tests use names of their own and kill nothing."""
    yield from run_cluster(tmp_path_factory.mktemp("cluster"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the logs of the clusters that were running to the report of a failure."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for cluster in _RUNNING:
            report.sections.append(("daemons' logs", cluster.logs()))
    return report  # type: ignore[return-value]
