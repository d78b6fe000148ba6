"""Options of the whole test run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.structlog_state import structlog_kept

# A loaded machine is no failure.
settings.register_profile("guardtrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("guardtrace")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow, which take minutes")
    parser.addoption("--cases", type=int, default=3000, help="how many random replies the stream contract is tried on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow; run it with --run-slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """As `guardtrace serve` does: a collection that goes through all that is loaded stops every loop of the process."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _structlog_kept() -> Iterator[None]:
    """For each test what another set up is gone."""
    with structlog_kept():
        yield
