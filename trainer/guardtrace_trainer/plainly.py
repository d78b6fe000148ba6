"""How every command ends when something can be put right: one message, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from guardtrace_proxy.auditor.protocol import AuditorError
from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_trainer.annotation.forms import FormError
from guardtrace_trainer.endpoints import EndpointFailure
from guardtrace_trainer.evaluation.guards.protocol import GuardSettingsError
from guardtrace_trainer.evaluation.judged import EvaluationStopped
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.stages.settings import StageError
from guardtrace_trainer.steps import StepError
from guardtrace_trainer.terminal import fail

INPUT = (RowError, SettingsError, FormError, StepError, StageError, GuardSettingsError, OSError)
ASKED = (EndpointFailure, AuditorError, EvaluationStopped)
EXPECTED: tuple[type[Exception], ...] = (*INPUT, *ASKED)


def not_installed(error: ImportError) -> str:
    """What is missing, and how to get it."""
    return f"{error.name} isn't installed: pip install '.[train]' in a checkout of guardtrace-proxy"


@contextmanager
def failing_plainly(*also: type[Exception]) -> Iterator[None]:
    """Ends the command where what it was given doesn't fit, who it asked can't go on, or one of ``also`` is raised.

    Raises:
        typer.Exit: with status 1.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        option = "--" + str(first["loc"][-1]).replace("_", "-") + ": " if first["loc"] else ""
        fail(f"{option}{first['msg'].removeprefix('Value error, ')}")
    except EXPECTED + also as error:
        fail(error)
    except ImportError as error:
        fail(not_installed(error))
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from here")
