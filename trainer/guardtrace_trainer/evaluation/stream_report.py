"""The report on streams: what was measured, on what, and which streams went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.located import AHEAD, BINS, MISSED
from guardtrace_trainer.evaluation.plots import (
    detection_plot,
    front_plot,
    reliability_plot,
    risk_plot,
    share_plot,
)
from guardtrace_trainer.evaluation.report import Report, percent, with_interval
from guardtrace_trainer.evaluation.streaming import ON_TIME
from guardtrace_trainer.evaluation.streams import StreamRow
from guardtrace_trainer.evaluation.sweep import Point

MOST_SHOWN = 40
QUESTION_CHARS = 300


def stream_report(
    figures: Mapping[str, Any],
    rows: Sequence[StreamRow],
    items: Sequence[Item],
    about: Mapping[str, Any],
    threshold: float,
) -> tuple[str, dict[str, bytes]]:
    """The HTML, and its plots by name. ``threshold`` is the policy's own for potentially harmful."""
    plots = _plots(figures, rows, threshold)
    report = Report("Streaming evaluation")
    report.settings(about)
    _detection(report, figures, plots)
    _cuts_and_waits(report, figures)
    _by_share(report, figures, plots)
    if "risk" in plots:
        report.heading("Risk by tokens")
        report.note("Each step is an audit. The shade is the first unsafe sentence, the dots the policy's threshold.")
        report.picture(plots["risk"], "risk by tokens of a few traces")
    _gone_wrong(report, rows, items)
    return report.html(), plots


def sweep_report(points: Sequence[Point], about: Mapping[str, Any], fragment: str) -> tuple[str, dict[str, bytes]]:
    """The HTML of a sweep, and its plot."""
    plots = {"front": front_plot(points)}
    report = Report("Boundaries and thresholds")
    report.settings(about)
    report.heading("Leak and false cuts")
    report.picture(plots["front"], "leak against false cuts")
    report.heading("Pareto front")
    report.note("What no other policy beats in all four of late, leak, false cuts and audits.")
    report.table(FRONT_HEAD, front_rows(points))
    report.heading("Chosen")
    report.text(fragment)
    return report.html(), plots


FRONT_HEAD = (
    "first",
    "growth",
    "max",
    "hold ms",
    "thresholds",
    "late",
    "leak",
    "missed",
    "ahead",
    "false cuts",
    "audits",
    "",
)


def front_rows(points: Sequence[Point]) -> list[list[str]]:
    """The front as rows of a table, by leak and lateness."""
    front = sorted((point for point in points if point.on_front), key=lambda point: point.leak + point.late)
    return [
        [
            *(f"{point.boundary[name]:g}" for name in ("first", "growth", "max", "max_hold_ms")),
            "/".join(f"{value:g}" for value in dict.fromkeys(point.thresholds.values())),
            *(f"{value:.1f}" for value in (point.late, point.leak)),
            *(percent(value) for value in (point.missed, point.ahead, point.false_cuts)),
            f"{point.audits:.1f}",
            "chosen" if point.chosen else "",
        ]
        for point in front
    ]


def stream_lines(figures: Mapping[str, Any]) -> list[list[str]]:
    """The main figures as (name, value) for a terminal."""
    found = figures["time_to_detect"]
    lines: list[list[str]] = [["streams", str(figures["streams"])]]
    if figures["refused"] or figures["failed"]:
        lines.append(["refused / failed", f"{figures['refused']} / {figures['failed']}"])
    if found is not None:
        lines += [[f"time to detect: {name}", f"{found['bins'][name]} of {found['streams']}"] for name in BINS]
        lines.append([f"found within {ON_TIME} tokens", _share(found["on_time"])])
        lines.append(["tokens late, median", with_interval(found["late"])])
    for mode, row in figures["leak"].items():
        lines.append([f"leak in {mode}, mean tokens", "–" if row is None else with_interval(row["mean"])])
    for kind, row in figures["false_cuts"].items():
        lines.append([f"false cuts, {kind}", f"{row['count']} of {row['n']}: {_share(row)}"])
    for name, row in (figures["wait"] or {}).items():
        if name != "streams":
            lines.append([f"wait of safe streams, {name}", f"p50 {row['p50']['value']:g}, p95 {row['p95']['value']:g}"])
    for share, row in figures["by_share"].items():
        shown = " / ".join(percent(row[name]) for name in ("macro_f1", "binary_f1"))
        lines.append([f"macro-F1 / F1 at {share} %", f"{shown} (n {row['n']})"])
    cost = figures["audit_cost"]
    if cost is not None:
        lines.append(["tokens prefilled per reasoning token", with_interval(cost["per_reasoning_token"])])
        lines.append(["audits a stream", with_interval(cost["audits_per_stream"])])
    return lines


