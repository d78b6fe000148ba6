"""``guardtrace-train run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardtrace_proxy.auditor.protocol import AuditorError
from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_trainer.annotation.forms import FormError
from guardtrace_trainer.endpoints import EndpointFailure
from guardtrace_trainer.evaluation.judged import EvaluationStopped
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.steps import StepError
from guardtrace_trainer.terminal import fail, log

STOPPED = (EndpointFailure, AuditorError, EvaluationStopped)
"""Somebody who was asked can't go on."""


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as trainer/recipes/nano.yaml.", dir_okay=False)],
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    folder: Annotated[Path | None, typer.Option(help="In place of the recipe's.")] = None,
    again_from: Annotated[
        str | None,
        typer.Option(help="Begin anew from corpus, base, sft, dpo, mine, ogdpo or evaluation on."),
    ] = None,
) -> None:
    """Run a whole recipe: corpus, stages, evaluation, report. What is done is passed over."""
    from guardtrace_trainer.recipe import Recipe
    from guardtrace_trainer.run import PARTS, Runner
    from guardtrace_trainer.settings import read_settings
    from guardtrace_trainer.stages.settings import StageError

    part = next((part for part in PARTS if part == again_from), None)
    if again_from is not None and part is None:
        raise typer.BadParameter(f"--again-from {again_from}: expected one of {', '.join(PARTS)}")
    try:
        read = read_settings(recipe, Recipe)
        changed = {name: value for name, value in (("seed", seed), ("folder", folder)) if value is not None}
        Runner(read.model_copy(update=changed), recipe, log, part).run()
    except (SettingsError, RowError, StepError, StageError, FormError, *STOPPED) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.secho("stopped; the same command goes on from here", fg=typer.colors.RED, err=True)
        raise typer.Exit(130) from None
