"""Streaming evaluations and sweeps from their settings to their files, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, Field

from guardtrace_proxy.auditor.cascade import ESCALATE_AT
from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_proxy.policy.schema import Policy
from guardtrace_trainer.evaluation.data import ImageFile, Item
from guardtrace_trainer.evaluation.evaluate import CONCURRENCY, Plan, load, weights_of
from guardtrace_trainer.evaluation.machine import machine
from guardtrace_trainer.evaluation.opening import opened_auditor
from guardtrace_trainer.evaluation.readers import sources
from guardtrace_trainer.evaluation.replay import Pace, plan_for
from guardtrace_trainer.evaluation.stream_report import stream_report, sweep_report
from guardtrace_trainer.evaluation.streaming import figures
from guardtrace_trainer.evaluation.streams import Playing, StreamRow, play_all
from guardtrace_trainer.evaluation.sweep import (
    Grid,
    Point,
    ReadRow,
    SweptRow,
    calibrated,
    check_kinds,
    choose,
    fragment,
    swept,
)
from guardtrace_trainer.rows import write_rows
from guardtrace_trainer.steps import Step, versions

Log = Callable[[str], None]
Progress = Callable[[int, int], Any]
STREAMS, FIGURES, REPORT = "streams.jsonl", "streaming.json", "streaming.html"
SWEEP, SWEEP_REPORT, POLICY, CALIBRATION = "sweep.json", "sweep.html", "policy.yaml", "calibration.json"


class StreamSettings(BaseModel):
    """Who audits, under which policy, and at which pace. ``delay_ms`` is an audit's time; None: as long as it took,
    which no two runs agree on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    who: Plan
    policy: Policy
    policy_name: str = "balanced"
    tokens_per_second: float = Field(50.0, gt=0, allow_inf_nan=False)
    delay_ms: float | None = Field(100.0, ge=0, allow_inf_nan=False)

    @property
    def pace(self) -> Pace:
        """For the replay."""
        return Pace(self.tokens_per_second, self.delay_ms)

    @property
    def concurrency(self) -> int:
        """How many streams are played at once."""
        return self.who.concurrency or CONCURRENCY[self.who.served_by]

    def settings(self) -> dict[str, Any]:
        """For the manifest."""
        return {**self.model_dump(mode="json", exclude={"who"}), "who": self.who.settings()}

    def escalate_at(self, auditor: Auditor) -> float:
        """The label risk from which on a cascade annotates: the plan's, else the auditor's own."""
        own = ESCALATE_AT if auditor.escalate_at is None else auditor.escalate_at
        return own if self.who.escalate_at is None else self.who.escalate_at

    def about(self, data: Sequence[Path], escalate_at: float) -> dict[str, Any]:
        """What a report says of itself."""
        who = self.who
        took = "as long as it took" if self.delay_ms is None else f"{self.delay_ms:g} ms"
        depth = f"cascade, escalating at {escalate_at:.4g}" if who.depth == "cascade" else who.depth
        return {
            "auditor": who.auditor,
            "backend": who.served_by,
            "depth": depth,
            "prompt": None if who.prompt is None else who.prompt.name,
            "data": [path.name for path in data],
            "half": who.half,
            "policy": self.policy_name,
            "thinking / answer": f"{self.policy.thinking.mode.value} / {self.policy.answer.mode.value}",
            "boundary": self.policy.boundary.model_dump(mode="json"),
            "thresholds": self.policy.thresholds.model_dump(mode="json"),
            "pace": f"{self.tokens_per_second:g} tokens/s, an audit takes {took}",
            "machine": machine(),
            "versions": versions(),
        }


