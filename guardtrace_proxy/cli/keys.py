"""``guardtrace keys``: keys for tenants."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from guardtrace_proxy.cli.problems import fail

app = typer.Typer(help="Keys for tenants.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Keys for tenants."""


@app.command()
def new(prefix: Annotated[str, typer.Option(help="What the key begins with.")] = "gt-") -> None:
    """Print a new key, once, and the hash of it that goes into guardtrace.yaml.

    The key has 256 random bits. It is stored nowhere: give it to the tenant now.
    """
    if not all("!" <= character <= "~" for character in prefix):
        fail("--prefix: expected ASCII without spaces, since a key travels in a header", 2)
    key = prefix + secrets.token_urlsafe(32)
    typer.echo(f"key (shown once, for the client):   {key}")
    typer.echo(f"hash (for tenants.NAME.keys):       sha256:{hashlib.sha256(key.encode()).hexdigest()}")
