"""``guardtrace auditor``: what an operator does about the guard model before it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardtrace_proxy.auditor import published
from guardtrace_proxy.cli.auditor_serve import serve

app = typer.Typer(no_args_is_help=True, help="The guard model's own affairs.")


@app.callback()
def _group() -> None:
    """The guard model's own affairs."""


app.command("serve")(serve)


@app.command("fetch-prompt")
def fetch_prompt(
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; by default the place where the proxy looks for it.", show_default=False),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Commit of the authors' repository, 40 hex digits.")
    ] = published.COMMIT,
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that the file must have, 64 hex digits.")
    ] = published.SHA256,
) -> None:
    """Fetch the published model's system prompt from its authors' repository.

    The weights DloadingX/GuardTrace-VL-3B reach their published scores with this prompt alone. It is fetched
    at one commit and checked by its SHA-256; a file that differs is refused and nothing is written.
    """
    target = out or published.prompt_path()
    try:
        published.fetch_prompt(target, commit=commit, sha256=sha256)
    except published.PromptNotFetched as error:
        typer.secho(f"guardtrace: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
    typer.echo(f"wrote {target}")
    if target != published.prompt_path():
        typer.echo(f"the proxy reads it from {published.prompt_path()}: copy it there, or fetch without --out")
