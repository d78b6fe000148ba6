"""What the demo shows: both clients side by side, the auditor's timeline under them, a table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from guardtrace_proxy.demo.compare import Comparison, Received
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.schema import Action

COLOURS = {Action.PASS: "green", Action.FLAG: "yellow", Action.REDACT: "magenta", Action.CUT: "red"}
SHOWN_CHARS = 900
"""Of a long text only its end is shown while it streams."""
MOST_COLUMNS = 10_000
"""How wide a table may be while it is measured."""


def comparison_view(comparison: Comparison) -> RenderableType:
    """Both sides of one trace as they are now."""
    trace = comparison.trace
    question = trace.question if len(trace.question) <= 300 else trace.question[:300] + "…"
    asked = Text.assemble(("asked: ", "bold"), question)
    if trace.image is not None:
        asked.append("  [with an image]", "cyan")
    sides = Table.grid(expand=True, padding=(0, 1))
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    sides.add_row(
        _side("without the proxy", comparison.without, "white"),
        _side("through the proxy", comparison.through, "cyan"),
    )
    return Group(asked, sides, timeline_table(comparison.timeline))


class Fitting:
    """A table in its wide form, or in its narrow one where that doesn't fit whole."""

    def __init__(self, wide: Table, narrow: Table) -> None:
        self._wide = wide
        self._narrow = narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(max_width=MOST_COLUMNS), self._wide).maximum
        yield self._wide if needed <= options.max_width else self._narrow


def _side(title: str, received: Received, colour: str) -> Panel:
    text = Text()
    if received.reasoning:
        text.append("thinking  ", "bold dim").append(_tail(received.reasoning), "dim").append("\n")
    if received.content:
        text.append("answer  ", "bold").append(_tail(received.content))
    if received.error is not None:
        text.append(f"\nerror  {received.error[:200]}", "red")
    foot = "…" if not received.done else f"finish_reason: {received.finish_reason}"
    style = "red" if received.finish_reason == "content_filter" else colour
    return Panel(text, title=title, subtitle=Text(foot), border_style=style)


def _tail(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else "…" + text[-SHOWN_CHARS:]


def timeline_table(timeline: Sequence[Decided]) -> Fitting:
    """One row an audit: where it stood, what it took and what came of it."""
    return Fitting(_timeline_table(timeline, is_wide=True), _timeline_table(timeline, is_wide=False))


def _timeline_table(timeline: Sequence[Decided], *, is_wide: bool) -> Table:
    between = 2 if is_wide else 1
    table = Table(
        title="verdicts", title_justify="left", expand=False, pad_edge=False, box=None, padding=(0, between, 0, 0)
    )
    for name in ("tokens", "new", "phase", "depth", "level", "P(0)", "P(0.5)", "P(1)", "audit ms", "held ms", "action"):
        heading = name if is_wide else name.replace(" ", "\n")
        is_word = name in ("phase", "depth", "action")
        table.add_column(heading, justify="left" if is_word else "right", overflow="fold")
    for decided in timeline:
        table.add_row(*_timeline_row(decided))
    return table


def _timeline_row(decided: Decided) -> list[str | Text]:
    verdict = decided.verdict
    probabilities = None if verdict is None else verdict.probabilities
    shares = ["", "", ""]
    if probabilities is not None:
        parts = (probabilities.safe, probabilities.potentially_harmful, probabilities.harmful)
        shares = [f"{share:.3f}" for share in parts]
    action = decided.decision.action if decided.decision else Action.PASS
    return [
        str(decided.position),
        str(decided.tokens),
        decided.phase.value,
        "" if verdict is None else verdict.depth,
        "failed" if verdict is None else verdict.level.label,
        *shares,
        "" if verdict is None else f"{verdict.milliseconds:.0f}",
        f"{decided.held_ms:.0f}",
        Text(decided.failure or action.value, COLOURS[action]),
    ]


def summary_table(comparisons: Sequence[Comparison]) -> Fitting:
    """The last table."""
    return Fitting(_summary_table(comparisons, is_wide=True), _summary_table(comparisons, is_wide=False))


def _summary_table(comparisons: Sequence[Comparison], *, is_wide: bool) -> Table:
    table = Table(
        title="what got through",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if is_wide else 0,
        show_edge=is_wide,
    )
    table.add_column("trace", overflow="fold")
    for name in ("leaked", "held", "TTFT", "without", "audits"):
        table.add_column(name, justify="right", overflow="fold")
    if is_wide:
        table.add_column("annotated", justify="right")
    table.add_column("level", justify="right", overflow="fold")
    table.add_column("action", overflow="fold")
    for comparison in comparisons:
        row = comparison.summary()
        table.add_row(
            Text(row["name"]),
            "–" if row["leaked_tokens"] is None else str(row["leaked_tokens"]),
            str(row["held_tokens"]),
            _shown(row["ttft_ms"]),
            _shown(row["ttft_without_ms"]),
            str(row["audits"]),
            *([str(row["annotated"])] if is_wide else []),
            "" if row["level"] is None else f"{row['level']:g}",
            Text(row["action"], COLOURS.get(row["action"], "yellow")),
        )
    return table


def _shown(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.0f}"


def print_summary(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Print the last table and what its words mean."""
    console.print(summary_table(comparisons))
    console.print(
        "leaked: tokens from the first unsafe character on that reached the client (– where the trace names none). "
        "held: the most tokens that waited for one verdict. TTFT: milliseconds to the first token, with and without "
        "the proxy.",
        style="dim",
    )
