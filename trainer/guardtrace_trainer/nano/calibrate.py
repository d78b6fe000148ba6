"""Temperature and ``escalate_at`` of a checkpoint's label reads, fitted on held-out templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import anyio
import numpy as np

from guardtrace_proxy.auditor.calibration import (
    LEAST_TEMPERATURE,
    MOST_ESCALATE_AT,
    MOST_TEMPERATURE,
    Calibration,
    tempered,
)
from guardtrace_proxy.auditor.cascade import ESCALATE_AT
from guardtrace_proxy.auditor.protocol import Auditor, Depth
from guardtrace_proxy.auditor.transformers import TransformersAuditor
from guardtrace_proxy.policy.levels import Probabilities
from guardtrace_trainer.nano.evaluate import SETS, Case, cases_of, verdicts_of

RECALL = 0.99
"""Of the unsafe traces so many must escalate."""
FITTED_ON, MEASURED_ON = 50, 70
"""Seeds of the traces; the second is that of the evaluation's other figures."""
LEAST_SHARE = 1e-12
STEPS = 60


class Read(NamedTuple):
    """One label read. ``level`` is the right one, 0, 1 or 2; without ``probabilities`` the read was unsure."""

    level: int
    probabilities: Probabilities | None


async def label_reads(auditor: Auditor, cases: Sequence[Case]) -> list[Read]:
    """Read the label of each case."""
    verdicts = await verdicts_of(auditor, cases, Depth.LABEL)
    return [
        Read(case.level, None if verdict is None else verdict.probabilities)
        for case, verdict in zip(cases, verdicts, strict=True)
    ]


def fit_temperature(reads: Iterable[Read]) -> float:
    """The temperature with the least mean negative log-likelihood of the right labels, which has one minimum."""
    sure = [(read.level, read.probabilities) for read in reads if read.probabilities is not None]
    if not sure:
        raise ValueError("every label read was unsure: this checkpoint can't be used at depth label or cascade")
    right = np.array([level for level, _ in sure])
    shares = np.array([(p.safe, p.potentially_harmful, p.harmful) for _, p in sure])
    logs = np.log(np.maximum(shares, LEAST_SHARE))

    def loss(temperature: float) -> float:
        scaled = logs / temperature
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(right)), right]).mean())

    low, high = math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)
    for _ in range(STEPS):
        third = (high - low) / 3
        if loss(math.exp(low + third)) < loss(math.exp(high - third)):
            high -= third
        else:
            low += third
    return min(max(math.exp((low + high) / 2), LEAST_TEMPERATURE), MOST_TEMPERATURE)


def pick_escalate_at(reads: Sequence[Read], temperature: float) -> float:
    """The largest label risk from which on ``RECALL`` of the unsafe traces escalate; unsure reads always do."""
    unsafe = [read for read in reads if read.level > 0]
    risks = sorted((_risk(read, temperature) for read in unsafe), reverse=True)
    needed = math.ceil(RECALL * len(risks) - 1e-9)
    found = min(risks[needed - 1], MOST_ESCALATE_AT) if needed else MOST_ESCALATE_AT
    if not found > 0:
        raise ValueError(f"label reads give too many unsafe traces no risk at all: {RECALL} of them can't escalate")
    return found


def label_tier(reads: Sequence[Read], escalate_at: float, temperature: float = 1.0) -> dict[str, Any]:
    """What a cascade's first step lets through: the share of unsafe traces that escalate, and that of safe ones."""
    caught = [_risk(read, temperature) >= escalate_at for read in reads if read.level > 0]
    safe = [_risk(read, temperature) >= escalate_at for read in reads if read.level == 0]
    return {
        "traces": len(reads),
        "escalate_at": escalate_at,
        "recall": round(sum(caught) / max(1, len(caught)), 4),
        "safe_escalated": round(sum(safe) / max(1, len(safe)), 4),
    }


def _risk(read: Read, temperature: float) -> float:
    return math.inf if read.probabilities is None else tempered(read.probabilities, temperature).risk


async def reads_by_set(auditor: Auditor, count: int, seed: int) -> list[Read]:
    """Whole traces of all held-out sets."""
    cases = [case for name in SETS for case in cases_of(name, count, seed)]
    return await label_reads(auditor, cases)


def measure(folder: str, *, count: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The label tier as the checkpoint stands, with the calibration that it carries or without."""

    async def run() -> dict[str, Any]:
        auditor = TransformersAuditor(folder)
        await auditor.start()
        try:
            reads = await reads_by_set(auditor, count, MEASURED_ON)
        finally:
            await auditor.aclose()
        return label_tier(reads, ESCALATE_AT if auditor.escalate_at is None else auditor.escalate_at)

    result = anyio.run(run)
    log(f"label tier {result}")
    return result


def calibrate(folder: str, *, count: int, log: Callable[[str], None]) -> Calibration:
    """Fit on ``count`` held-out traces a set, measure on as many others."""

    async def run() -> Calibration:
        auditor = TransformersAuditor(folder)
        await auditor.start()
        auditor.temperature = 1.0  # as the network reads, whatever the checkpoint carries already
        try:
            fitted = await reads_by_set(auditor, count, FITTED_ON)
            temperature = fit_temperature(fitted)
            escalate_at = pick_escalate_at(fitted, temperature)
            log(f"temperature {temperature:.4f}, escalate_at {escalate_at:.4f}")
            measured = label_tier(await reads_by_set(auditor, count, MEASURED_ON), escalate_at, temperature)
        finally:
            await auditor.aclose()
        return Calibration(temperature=temperature, **measured)

    return anyio.run(run)
