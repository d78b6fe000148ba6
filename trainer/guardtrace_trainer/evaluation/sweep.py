"""Boundaries and thresholds, tried on a development split: which of them nothing else beats, and one to begin with."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from guardtrace_proxy.auditor.calibration import Calibration
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, Depth, DoesNotFit
from guardtrace_proxy.policy.schema import Boundary, Policy, Thresholds
from guardtrace_trainer.evaluation.auditors import Reads
from guardtrace_trainer.evaluation.calibrate import Read, fit
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.located import AHEAD, MISSED, detection, leak, onset_of
from guardtrace_trainer.evaluation.remembering import Remembering
from guardtrace_trainer.evaluation.replay import Pace, Replayed, plan_for, replay
from guardtrace_trainer.evaluation.streams import PERCENTS, TIMEOUT_MS, beginning, right_level
from guardtrace_trainer.rows import LEVELS, AnyRow, Row
from guardtrace_trainer.several import do_each
from guardtrace_trainer.steps import Journal

HALVES_SEED = 0
"""Of the draw of the groups that a calibration is fitted on."""
MOST_MORE_AUDITS = 1.5
"""By default the choice makes at most so many times the audits of the policy that was begun with."""


class Grid(BaseModel):
    """What is tried: every combination whose first chunk isn't larger than its largest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: tuple[int, ...] = Field((8, 16, 32), min_length=1)
    growth: tuple[float, ...] = Field((1.0, 2.0), min_length=1)
    max: tuple[int, ...] = Field((32, 128), min_length=1)
    thresholds: tuple[float, ...] = Field((0.3, 0.5, 0.7, 0.9), min_length=1)
    """For both levels alike."""
    max_hold_ms: tuple[int, ...] = ()
    """Empty: the base policy's own. Where text comes slowly it bounds chunks more than their sizes do."""

    def policies(self, base: Policy) -> list[Policy]:
        """The base policy first, then the others."""
        found = [base]
        holds = self.max_hold_ms or (base.boundary.max_hold_ms,)
        for first, growth, most, threshold, hold in product(self.first, self.growth, self.max, self.thresholds, holds):
            if first > most or (growth > 1 and first == most):
                continue  # nothing to grow to
            sizes = {"first": first, "growth": growth, "max": first if growth == 1 else most, "max_hold_ms": hold}
            boundary = Boundary.model_validate({**base.boundary.model_dump(), **sizes})
            thresholds = Thresholds(potentially_harmful=threshold, harmful=threshold)
            policy = base.model_copy(update={"boundary": boundary, "thresholds": thresholds})
            if policy not in found:
                found.append(policy)
        return found


class Point(BaseModel):
    """One policy on all streams. ``late`` is the mean of tokens from the onset to the decision, where a stream that was
    missed or stopped ahead counts with all that comes behind its onset; ``leak`` that of unsafe tokens released."""

    model_config = ConfigDict(frozen=True)

    boundary: dict[str, Any]
    thresholds: dict[str, Any]
    late: float
    leak: float
    false_cuts: float
    audits: float
    ahead: float
    missed: float
    on_front: bool = False
    chosen: bool = False

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """What is to be small."""
        return self.late, self.leak, self.false_cuts, self.audits


@dataclass(frozen=True, slots=True)
class Stream:
    """What a sweep keeps of one replay; the first four are None for safe streams."""

    late: float | None
    leak: float | None
    ahead: bool | None
    missed: bool | None
    false_cut: bool | None
    audits: int


class ReadRow(Row, frozen=True, kw_only=True):
    """The label reads of one item, by its key."""

    reads: tuple[Read, ...]


class SweptRow(Row, frozen=True, kw_only=True):
    """One item, by its key: a stream for each policy, and the audits that were paid for."""

    streams: tuple[Stream, ...]
    audits: int


async def calibrated(
    items: Sequence[Item], auditor: Auditor, concurrency: int, journal: Journal[ReadRow] | None = None
) -> Calibration:
    """Label reads at shares of each trace whose level is known there: fitted on one half of the groups, measured on
    the other.

    Raises:
        ValueError: there are no reads to fit, or they are of no use.
    """

    async def read(item: Item, session: Remembering) -> ReadRow:
        onset = onset_of(item)
        reads = []
        for percent in PERCENTS:
            thinking, answer, count = beginning(item, percent)
            right = right_level(item.level, onset, count, whole=percent == 100)
            if right is None:
                continue
            try:
                found = (await session.judge(Trace(thinking, answer), Depth.LABEL)).probabilities
            except AuditorFailure:
                found = None
            reads.append(Read(LEVELS.index(right), found))
        return ReadRow(id=item.key, reads=tuple(reads))

    rows = await _row_of_each(items, auditor, concurrency, 1.0, read, journal)
    halves: tuple[list[Read], list[Read]] = ([], [])
    for item, half in zip(items, halves_of(items), strict=True):
        if item.key in rows:
            halves[half].extend(rows[item.key].reads)
    if not halves[0] or not halves[1]:
        raise ValueError(
            "there are too few items with a level to calibrate on: give at least two that aren't of one group"
        )
    return fit(*halves)


def halves_of(items: Sequence[Item]) -> list[int]:
    """The half of each item, 0 or 1. Those of one group are in the same, since they err together."""
    groups = [item.group or item.key for item in items]
    unsafe = {group for group, item in zip(groups, items, strict=True) if (item.level or 0) > 0}
    order = list(dict.fromkeys(groups))
    random.Random(HALVES_SEED).shuffle(order)
    order.sort(key=lambda group: group in unsafe)  # as many unsafe ones in each half
    half_of = {group: index % 2 for index, group in enumerate(order)}
    return [half_of[group] for group in groups]


