"""``guardtrace policy``: check policies, and see what they come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import PolicyError
from guardtrace_proxy.policy.loading import LoadedPolicy, load_policy

app = typer.Typer(help="Check policies, and see what they come to.", no_args_is_help=True)


@app.command()
def check(files: Annotated[list[Path], typer.Argument(help="Policies to check.")]) -> None:
    """Check policies with all that they extend. Exit status 1 if one can't be used."""
    failed = False
    for path in files:
        try:
            loaded = load_policy(path)
        except PolicyError as error:
            failed = True
            typer.secho(str(error), fg=typer.colors.RED, err=True)
            continue
        for warning in loaded.warnings:
            typer.secho(f"{path}: warning: {warning}", fg=typer.colors.YELLOW, err=True)
        typer.echo(f"{path}: ok")
    if failed:
        raise typer.Exit(1)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="The policy.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every value that counts, and the file and line that it came from."""
    try:
        loaded = load_policy(file)
    except PolicyError as error:
        fail(error)
    rows = list(_rows(loaded))
    if as_json:
        values = {key: {"value": value, "from": origin} for key, value, origin in rows}
        typer.echo(json.dumps({"sha256": loaded.sha256, "values": values}, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for key, value, origin in rows:
        # As Text, since rich would take "[withheld by policy]" for markup.
        table.add_row(*(Text(cell) for cell in (key, json.dumps(value, ensure_ascii=False), origin)))
    Console().print(table)
    typer.echo(f"sha256 {loaded.sha256}")


def _rows(loaded: LoadedPolicy) -> list[tuple[str, Any, str]]:
    rows: list[tuple[str, Any, str]] = []

    def walk(content: dict[str, Any], prefix: str) -> None:
        for key, value in content.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                rows.append((prefix + key, value, loaded.origins.get(prefix + key, "default")))

    walk(loaded.policy.model_dump(mode="json"), "")
    return rows
