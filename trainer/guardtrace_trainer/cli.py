"""The command ``guardtrace-train``."""

from __future__ import annotations

import typer

from guardtrace_trainer.nano import commands

app = typer.Typer(
    help="Build, train and evaluate auditors for guardtrace-proxy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(commands.app, name="nano")


@app.callback()
def root() -> None:
    """Keeps ``nano`` a sub-command while it is the only one."""


def main() -> None:
    """Entry point."""
    app()
