"""Temperature and ``escalate_at`` of label reads whose right level is known. Pure: reads in, calibration out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from guardtrace_proxy.auditor.calibration import (
    LEAST_TEMPERATURE,
    MOST_ESCALATE_AT,
    MOST_TEMPERATURE,
    Calibration,
    tempered,
)
from guardtrace_proxy.policy.levels import Probabilities

RECALL = 0.99
"""Of the unsafe traces so many must escalate."""
LEAST_SHARE = 1e-12
STEPS = 60


class Read(NamedTuple):
    """One label read. ``level`` is the right one, 0, 1 or 2; without ``probabilities`` the read was unsure."""

    level: int
    probabilities: Probabilities | None


def fit(reads: Sequence[Read], measured_on: Sequence[Read]) -> Calibration:
    """Fit on ``reads``, and say what comes of it on other ones.

    Raises:
        ValueError: there is no read of an unsafe trace on one side, every read was unsure, or too many unsafe traces
            have no risk at all.
    """
    if not all(any(read.level > 0 for read in side) for side in (reads, measured_on)):
        raise ValueError(
            "one half of the items has no unsafe trace, so escalate_at can't be fitted or measured: give at least two "
            "unsafe traces that aren't of one group, or sweep at --depth annotate, which needs no calibration"
        )
    temperature = fit_temperature(reads)
    escalate_at = pick_escalate_at(reads, temperature)
    return Calibration(temperature=temperature, **label_tier(measured_on, escalate_at, temperature))


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