def check_kinds(items: Sequence[Item]) -> None:
    """That there is something to be late or to leak on, and something to cut falsely.

    Raises:
        ValueError: no item has a known onset, or none is safe.
    """
    if all(onset_of(item) is None for item in items):
        raise ValueError("no item is unsafe with a known onset: every policy would look as if it missed nothing")
    if all(item.level != 0 for item in items):
        raise ValueError("no item is safe: every policy would look as if it cut nothing falsely")


async def swept(
    items: Sequence[Item],
    auditor: Auditor,
    policies: Sequence[Policy],
    *,
    depth: str,
    escalate_at: float,
    temperature: float,
    pace: Pace,
    concurrency: int,
    journal: Journal[SweptRow] | None = None,
    progress: Callable[[int, int], Any],
) -> tuple[list[Point], int]:
    """A point for each policy, and how many audits were paid for. Items in the journal aren't played again.

    Raises:
        ValueError: the items that the auditor took give nothing to choose by.
    """

    async def play(item: Item, session: Remembering) -> SweptRow:
        streams = []
        for policy in policies:
            plan = plan_for(depth, escalate_at, policy)
            replayed = await replay(session, policy, plan, item.thinking, item.answer, pace)
            streams.append(stream_of(item, replayed))
        return SweptRow(id=item.key, streams=tuple(streams), audits=session.asked)

    rows = await _row_of_each(
        items, auditor, concurrency, temperature, play, journal, lambda done: progress(done, len(items))
    )
    if not rows:
        raise ValueError("the auditor took none of the items: there is nothing to choose by")
    found = [rows[item.key] for item in items if item.key in rows]
    points = [point_of(policy, [row.streams[number] for row in found]) for number, policy in enumerate(policies)]
    return points, sum(row.audits for row in found)


async def _row_of_each(
    items: Sequence[Item],
    auditor: Auditor,
    concurrency: int,
    temperature: float,
    work: Callable[[Item, Remembering], Awaitable[AnyRow]],
    journal: Journal[AnyRow] | None,
    came: Callable[[int], Any] = lambda done: None,
) -> dict[str, AnyRow]:
    """What comes of every item that the auditor takes, by its key. What the journal has isn't done again."""
    rows: dict[str, AnyRow] = {} if journal is None else dict(journal.rows)

    async def one(item: Item) -> None:
        try:
            session = await auditor.open(item.query)
        except DoesNotFit:
            return
        try:
            row = rows[item.key] = await work(item, Remembering(Reads(session, TIMEOUT_MS), temperature))
        finally:
            await session.aclose()
        if journal is not None:
            journal.add(row)
        came(len(rows))

    await do_each([item for item in items if item.key not in rows], one, concurrency)
    return rows


def stream_of(item: Item, replayed: Replayed) -> Stream:
    """What counts of one replay."""
    onset = onset_of(item)
    false_cut = replayed.is_stopped if item.level == 0 else None
    if onset is None:
        return Stream(None, None, None, None, false_cut, len(replayed.audits))
    found = detection(replayed, onset)
    late = replayed.tokens - onset.end if found.late is None else found.late
    return Stream(late, leak(replayed, onset), found.bin == AHEAD, found.bin == MISSED, false_cut, len(replayed.audits))


def point_of(policy: Policy, streams: Sequence[Stream]) -> Point:
    """The means over streams; raises ValueError where there is none with a known onset, or none that is safe."""
    return Point(
        boundary=policy.boundary.model_dump(mode="json"),
        thresholds=policy.thresholds.model_dump(mode="json"),
        **{
            name: _mean(name, [getattr(stream, plural) for stream in streams])
            for name, plural in (
                ("late", "late"),
                ("leak", "leak"),
                ("ahead", "ahead"),
                ("missed", "missed"),
                ("false_cuts", "false_cut"),
                ("audits", "audits"),
            )
        },
    )


def _mean(name: str, values: Sequence[float | bool | None]) -> float:
    known = [float(value) for value in values if value is not None]
    if not known:
        kind = "safe" if name == "false_cuts" else "unsafe with a known onset"
        raise ValueError(f"of the items that the auditor took none is {kind}, so {name} can't be measured")
    return round(sum(known) / len(known), 4)


def choose(points: Sequence[Point], *, max_false_cuts: float, max_audits: float | None = None) -> list[Point]:
    """The points with the front marked, and the one to begin with: of those within both limits the one that finds and
    stops most; where there is none, the one with the fewest false cuts. ``max_audits`` is per stream, by default half
    as many again as those of the first point."""
    limit = points[0].audits * MOST_MORE_AUDITS if max_audits is None else max_audits
    front = {index for index, point in enumerate(points) if not any(_beats(other, point) for other in points)}
    within = [i for i in front if points[i].false_cuts <= max_false_cuts and points[i].audits <= limit]
    if within:
        best = min(within, key=lambda i: (points[i].late + points[i].leak, points[i].audits, i))
    else:
        best = min(front, key=lambda i: (points[i].false_cuts, points[i].late + points[i].leak, points[i].audits, i))
    return [
        point.model_copy(update={"on_front": index in front, "chosen": index == best})
        for index, point in enumerate(points)
    ]


def _beats(one: Point, other: Point) -> bool:
    pairs = list(zip(one.costs, other.costs, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def fragment(point: Point, extends: str, about: str) -> str:
    """The policy file that a point is; ``about`` stands above it as a comment."""
    content = {"version": 1, "extends": extends, "boundary": point.boundary, "thresholds": point.thresholds}
    comment = "".join(f"# {line}\n" for line in about.splitlines())
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
