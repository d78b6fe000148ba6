"""``guardtrace auditor``: what an operator does about the guard model before it serves."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import anyio
import typer

from guardtrace_proxy.auditor import published
from guardtrace_proxy.auditor.protocol import AuditorError
from guardtrace_proxy.auditor.selftest import self_test
from guardtrace_proxy.auditor.selftest_audits import Report
from guardtrace_proxy.cli.auditor_serve import serve
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.outgoing import BadCaFile
from guardtrace_proxy.server.config import key_problem
from guardtrace_proxy.telemetry.logs import configure_logging

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


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A hub id, a folder or builtin:nano; with --base-url a served model.")],
    base_url: Annotated[
        str | None, typer.Option(help="Of an OpenAI-compatible server, ending in /v1; without it, in this process.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The variable that holds the server's key.")] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="PEM with the authorities that may have signed the server's certificate, not certifi's."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="auditor.max_context, as the proxy will have it.", min=512)
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each speed is measured.", min=0.1)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test a guard model before it serves: is it whole, does it see images, can its replies be read, how fast is it?

    Exit status 1, with one sentence, at the first thing that is wrong. Its verdicts are shown, not held against it.
    """
    configure_logging("console", "error")
    why = None if api_key_env is None else key_problem(api_key_env, os.environ)
    if why is not None:
        fail(f"--api-key-env: {why}", 2)
    key = os.environ[api_key_env] if api_key_env else None
    if ca_file is not None and not (base_url or "").lower().startswith("https://"):
        fail("--ca-file has no effect without a --base-url that begins with https://", 2)
    try:
        authorities = None if ca_file is None else str(ca_file)
        report = anyio.run(self_test, model, base_url, key, seconds, authorities, max_context)
    except BadCaFile as error:
        fail(f"--ca-file: {error}", 2)
    except AuditorError as error:
        fail(error)
    typer.echo(json.dumps(dataclasses.asdict(report), ensure_ascii=False) if as_json else _told(report))


def _told(report: Report) -> str:
    lines = [
        f"{name + ':':<15}{value:,}" if isinstance(value, int) else f"{name + ':':<15}{value}"
        for name, value in {"model": report.model, **report.facts}.items()
    ]
    lines.append("")
    for said in report.verdicts:
        lines.append(
            f"{said.depth:<10}{said.trace:<15}level {said.level:<5}risk {said.risk:.2f}  {said.milliseconds:,.0f} ms"
        )
    lines.append("")
    for name, rate in (("prefill", report.prefill_tokens_per_second), ("decode", report.decode_tokens_per_second)):
        lines.append(f"{name + ':':<15}{'not known' if rate is None else f'about {rate:,.0f} tokens a second'}")
    for speed in report.speeds:
        lines.append(
            f"{speed.depth + ':':<15}{speed.audits_per_second:,.1f} audits a second, enough for about "
            f"{speed.streams:,.1f} streams of 50 tokens a second, audited every 64"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
