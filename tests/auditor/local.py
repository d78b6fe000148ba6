"""A checkpoint of a test's own, started as the auditor in this process. Needs torch."""

from __future__ import annotations

from pathlib import Path

import anyio

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.transformers import TransformersAuditor
from guardtrace_proxy.policy.levels import Probabilities


def started(folder: Path, **settings: object) -> TransformersAuditor:
    auditor = make_auditor("transformers", model=str(folder), **settings)  # type: ignore[arg-type]
    assert isinstance(auditor, TransformersAuditor)
    anyio.run(auditor.start)
    return auditor


def triple(probabilities: Probabilities | None) -> tuple[float, float, float]:
    assert probabilities is not None
    return probabilities.safe, probabilities.potentially_harmful, probabilities.harmful
