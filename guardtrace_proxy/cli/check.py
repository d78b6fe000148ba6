"""``guardtrace check``: look at the settings, and at what the proxy will stand in front of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import anyio
import typer

from guardtrace_proxy.asgi import PROBES
from guardtrace_proxy.auditor import BUILT_IN
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.auditor.published import for_model
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.config import Config, load_config
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.inner_config import MODEL, load_inner_config
from guardtrace_proxy.server.inspect import MAX_TOKENS, Finding, inspect_upstream
from guardtrace_proxy.server.service import auditor_from
from guardtrace_proxy.wire.dialects import BY_ROUTE

VLLM_KEY = "VLLM_API_KEY"
"""The environment variable whose key vLLM asks of every request below ``/v1``."""

app = typer.Typer(help="Look at the settings and at what the proxy will stand in front of.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Look at the settings and at what the proxy will stand in front of."""


@app.command()
def upstream(
    name: Annotated[str, typer.Argument(help="The upstream's name in the config.")],
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
    model: Annotated[str | None, typer.Option(help="The model to ask; the first of /models without it.")] = None,
    max_tokens: Annotated[
        int, typer.Option(help="How long the reply may be: thinking has to end within, to show how it does.", min=1)
    ] = MAX_TOKENS,
) -> None:
    """Send one small request and print where the reasoning is, whether it starts open, and a line for the settings.

    Exit status 1, and no such line, if it couldn't be asked, or its reply ended too early to tell.
    """
    try:
        settings = load_config(config, os.environ)
    except ConfigError as error:
        fail(error, 2)
    if name not in settings.over_http:
        fail(f"there is no upstream {name!r}; known: {', '.join(settings.over_http)}", 2)
    try:
        finding = anyio.run(inspect_upstream, name, settings.over_http[name], os.environ, model, max_tokens)
    except ApiError as error:
        why = "" if error.__cause__ is None else f" ({_why(error.__cause__)})"
        fail(f"upstream {name}, {settings.over_http[name].base_url}: {error.message}{why}")
    _print(name, finding)


@app.command()
def config(
    file: Annotated[Path, typer.Argument(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
) -> None:
    """Read the settings as serve does, keys in the environment included, and serve nothing. Asks no server.

    Exit status 2 if they can't be used.
    """
    try:
        settings = load_config(file, os.environ)
        auditor_from(settings.auditor, os.environ)
    except (ConfigError, AuditorSettingsError) as error:
        fail(error, 2)
    for line in _summary(settings):
        typer.echo(line)
    for warning in _doubts(settings):
        _warn(warning)


@app.command()
def middleware(
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
) -> None:
    """Read the settings of the guard inside a model server, which itself would tell only once its model is loaded."""
    try:
        settings = load_inner_config(config, os.environ)
        auditor_from(settings.auditor, os.environ)
    except (ConfigError, AuditorSettingsError) as error:
        fail(error, 2)
    typer.echo(f"audited:         {', '.join(BY_ROUTE)}")
    typer.echo(f"passes, no key:  {', '.join(PROBES)}")
    typer.echo(f"passes, a key:   {', '.join(settings.server.passthrough) or 'none'}")
    typer.echo(f"tenants:         {', '.join(settings.tenants)}")
    for warning in _doubts(settings):
        _warn(warning)
    if os.environ.get(VLLM_KEY) and settings.upstreams[MODEL].api_key_env is None:
        _warn(
            f"{VLLM_KEY} is set, but the settings name no key for the server itself, so vLLM would answer 401 to every "
            f"request: write upstreams: {{{MODEL}: {{api_key_env: {VLLM_KEY}}}}}"
        )


def _summary(settings: Config) -> Iterator[str]:
    yield f"listens on:  {settings.server.host}:{settings.server.port}"
    for name, upstream in settings.over_http.items():
        yield f"upstream:    {name}  {upstream.base_url}"
    for key, guard in settings.auditor.guards.items():
        where = "".join(f"  {url}" for url in guard.base_url or ())
        title = "fallback:" if key.endswith("fallback") else "auditor:"
        yield f"{title:<13}{guard.model}  {guard.backend}{where}  depth {settings.auditor.depth}"
    for name, tenant in settings.tenants.items():
        anonymous = "  without a key" if name == settings.anonymous_tenant else ""
        served = f"policy {tenant.policy}  upstream {tenant.upstream}  keys {len(tenant.keys)}"
        yield f"tenant:      {name}  {served}{anonymous}"


def _doubts(settings: Config) -> Iterator[str]:
    for guard in settings.auditor.guards.values():
        yield from for_model(guard.model, None, settings.auditor.depth)[1]
        if guard.backend == "transformers" and guard.model == BUILT_IN:
            yield f"auditor {guard.model} is for demonstration and tests: it doesn't protect people"
    for name, loaded in settings.policies.items():
        for warning in loaded.warnings:
            yield f"policy {name}: {warning}"
    if not settings.tenants:
        yield "tenants: there are none, so every request is refused with 401"
    for name in settings.tenants_without_key:
        yield f"tenants.{name}: no key, and not anonymous_tenant: nobody is served as it"
    for name in settings.tenants_with_a_known_key:
        yield f"tenants.{name}: one of its keys is printed in the examples: make another (`guardtrace keys new`)"


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _warn(warning: str) -> None:
    typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)


def _print(name: str, finding: Finding) -> None:
    typer.echo(f"model:            {finding.model}")
    typer.echo(f"events:           {finding.events}")
    typer.echo(f"reasoning:        {finding.where}")
    starts_open = {True: "yes", False: "no", None: "unknown"}[finding.starts_open]
    typer.echo(f"starts open:      {starts_open}")
    typer.echo(f"finish_reason:    {finding.finish_reason}")
    typer.echo(f"ends with [DONE]: {'yes' if finding.done else 'no'}")
    typer.echo(f"usage:            {finding.usage}")
    for note in finding.notes:
        typer.secho(f"note: {note}", fg=typer.colors.YELLOW)
    if finding.config is None:
        fail(f"upstream {name}: where its thinking stands couldn't be found out: {finding.unknown}")
    typer.echo(f"\nwrite below upstreams.{name}, in place of its own `thinking` if it has one:")
    typer.echo(f"    thinking: {finding.config}")
