"""Temperature and ``escalate_at`` of a checkpoint's label reads, fitted on held-out templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from guardtrace_proxy.auditor.calibration import Calibration
from guardtrace_proxy.auditor.cascade import ESCALATE_AT
from guardtrace_proxy.auditor.protocol import Auditor, Depth
from guardtrace_proxy.auditor.transformers import TransformersAuditor
from guardtrace_trainer.evaluation.calibrate import Read, fit, label_tier
from guardtrace_trainer.nano.evaluate import SETS, Case, cases_of, verdicts_of

FITTED_ON, MEASURED_ON = 50, 70
"""Seeds of the traces; the second is that of the evaluation's other figures."""


async def label_reads(auditor: Auditor, cases: Sequence[Case]) -> list[Read]:
    """Read the label of each case."""
    verdicts = await verdicts_of(auditor, cases, Depth.LABEL)
    return [
        Read(case.level, None if verdict is None else verdict.probabilities)
        for case, verdict in zip(cases, verdicts, strict=True)
    ]


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
            reads = [await reads_by_set(auditor, count, seed) for seed in (FITTED_ON, MEASURED_ON)]
        finally:
            await auditor.aclose()
        found = fit(*reads)
        log(f"temperature {found.temperature:.4f}, escalate_at {found.escalate_at:.4f}")
        return found

    return anyio.run(run)