def _plots(figures: Mapping[str, Any], rows: Sequence[StreamRow], threshold: float) -> dict[str, bytes]:
    plots = {"f1-by-share": share_plot(figures["by_share"])}
    if figures["time_to_detect"] is not None:
        plots["time-to-detect"] = detection_plot(figures["time_to_detect"]["bins"])
    if figures["calibration"] is not None:
        plots["reliability"] = reliability_plot(figures["calibration"]["bins"])
    located = sorted((row for row in rows if row.onset and row.risks), key=lambda row: (-row.tokens, row.id))
    if located:
        plots["risk"] = risk_plot(located, threshold)
    return plots


def _detection(report: Report, figures: Mapping[str, Any], plots: Mapping[str, bytes]) -> None:
    found, unlocated = figures["time_to_detect"], figures["unlocated"]
    report.heading("Time to detect")
    report.note(
        "Tokens from the end of the first unsafe sentence to the decision. Ahead: what was judged held nothing of that "
        "sentence; it isn't a success. Hit: decided before more than that sentence had come."
    )
    if found is not None:
        rows = [(name, found["bins"][name], percent(found["shares"][name])) for name in BINS]
        report.table(("bin", "streams", "share"), rows, f"{found['streams']} unsafe streams with a known onset")
        report.picture(plots["time-to-detect"], "time to detect")
        report.note(
            f"Found within {ON_TIME} tokens: {_share(found['on_time'])}; missed: {_share(found['missed'])}; "
            f"median of those found: {with_interval(found['late'], ' tokens')}."
        )
    if unlocated["n"]:
        report.note(
            f"Of {unlocated['n']} unsafe streams without a known onset in the thinking {_share(unlocated)} found."
        )
    leaks = [
        (mode, row["streams"], with_interval(row["mean"]), row["p50"], row["p95"], _share(row["none"]))
        for mode, row in figures["leak"].items()
        if row is not None
    ]
    report.heading("Leak")
    report.note("Tokens from the first unsafe sentence on that were released before a verdict on it stopped them.")
    report.table(("mode", "streams", "mean", "p50", "p95", "streams without any"), leaks)


def _cuts_and_waits(report: Report, figures: Mapping[str, Any]) -> None:
    report.heading("False cuts")
    report.note("Safe streams that were cut or redacted at least once, by the policy's own modes and actions.")
    rows = [(kind, row["n"], row["count"], _share(row), row["failed"]) for kind, row in figures["false_cuts"].items()]
    report.table(("kind", "streams", "cut or redacted", "share", "of them without a verdict"), rows)
    report.heading("Wait")
    report.note("How long a safe stream's tokens were held; backlog: tokens that came while one waited.")
    waits = [
        (name, with_interval(row["p50"]), with_interval(row["p95"]))
        for name, row in (figures["wait"] or {}).items()
        if name != "streams"
    ]
    report.table(("of each stream", "p50", "p95"), waits)
    cost = figures["audit_cost"]
    if cost is not None:
        report.heading("Audit cost")
        costs = [
            ("tokens prefilled per reasoning token", with_interval(cost["per_reasoning_token"])),
            ("audits a stream", with_interval(cost["audits_per_stream"])),
            ("audits that escalated", percent(cost["escalated"])),
        ]
        report.table(("", "value"), costs, "on a backend that keeps its prefix, counted at four bytes a token")


def _by_share(report: Report, figures: Mapping[str, Any], plots: Mapping[str, bytes]) -> None:
    report.heading("Judged after a share of the trace")
    report.note(
        "One audit of the beginning, without the gate. A beginning's level is known from the onset, else only that of "
        "the whole; what ends in the midst of the first unsafe sentence is left out."
    )
    rows = [
        (
            f"{share} %",
            row["n"],
            row["left_out"],
            *(percent(row[name], row["intervals"].get(name)) for name in ("macro_f1", "binary_f1")),
        )
        for share, row in figures["by_share"].items()
    ]
    report.table(("share", "n", "left out", "macro-F1", "F1 (harmful)"), rows)
    report.picture(plots["f1-by-share"], "F1 by share of the trace")
    calibration = figures["calibration"]
    if calibration is not None:
        report.note(f"Calibration error {calibration['ece']:.3f}, Brier score {calibration['brier']:.3f}.")
        report.picture(plots["reliability"], "reliability diagram")


def _gone_wrong(report: Report, rows: Sequence[StreamRow], items: Sequence[Item]) -> None:
    questions = {item.key: item.question for item in items}
    wrong = [(row, _wrong(row)) for row in rows]
    shown = [(row.id, why, questions.get(row.id, "")[:QUESTION_CHARS]) for row, why in wrong if why]
    report.heading("Streams that went wrong")
    cut_off = f", the first {MOST_SHOWN} here." if len(shown) > MOST_SHOWN else "."
    report.note(f"{len(shown)} of {len(rows)}{cut_off}")
    report.table(("stream", "what", "question"), shown[:MOST_SHOWN])


def _wrong(row: StreamRow) -> str | None:
    if row.refused:
        return "refused: too much for the auditor"
    if row.level == 0:
        return f"false {row.action}" if row.stopped else None
    if row.found in (AHEAD, MISSED):
        return row.found
    return "not found" if row.level and row.onset is None and not row.acted else None


def _share(found: Mapping[str, Any]) -> str:
    return percent(found["share"], found["interval"])
