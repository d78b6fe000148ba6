"""``guardtrace policy``: check policies, and see what they come to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import PolicyError, Problem
from guardtrace_proxy.policy.explain import Row, consequences, rows
from guardtrace_proxy.policy.loading import NAME, PRESETS, LoadedPolicy, load_policy

app = typer.Typer(help="Check policies, and see what they come to.", no_args_is_help=True)


@app.command()
def check(files: Annotated[list[Path], typer.Argument(help="Policies to check: files, or presets' names.")]) -> None:
    """Check policies with all that they extend. Exit status 1 if one can't be used."""
    failed = False
    for path in files:
        try:
            loaded = _load(path)
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
    file: Annotated[Path, typer.Argument(help="The policy: a file, or a preset's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every value that counts, the file and line that it came from, and what follows from the modes."""
    try:
        loaded = _load(file)
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
    _print([("key", "value", "from"), *map(_cells, rows(loaded))])
    for note in notes:
        typer.echo(f"- {note}")
    _warn(file, loaded)
    typer.echo(f"sha256 {loaded.sha256}")


def _load(given: Path) -> LoadedPolicy:
    """The file, or the preset of that name where there is no such file; raises PolicyError."""
    if not NAME.fullmatch(str(given)) or given.exists():
        return load_policy(given)
    preset = PRESETS / f"{given}.yaml"
    if preset.is_file():
        return load_policy(preset)
    *others, last = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    missing = f"can't be read: No such file or directory, and the presets are {', '.join(others)} and {last}"
    raise PolicyError([Problem(str(given), None, "", missing)])


def _cells(row: Row) -> tuple[str, str, str]:
    counts = row.by or row
    origin = f"{counts.origin} ({row.by.key})" if row.by else row.origin
    return row.key, json.dumps(counts.value, ensure_ascii=False), origin


def _print(cells: Sequence[tuple[str, str, str]]) -> None:
    """As a table that fits a terminal; whole lines elsewhere, where a program looks for ``file:line`` in them."""
    if not sys.stdout.isatty():
        widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
        for key, value, origin in cells:
            typer.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
        return
    table = Table(box=None, pad_edge=False)
    head, *body = cells
    table.add_column(head[0], no_wrap=True)
    for name in head[1:]:
        table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))  # rich would take "[withheld by policy]" for markup
    Console().print(table)


def _warn(file: Path, loaded: LoadedPolicy) -> None:
    for warning in loaded.warnings:
        typer.secho(f"{file}: warning: {warning}", fg=typer.colors.YELLOW, err=True)


def _as_json(row: Row) -> dict[str, Any]:
    """What the files say, and under ``effective`` what counts in its place, where another key decides."""
    told = {"value": row.value, "from": row.origin}
    return told | ({"effective": {"value": row.by.value, "key": row.by.key, "from": row.by.origin}} if row.by else {})
