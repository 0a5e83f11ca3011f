"""Settings of all tests: how hypothesis searches, and the seed that replays a run.

``pytest --hypothesis-profile ci`` searches harder. Each run draws a fresh seed and prints it in its
header: ``pytest --hypothesis-seed N`` repeats that run.
"""

from __future__ import annotations

import secrets

import pytest
from hypothesis import HealthCheck, settings

from tests import campaign

# No deadline: two cores shared with daemons under test make single examples slow by chance.
settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "ci",
    parent=settings.get_profile("default"),
    derandomize=False,
    max_examples=300,
)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed here, so that the header can name it before anything fails."""
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = secrets.randbits(32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis seed: {config.getoption('--hypothesis-seed')}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Say what campaigns found, and the seed where a failure is read; ``-q`` hides the header."""
    if campaign.lines():
        terminalreporter.section("campaigns")
        for line in campaign.lines():
            terminalreporter.write_line(line)
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(f"hypothesis seed: {config.getoption('--hypothesis-seed')}")
