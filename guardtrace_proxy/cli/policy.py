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
from guardtrace_proxy.policy.explain import Row, consequences, rows
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
        _warn(path, loaded)
        typer.echo(f"{path}: ok")
    if failed:
        raise typer.Exit(1)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="The policy.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every value that counts, the file and line that it came from, and what follows from the modes."""
    try:
        loaded = load_policy(file)
    except PolicyError as error:
        fail(error)
    notes = list(consequences(loaded.policy))
    if as_json:
        told = {
            "sha256": loaded.sha256,
            "values": {row.key: _as_json(row) for row in rows(loaded)},
            "notes": notes,
            "warnings": loaded.warnings,
        }
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    for name in ("value", "from"):
        table.add_column(name, overflow="fold")
    for row in rows(loaded):
        counts = row.by or row
        origin = f"{counts.origin} ({row.by.key})" if row.by else row.origin
        # As Text, since rich would take "[withheld by policy]" for markup.
        table.add_row(*(Text(cell) for cell in (row.key, json.dumps(counts.value, ensure_ascii=False), origin)))
    Console().print(table)
    for note in notes:
        typer.echo(f"- {note}")
    _warn(file, loaded)
    typer.echo(f"sha256 {loaded.sha256}")


def _warn(file: Path, loaded: LoadedPolicy) -> None:
    for warning in loaded.warnings:
        typer.secho(f"{file}: warning: {warning}", fg=typer.colors.YELLOW, err=True)


def _as_json(row: Row) -> dict[str, Any]:
    """What the files say, and under ``effective`` what counts in its place, where another key decides."""
    told = {"value": row.value, "from": row.origin}
    return told | ({"effective": {"value": row.by.value, "key": row.by.key, "from": row.by.origin}} if row.by else {})
