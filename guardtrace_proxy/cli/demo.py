"""``guardtrace demo``: the main job on one screen."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from guardtrace_proxy.auditor import no_such_built_in
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.demo.compare import Comparison
from guardtrace_proxy.demo.run import TRACES, Demo
from guardtrace_proxy.demo.screen import comparison_view, print_summary
from guardtrace_proxy.demo.serving import ServerDidNotStart
from guardtrace_proxy.demo.traces import DemoTrace, TraceError, load_traces, pick
from guardtrace_proxy.policy.loading import PRESETS
from guardtrace_proxy.telemetry.logs import configure_logging


def demo(
    traces: Annotated[
        Path | None, typer.Option(help="Traces to replay (JSON lines); the built-in four without it.")
    ] = None,
    pace: Annotated[float, typer.Option(help="Tokens a second of the upstream; 0 is flat out.", min=0)] = 60.0,
    sample: Annotated[int | None, typer.Option(help="Replay a seeded sample of so many traces.", min=1)] = None,
    policy: Annotated[
        str, typer.Option(help="A preset: strict, balanced or monitor; chunks are sentences here.")
    ] = "balanced",
    model: Annotated[str, typer.Option(help="builtin:nano, or a local folder or hub id.")] = "builtin:nano",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Replay traces with and without the proxy, side by side.

    Exit status 1 if anything leaked: tokens from the first unsafe character on that reached the client. Else 2 if a
    trace was refused or broke off, so that it shows nothing: standard error says why.
    """
    configure_logging("console", "error")
    console = Console(quiet=as_json)
    try:
        chosen = pick(load_traces(traces or TRACES / "demo.jsonl"), sample)
    except TraceError as error:
        fail(error, 2)
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if policy not in presets:
        fail(f"--policy {policy}: expected one of {', '.join(presets)}", 2)
    if (problem := no_such_built_in(model)) is not None:
        fail(f"--model: {problem}", 2)
    console.print("Starting upstream, proxy and auditor …", style="dim")
    try:
        with Demo(chosen, pace=pace, policy=policy, model=model) as running:
            comparisons = anyio.run(_play_all, running, chosen, console)
    except (AuditorSettingsError, ServerDidNotStart) as error:
        fail(error, 2)
    total = sum(comparison.leaked_tokens or 0 for comparison in comparisons)
    if as_json:
        rows = [comparison.summary() for comparison in comparisons]
        print(json.dumps({"traces": rows, "leaked_tokens": total}, ensure_ascii=False))
    else:
        print_summary(console, comparisons)
    sys.stdout.flush()
    errors = [line for comparison in comparisons for line in comparison.errors]
    for line in errors:
        typer.secho(line, fg=typer.colors.RED, err=True)
    raise typer.Exit(1 if total else 2 if errors else 0)


async def _play_all(running: Demo, traces: list[DemoTrace], console: Console) -> list[Comparison]:
    comparisons = []
    for trace in traces:
        console.rule(Text(trace.name))
        if not console.is_terminal or console.quiet:
            comparison = await running.play(trace, lambda _: None)
            console.print(comparison_view(comparison))
        else:
            with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
                comparison = await running.play(trace, partial(_redraw, live))
        comparisons.append(comparison)
    return comparisons


def _redraw(live: Live, comparison: Comparison) -> None:
    live.update(comparison_view(comparison))
