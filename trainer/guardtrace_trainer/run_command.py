"""``guardtrace-train run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.terminal import log


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
    from guardtrace_trainer.again import PARTS
    from guardtrace_trainer.recipe import Recipe
    from guardtrace_trainer.run import Runner
    from guardtrace_trainer.settings import read_settings

    part = next((part for part in PARTS if part == again_from), None)
    if again_from is not None and part is None:
        raise typer.BadParameter(f"--again-from {again_from}: expected one of {', '.join(PARTS)}")
    with failing_plainly():
        read = read_settings(recipe, Recipe)
        changed = {name: value for name, value in (("seed", seed), ("folder", folder)) if value is not None}
        Runner(read.model_copy(update=changed), recipe, log, part).run()
