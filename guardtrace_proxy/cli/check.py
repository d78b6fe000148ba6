"""``guardtrace check``: look at what the proxy will stand in front of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import anyio
import typer

from guardtrace_proxy.asgi import PROBES
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.config import load_config
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.inner_config import load_inner_config
from guardtrace_proxy.server.inspect import Finding, inspect_upstream
from guardtrace_proxy.wire.dialects import BY_ROUTE

app = typer.Typer(help="Look at what the proxy will stand in front of.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Look at what the proxy will stand in front of."""


@app.command()
def upstream(
    name: Annotated[str, typer.Argument(help="The upstream's name in the config.")],
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
    model: Annotated[str | None, typer.Option(help="The model to ask; the first of /models without it.")] = None,
) -> None:
    """Send one small request and print where the reasoning is, whether it starts open, and the config line to write."""
    try:
        settings = load_config(config, os.environ)
    except ConfigError as error:
        fail(error, 2)
    if name not in settings.over_http:
        fail(f"there is no upstream {name!r}; known: {', '.join(settings.over_http)}", 2)
    try:
        finding = anyio.run(inspect_upstream, name, settings.over_http[name], os.environ, model)
    except ApiError as error:
        fail(error.message)
    _print(name, finding)


@app.command()
def middleware(
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
) -> None:
    """Read the settings of the guard inside a model server, which itself would tell only once its model is loaded."""
    try:
        settings = load_inner_config(config, os.environ)
    except ConfigError as error:
        fail(error, 2)
    typer.echo(f"audited:         {', '.join(BY_ROUTE)}")
    typer.echo(f"passes, no key:  {', '.join(PROBES)}")
    typer.echo(f"passes, a key:   {', '.join(settings.server.passthrough) or 'none'}")
    typer.echo(f"tenants:         {', '.join(settings.tenants)}")


def _print(name: str, finding: Finding) -> None:
    typer.echo(f"model:            {finding.model}")
    typer.echo(f"events:           {finding.events}")
    typer.echo(f"reasoning:        {finding.where}")
    typer.echo(f"starts open:      {'yes' if finding.starts_open else 'no'}")
    typer.echo(f"finish_reason:    {finding.finish_reason}")
    typer.echo(f"ends with [DONE]: {'yes' if finding.done else 'no'}")
    typer.echo(f"usage:            {finding.usage}")
    for note in finding.notes:
        typer.secho(f"note: {note}", fg=typer.colors.YELLOW)
    typer.echo(f"\nconfig line:\nupstreams: {{{name}: {{base_url: ..., thinking: {finding.config}}}}}")
