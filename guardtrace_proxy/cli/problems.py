"""How commands say what is wrong: a line a problem on standard error, no traceback."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(message: object, status: int = 1) -> NoReturn:
    """Print a message in red on standard error and end."""
    typer.secho(str(message), fg=typer.colors.RED, err=True)
    raise typer.Exit(status)
