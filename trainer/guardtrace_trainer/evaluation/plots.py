"""Plots of streaming figures as PNG, drawn with matplotlib's Agg: no screen, no window, no state of pyplot's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guardtrace_trainer.evaluation.located import AHEAD, HIT, MISSED
from guardtrace_trainer.evaluation.streams import StreamRow
from guardtrace_trainer.evaluation.sweep import Point

BLUE, RED, GREY, GREEN = "#3465a4", "#cc3333", "#888888", "#4e9a06"
COLOURS = {AHEAD: GREY, HIT: GREEN, MISSED: RED}
MOST_TRACES = 6
DPI = 110


def detection_plot(bins: Mapping[str, int]) -> bytes:
    """Streams by time to detect."""
    figure, axes = _axes(6.4, 3.2)
    bars = axes.bar(list(bins), list(bins.values()), color=[COLOURS.get(name, BLUE) for name in bins])
    axes.bar_label(bars)
    axes.set(xlabel="tokens from the onset to the decision", ylabel="streams", title="Time to detect")
    axes.margins(y=0.15)
    return _png(figure)


def share_plot(by_share: Mapping[str, Mapping[str, Any]]) -> bytes:
    """F1 after shares of the trace, with intervals."""
    figure, axes = _axes(6.4, 3.2)
    for name, label, colour, shift in (("macro_f1", "macro-F1", BLUE, -0.6), ("binary_f1", "F1 (harmful)", RED, 0.6)):
        known = [(int(percent), row) for percent, row in by_share.items() if row[name] is not None]
        if not known:
            continue
        values = [row[name] for _, row in known]
        spans = [row["intervals"].get(name, (row[name], row[name])) for _, row in known]
        errors = [
            [max(0.0, value - low) for value, (low, _) in zip(values, spans, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, spans, strict=True)],
        ]
        places = [percent + shift for percent, _ in known]
        axes.errorbar(places, values, errors, label=label, color=colour, marker="o", capsize=3)
    axes.set(xlabel="% of the trace", ylabel="F1", ylim=(0, 1.05), xlim=(0, 105))
    axes.set_title("Judged after a share of the trace")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")
    return _png(figure)


def reliability_plot(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Risk against the share of unsafe prefixes; numbers are how many each dot stands for."""
    figure, axes = _axes(4.2, 4.0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    risks, shares = [row["risk"] for row in bins], [row["unsafe"] for row in bins]
    axes.plot(risks, shares, color=BLUE, marker="o")
    for row in bins:
        axes.annotate(str(row["n"]), (row["risk"], row["unsafe"]), xytext=(4, -10), textcoords="offset points", size=7)
    axes.set(xlabel="risk P(0.5) + P(1)", ylabel="share that is unsafe", title="Reliability")
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    return _png(figure)


def risk_plot(rows: Sequence[StreamRow], threshold: float) -> bytes:
    """Risk by tokens judged, of a few traces; the shade is the first unsafe sentence."""
    shown = rows[:MOST_TRACES]
    figure = Figure(figsize=(7.2, 1.1 + 0.95 * len(shown)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, row in zip(grid, shown, strict=True):
        axes.step([at for at, _ in row.risks], [risk for _, risk in row.risks], where="post", color=BLUE, marker=".")
        axes.axhline(threshold, color=GREY, linestyle=":", linewidth=0.8)
        if row.onset is not None:
            axes.axvspan(*row.onset, color=RED, alpha=0.25)
        axes.set(xlim=(0, max(1, row.tokens)), ylim=(-0.05, 1.05), yticks=(0, 1))
        title = f"{row.id} ({row.found or row.action})".replace("$", r"\$")  # else matplotlib reads formulas
        axes.set_title(title, size=8, loc="left")
    grid[-1].set_xlabel("tokens")
    figure.suptitle("Risk as the trace grows", size=10)
    return _png(figure)


def front_plot(points: Sequence[Point]) -> bytes:
    """Leak against false cuts, a dot for each policy that was tried; the line is what nothing beats in both."""
    figure, axes = _axes(6.4, 3.8)
    others = [point for point in points if not point.on_front]
    front = [point for point in points if point.on_front]
    for some, colour, label in ((others, GREY, "beaten"), (front, BLUE, "Pareto front")):
        axes.scatter([100 * p.false_cuts for p in some], [p.leak for p in some], color=colour, s=18, label=label)
    lowest = lower_hull(points)
    axes.step([100 * p.false_cuts for p in lowest], [p.leak for p in lowest], where="post", color=BLUE, linewidth=0.8)
    for p in points:
        if p.chosen:
            axes.scatter([100 * p.false_cuts], [p.leak], facecolors="none", edgecolors=RED, s=110, label="chosen")
    axes.set(xlabel="safe streams cut or redacted, %", ylabel="unsafe tokens released, mean")
    axes.set_title("Leak and false cuts")
    axes.legend(fontsize=8)
    return _png(figure)


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in leak and false cuts, by rising false cuts."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.false_cuts, point.leak)):
        if not kept or point.leak < kept[-1].leak:
            kept.append(point)
    return kept


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": ""})
    return data.getvalue()
