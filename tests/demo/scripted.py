"""Traces, and a checkpoint-free auditor that judges by words in them."""

from __future__ import annotations

from typing import Any

from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import Depth
from guardtrace_proxy.demo.traces import DemoTrace
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict


def a_trace(thinking: str = "Two and two make four.", answer: str = "Four.", **more: Any) -> DemoTrace:
    fields = {"name": "t", "question": "How?", "image": None, "raw": None, "thinking_onset": None, "answer_onset": None}
    return DemoTrace(thinking=thinking, answer=answer, **{**fields, **more})


def harmful(thinking: str = "Let me think. Then HARM is done so.", answer: str = "No.", **more: Any) -> DemoTrace:
    return a_trace(thinking, answer, **{"name": "harmful", "thinking_onset": thinking.index("Then"), **more})


def verdict(level: Level = Level.SAFE, depth: Depth = Depth.LABEL) -> Verdict:
    shares = {Level.SAFE: (0.95, 0.05, 0.0), Level.HARMFUL: (0.0, 0.1, 0.9)}[level]
    return Verdict(level, Probabilities(*shares), depth=depth.value, milliseconds=1.0)


class WordAuditor:
    """Harmful where the trace says HARM."""

    name = "words"
    warnings: tuple[str, ...] = ()
    escalate_at: float | None = None
    capacity = 100_000

    async def start(self) -> None:
        pass

    async def open(self, query: Query) -> WordAuditor:
        return self

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        return verdict(Level.HARMFUL if "HARM" in trace.thinking + trace.answer else Level.SAFE, depth)

    async def aclose(self) -> None:
        pass
