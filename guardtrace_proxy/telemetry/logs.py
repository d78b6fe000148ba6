"""Structured logs: structlog, JSON for machines or coloured lines for people, on standard error.

No user text is logged: no prompt, no thinking, no answer, no analysis, no key. Messages of exceptions and local
variables may hold any of it, so of an exception only its type and the lines that it passed are logged, and of what
other libraries log only the first line, since asyncio for one puts an exception's message below it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog

MAX_EXCEPTIONS = 10
MAX_FRAMES = 30
"""Of a chain or group, and of one exception: the innermost."""


def configure_logging(format: Literal["json", "console"] = "json", level: str = "info") -> None:
    """Set up structlog for the whole process; ``level`` is debug, info, warning or error.

    What other libraries log from warnings on goes the same way, whatever the level.
    """
    _configure_structlog(format, level, for_good=True)
    logging.basicConfig(level=logging.WARNING, handlers=[_FromOthers()], force=True)


def configure_own_logging(format: Literal["json", "console"], level: str) -> bool:
    """Set up our lines alone, inside another's process; False where it has set up structlog itself, which stays so."""
    if structlog.is_configured() and _exception_without_text not in structlog.get_config()["processors"]:
        return False
    _configure_structlog(format, level, for_good=False)
    return True


def _configure_structlog(format: Literal["json", "console"], level: str, *, for_good: bool) -> None:
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exception_without_text,
    ]
    if format == "json":
        shared.append(structlog.processors.JSONRenderer(ensure_ascii=False))
    else:
        shared += [_exception_as_lines, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Lines(sys.stderr),
        cache_logger_on_first_use=for_good,
    )


class _Lines:
    """Writes a line a message. A disk that is full, or a reader that is gone, costs the line, never a reply."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        with suppress(OSError):
            print(message, file=self._stream, flush=True)

    debug = info = warning = error = critical = exception = fatal = log = failure = err = msg


class _FromOthers(logging.Handler):
    """Passes the records of uvicorn, asyncio and others to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().strip().partition("\n")[0]
        exc_info = record.exc_info or None
        structlog.get_logger().log(record.levelno, message, logger=record.name, exc_info=exc_info)


def _exception_without_text(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    elif error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = [
            {"type": type(one).__name__, "frames": frames_of(one)}
            for one, _ in zip(related(error), range(MAX_EXCEPTIONS), strict=False)
        ]
    return event


def _exception_as_lines(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    errors = event.pop("exception", None)
    if errors:
        lines = [line for error in errors for line in (error["type"], *(f"  {frame}" for frame in error["frames"]))]
        event["exception"] = "\n".join(lines)
    return event


def frames_of(error: BaseException) -> list[str]:
    """Where an exception passed, innermost last: ``file:line in function``."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-MAX_FRAMES:]]


def related(error: BaseException) -> Iterator[BaseException]:
    """The exception, what is in it if it is a group, and what it arose from; without what was merely cancelled."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen or isinstance(one, asyncio.CancelledError):
            continue
        seen.add(id(one))
        yield one
        waiting += getattr(one, "exceptions", ())
        # A context that was suppressed (``raise … from None``) is told as well: nothing of its text is.
        waiting += [inner for inner in (one.__cause__, one.__context__) if inner is not None]
