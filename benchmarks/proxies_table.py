"""From the figures of ``benchmarks.proxies`` to its report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.proxies import Figures

BEHIND_MS = 1000.0
"""A stream whose last token comes so late has fallen behind. A chunk that is held is judged at the end."""


def summary(found: Sequence[Figures], chunk: int, tokens: int) -> list[dict[str, Any]]:
    """Each contender's figures. ``chunk`` is how many tokens fill one, ``tokens`` how many a load of steps has."""
    cpu = {each.name: statistics.median(each.cpu) for each in found if each.cpu}
    direct = {streams: _percentile(chain(*heard), 50) for streams, heard in found[0].delays.items()}
    return [
        {
            "name": each.name,
            "skipped": each.skipped,
            "cpu_us": cpu.get(each.name),
            "cpu_us_rounds": each.cpu,
            "ratio_to_forwarder": cpu[each.name] / cpu["forwarder"] if each.cpu and "forwarder" in cpu else None,
            "tokens_per_audit": len(each.cpu) * tokens / each.audits if each.audits else None,
            "added_ms": {
                streams: [_percentile(chain(*heard), share) - direct[streams] for share in (50, 99)]
                for streams, heard in each.delays.items()
            },
            "behind": {
                streams: sum(stream[-1] > BEHIND_MS for stream in heard) for streams, heard in each.delays.items()
            },
            "release_ms": _release(each, chunk),
            "memory_mb": None if each.held_bytes is None else each.held_bytes / 1e6,
        }
        for each in found
    ]


def _release(figures: Figures, chunk: int) -> list[float] | None:
    """p50 and p99, with the fewest streams, of the delay of tokens that fill a chunk, less the auditor's own time."""
    if not figures.auditor_ms or not figures.name.endswith("hold"):
        return None
    heard = figures.delays[min(figures.delays)]
    closing = [
        stream[at] for stream in heard for at in range(len(stream)) if (at + 1) % chunk == 0 or at + 1 == len(stream)
    ]
    return [_percentile(closing, share) - figures.auditor_ms for share in (50, 99)]


def _percentile(values: Iterable[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


def print_table(content: dict[str, Any], console: Console) -> None:
    """The same for a reader."""
    load = content["load"]
    table = Table(title="What a proxy costs", title_justify="left")
    table.add_column("proxy")
    for column in ("CPU µs a token", "of the forwarder's", "tokens per audit"):
        table.add_column(column, justify="right")
    for streams in load["paced"]:
        table.add_column(f"added ms at {streams}, p50 / p99", justify="right")
    for column in ("behind", "release ms p50 / p99", "MB per 1,000"):
        table.add_column(column, justify="right")
    for each in content["results"]:
        if each["skipped"]:
            table.add_row(each["name"], f"skipped: {each['skipped']}")
            continue
        table.add_row(
            each["name"],
            _number(each["cpu_us"]),
            _number(each["ratio_to_forwarder"], 2),
            _number(each["tokens_per_audit"]),
            *(_pair(each["added_ms"].get(streams), 2) for streams in load["paced"]),
            " / ".join(str(each["behind"].get(streams, "")) for streams in load["paced"]),
            _pair(each["release_ms"], 2),
            _number(each["memory_mb"]),
        )
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in content["machine"].items()), soft_wrap=True)


def _number(value: float | None, places: int = 1) -> str:
    return "" if value is None else f"{value:,.{places}f}"


def _pair(values: Sequence[float] | None, places: int) -> str:
    return "" if values is None else " / ".join(_number(value, places) for value in values)
