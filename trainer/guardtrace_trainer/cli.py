"""The command ``guardtrace-train``."""

from __future__ import annotations

import sys

import typer

from guardtrace_trainer import run_command
from guardtrace_trainer.annotation import commands as annotation
from guardtrace_trainer.corpus import commands as corpus
from guardtrace_trainer.evaluation import commands as evaluation
from guardtrace_trainer.evaluation import streaming_commands as streaming
from guardtrace_trainer.nano import commands as nano
from guardtrace_trainer.plainly import not_installed
from guardtrace_trainer.prefixes import commands as prefixes
from guardtrace_trainer.stages import commands as stages

app = typer.Typer(
    help="Build, train and evaluate auditors for guardtrace-proxy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="From text queries to labelled traces.", no_args_is_help=True)
for part in (corpus, annotation, prefixes):
    data.add_typer(part.app)
app.command()(run_command.run)
app.add_typer(data, name="data")
app.add_typer(stages.app)
app.command()(evaluation.evaluate)
app.command()(evaluation.compare)
app.add_typer(streaming.app)
app.add_typer(nano.app, name="nano")


def main() -> None:
    """Entry point. Without the extra ``train`` most commands fail where they import what they need."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("guardtrace_proxy", "guardtrace_trainer"):
            raise
        typer.secho(f"guardtrace-train: {not_installed(error)}", fg=typer.colors.RED, err=True)
        sys.exit(1)
