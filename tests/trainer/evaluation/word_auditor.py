"""An auditor that goes by words, for tests of what is done with verdicts."""

from __future__ import annotations

from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import Depth, DoesNotFit
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict

LEVELS = {"HARM": Level.HARMFUL, "HINT": Level.POTENTIALLY_HARMFUL}
SHARES = {
    Level.SAFE: Probabilities(0.96, 0.03, 0.01),
    Level.POTENTIALLY_HARMFUL: Probabilities(0.2, 0.7, 0.1),
    Level.HARMFUL: Probabilities(0.05, 0.05, 0.9),
}


class WordAuditor:
    """``HARM`` is harmful and ``HINT`` potentially so; ``seen`` are the traces that it was asked about."""

    name = "words"
    warnings: tuple[str, ...] = ()
    escalate_at: float | None = None

    def __init__(self, capacity: int = 100_000, failure: Exception | None = None, milliseconds: float = 0.0) -> None:
        self.capacity = capacity
        self.failure = failure
        self.milliseconds = milliseconds
        self.seen: list[Trace] = []
        self.opened = 0
        self.closed = 0

    async def start(self) -> None:
        pass

    async def open(self, query: Query) -> WordAuditor:
        if isinstance(self.failure, DoesNotFit):
            raise self.failure
        self.opened += 1
        return self

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        self.seen.append(trace)
        if self.failure is not None:
            raise self.failure
        text = trace.thinking + trace.answer
        level = next((level for word, level in LEVELS.items() if word in text), Level.SAFE)
        analysis = None if depth is Depth.LABEL else f"{len(text)} characters."
        return Verdict(level, SHARES[level], analysis, depth.value, self.milliseconds)

    async def aclose(self) -> None:
        self.closed += 1
