"""The command ``guardtrace``."""

from __future__ import annotations

from typing import Annotated

import typer

from guardtrace_proxy import __version__
from guardtrace_proxy.cli import auditor, check, keys, policy
from guardtrace_proxy.cli.demo import demo
from guardtrace_proxy.cli.serve import serve

app = typer.Typer(
    help="An OpenAI-compatible reverse proxy that audits a thinking model's reasoning while it streams.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(demo)
app.add_typer(policy.app, name="policy")
app.add_typer(keys.app, name="keys")
app.add_typer(check.app, name="check")
app.add_typer(auditor.app, name="auditor")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"guardtrace-proxy {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Entry point."""
    app()
