"""What structlog is set up to do, kept apart from test to test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def structlog_kept() -> Iterator[None]:
    """Whatever sets it up in here, afterwards it is as it was: a command sets it up for the rest of its process."""
    was, settings = structlog.is_configured(), structlog.get_config()
    try:
        yield
    finally:
        structlog.reset_defaults()
        if was:
            structlog.configure(**settings)


@contextmanager
def no_structlog() -> Iterator[None]:
    """As in a process that hasn't set it up."""
    with structlog_kept():
        structlog.reset_defaults()
        yield