def stream_evaluate(
    settings: StreamSettings,
    data: Sequence[Path],
    out: Path,
    *,
    again: bool = False,
    log: Log,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Replay all items and write figures, streams, plots and the report into the folder ``out``; returns the figures.

    Raises:
        RowError, StepError, AuditorError, EvaluationStopped: with what to do.
    """
    items = load(settings.who, data)
    step = _step(out, "streaming", settings.settings(), settings.who, data, items, again)
    if step.done:
        log(f"{out / FIGURES} stands as it was made from the same inputs with the same settings")
        return _read(out / FIGURES)

    async def run() -> tuple[list[StreamRow], float]:
        async with opened_auditor(settings.who) as auditor:
            escalate_at = settings.escalate_at(auditor)
            plan = plan_for(settings.who.depth, escalate_at, settings.policy)
            playing = Playing(auditor, plan, settings.policy, settings.pace, round(settings.who.timeout_s * 1000))
            with step.journal("streams", StreamRow) as journal:
                if journal.rows:
                    log(f"{len(journal.rows)} of {len(items)} streams are played already")
                rows = await play_all(
                    items, playing, concurrency=settings.concurrency, journal=journal, progress=progress
                )
            return rows, escalate_at

    rows, escalate_at = anyio.run(run)
    found = figures(rows)
    about = settings.about(data, escalate_at)
    report, plots = stream_report(found, rows, items, about, settings.policy.thresholds.potentially_harmful)
    write_rows(out / STREAMS, rows)
    made = [out / STREAMS, *_write(out, {FIGURES: {**found, "about": about}, REPORT: report}, plots)]
    step.made(made, streams=len(rows))
    return found


def sweep_streams(
    settings: StreamSettings,
    data: Sequence[Path],
    out: Path,
    grid: Grid,
    *,
    max_false_cuts: float,
    max_audits: float | None = None,
    again: bool = False,
    log: Log,
    progress: Progress = lambda done, total: None,
) -> list[Point]:
    """Try the grid and write points, plot, report, the chosen policy and (where labels are read) ``calibration.json``
    into the folder ``out``; returns the points.

    Raises:
        RowError, StepError, AuditorError, EvaluationStopped, ValueError: with what to do.
    """
    items = load(settings.who, data)
    check_kinds(items)
    limits = {"max_false_cuts": max_false_cuts, "max_audits": max_audits}
    wanted = {**settings.settings(), "grid": grid.model_dump(mode="json"), **limits}
    step = _step(out, "sweep", wanted, settings.who, data, items, again)
    if step.done:
        log(f"{out / SWEEP} stands as it was made from the same inputs with the same settings")
        return [Point.model_validate(point) for point in _read(out / SWEEP)["points"]]
    policies = grid.policies(settings.policy)
    log(f"{len(policies)} policies on {len(items)} streams")
    points, calibration, escalate_at, paid = anyio.run(_sweep, settings, step, items, policies, log, progress)
    log(f"{paid} audits were made")
    points = choose(points, max_false_cuts=max_false_cuts, max_audits=max_audits)
    chosen = next(point for point in points if point.chosen)
    too_many = chosen.false_cuts > max_false_cuts
    if too_many:
        log(
            f"no policy has false cuts of at most {max_false_cuts:g}; the chosen one has the fewest, whatever it misses"
        )
    about = {**settings.about(data, escalate_at), **limits}
    text = fragment(chosen, settings.policy_name, _told(chosen, len(items), calibration is not None, too_many))
    report, plots = sweep_report(points, about, text)
    files: dict[str, Any] = {
        SWEEP: {"about": about, "audits": paid, "points": [point.model_dump(mode="json") for point in points]},
        SWEEP_REPORT: report,
        POLICY: text,
    }
    if calibration is not None:
        files[CALIBRATION] = calibration
    step.made(_write(out, files, plots), policies=len(policies), streams=len(items))
    return points


async def _sweep(
    settings: StreamSettings,
    step: Step,
    items: Sequence[Item],
    policies: Sequence[Policy],
    log: Log,
    progress: Progress,
) -> tuple[list[Point], dict[str, Any] | None, float, int]:
    async with opened_auditor(settings.who) as auditor:
        escalate_at, temperature, calibration = settings.escalate_at(auditor), 1.0, None
        if settings.who.depth != "annotate":
            if hasattr(auditor, "temperature"):
                auditor.temperature = 1.0  # as the network reads, whatever the checkpoint carries already
            with step.journal("reads", ReadRow) as reads:
                found = await calibrated(items, auditor, settings.concurrency, reads)
            log(f"temperature {found.temperature:.4g}, escalate_at {found.escalate_at:.4g}")
            temperature, calibration = found.temperature, found.model_dump(mode="json")
            escalate_at = found.escalate_at if settings.who.escalate_at is None else escalate_at
        with step.journal("streams", SweptRow) as journal:
            if journal.rows:
                log(f"{len(journal.rows)} of {len(items)} streams are played already")
            points, paid = await swept(
                items,
                auditor,
                policies,
                depth=settings.who.depth,
                escalate_at=escalate_at,
                temperature=temperature,
                pace=settings.pace,
                concurrency=settings.concurrency,
                journal=journal,
                progress=progress,
            )
        return points, calibration, escalate_at, paid


def _told(chosen: Point, streams: int, is_calibrated: bool, too_many: bool) -> str:
    lines = [
        f"Chosen by `guardtrace-train sweep` on {streams} streams: {chosen.late:.1f} tokens late,",
        f"{chosen.leak:.1f} leaked, {100 * chosen.missed:.1f} % missed, {100 * chosen.false_cuts:.1f} % false cuts,",
        f"{chosen.audits:.1f} audits a stream.",
    ]
    if too_many:
        lines.append("More false cuts than were allowed, and no policy that was tried has fewer: not one to use.")
    if is_calibrated:
        lines.append(f"Its thresholds hold with the {CALIBRATION} that was written beside it.")
    return "\n".join(lines)


def _step(
    out: Path, name: str, settings: dict[str, Any], who: Plan, data: Sequence[Path], items: Sequence[Item], again: bool
) -> Step:
    images = [item.image.path for item in items if isinstance(item.image, ImageFile)]
    files = [*(file for path in data for file in sources(path)), *images, *weights_of(who)]
    return Step(out, name, inputs=files, settings=settings, again=again)


def _write(out: Path, files: Mapping[str, Any], plots: Mapping[str, bytes]) -> list[Path]:
    """Text as it is, anything else as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (out / name).write_text(text, "utf-8")
    for name, png in plots.items():
        (out / f"{name}.png").write_bytes(png)
    return [*(out / name for name in files), *(out / f"{name}.png" for name in plots)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]
