"""``guardtrace-train run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from guardtrace_proxy.auditor.protocol import AuditorError
from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_trainer.endpoints import EndpointFailure
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.steps import StepError
from guardtrace_trainer.terminal import printable


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as trainer/recipes/nano.yaml.", dir_okay=False)],
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's.")] = None,
    folder: Annotated[Path | None, typer.Option(help="In place of the recipe's.")] = None,
) -> None:
    """Run a whole recipe: corpus, stages, evaluation, report. What is done is passed over."""
    from guardtrace_trainer.recipe import Recipe
    from guardtrace_trainer.run import Runner
    from guardtrace_trainer.settings import read_settings
    from guardtrace_trainer.stages.settings import StageError

    try:
        read = read_settings(recipe, Recipe)
        changed = {name: value for name, value in (("seed", seed), ("folder", folder)) if value is not None}
        Runner(read.model_copy(update=changed), recipe, _log).run()
    except (SettingsError, RowError, StepError, StageError, EndpointFailure, AuditorError) as error:
        typer.secho(printable(str(error)), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("stopped; the same command goes on from here", fg=typer.colors.RED, err=True)
        raise typer.Exit(130) from None


def _log(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)
