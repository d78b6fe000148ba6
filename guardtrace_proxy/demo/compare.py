"""One trace twice, at the same time: straight from the upstream and through the proxy, read by the official client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import Match, SequenceMatcher
from typing import Any

import anyio
import openai

from guardtrace_proxy.demo.traces import DemoTrace, tokens_in
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.schema import Action, Messages

MIN_MATCH = 12
"""Characters that a later stretch must share with the trace to count as received: shorter ones match by chance."""
OWN_WORDS = Messages()


@dataclass(slots=True)
class Received:
    """What one client got, as far as it has come."""

    reasoning: str = ""
    content: str = ""
    finish_reason: str | None = None
    error: str | None = None
    first_token_ms: float | None = None
    done: bool = False


@dataclass(slots=True)
class Comparison:
    """One trace on both sides, and what the auditor said. ``without`` is the plain upstream, ``through`` the proxy."""

    trace: DemoTrace
    without: Received = field(default_factory=Received)
    through: Received = field(default_factory=Received)
    timeline: list[Decided] = field(default_factory=list)

    @property
    def action(self) -> str:
        """The most severe action that was taken; ``refused`` where the proxy turned the request away."""
        if self.through.error and not self.timeline:
            return "refused"
        taken = [entry.decision.action for entry in self.timeline if entry.decision and entry.enforced]
        return max(taken, key=lambda action: action.severity, default=Action.PASS).value

    @property
    def level(self) -> float | None:
        """The worst level that was judged; None where no audit came to a verdict."""
        return max((entry.verdict.level.value for entry in self.timeline if entry.verdict), default=None)

    @property
    def held_tokens(self) -> int:
        """The most tokens that waited for one verdict."""
        return max((entry.tokens for entry in self.timeline), default=0)

    @property
    def leaked_tokens(self) -> int | None:
        """Tokens from the first unsafe character on that reached the client; None where no onset is named or found."""
        trace, got = self.trace, self.through
        if not trace.names_onset:
            return None
        if trace.raw is not None:
            onset = _raw_onset(trace)
            if onset is None:
                return None
            return leaked(trace.raw, onset, _without_messages(got.reasoning + got.content))
        thinking = leaked(trace.thinking, trace.thinking_onset, _without_messages(got.reasoning))
        return thinking + leaked(trace.answer, trace.answer_onset, _without_messages(got.content))

    @property
    def errors(self) -> list[str]:
        """What ended a side before its time, a line each: what leaked says nothing then."""
        sides = {"without": self.without.error, "through": self.through.error}
        return [
            f"{self.trace.name}: {side} the proxy it ended with an error: {' '.join(error.split())}"
            for side, error in sides.items()
            if error is not None
        ]

    def summary(self) -> dict[str, Any]:
        """The row of the last table, as JSON has it."""
        return {
            "name": self.trace.name,
            "action": self.action,
            "level": self.level,
            "finish_reason": self.through.finish_reason,
            "leaked_tokens": self.leaked_tokens,
            "held_tokens": self.held_tokens,
            "ttft_ms": _rounded(self.through.first_token_ms),
            "ttft_without_ms": _rounded(self.without.first_token_ms),
            "audits": len(self.timeline),
            "annotated": sum(1 for entry in self.timeline if entry.verdict and entry.verdict.depth == "annotate"),
            "failed_audits": sum(1 for entry in self.timeline if entry.failure),
            "error": self.through.error,
        }


def leaked(text: str, onset: int | None, received: str) -> int:
    """Tokens of ``text`` from the character ``onset`` on that occur in ``received``, in their order.

    ``received`` may hold placeholders in between, and lack whatever was withheld. Its beginning counts however short
    it is, for nothing can have been left out before it.
    """
    if onset is None:
        return 0
    blocks = SequenceMatcher(None, text, received, autojunk=False).get_matching_blocks()
    parts = (text[max(block.a, onset) : block.a + block.size] for block in blocks if _counts(block))
    return sum(tokens_in(part) for part in parts)


def _counts(block: Match) -> bool:
    return block.size >= MIN_MATCH or block.a == block.b == 0


def _without_messages(received: str) -> str:
    """The presets' own messages go: they are no words of the model, though they may begin like them."""
    for message in (OWN_WORDS.cut, OWN_WORDS.auditor_failure, OWN_WORDS.redaction):
        received = received.replace(message, "\0")
    return received


def _raw_onset(trace: DemoTrace) -> int | None:
    assert trace.raw is not None
    if trace.thinking_onset is not None:
        begin = trace.raw.find(trace.thinking[: trace.thinking_onset + 1])
        return None if begin < 0 else begin + trace.thinking_onset
    if trace.answer_onset is None:
        return None
    begin = trace.raw.rfind(trace.answer)
    return None if begin < 0 else begin + trace.answer_onset


async def compare(
    comparison: Comparison, upstream: openai.AsyncOpenAI, proxy: openai.AsyncOpenAI, redraw: Callable[[], None]
) -> None:
    """Run both clients to their end; ``redraw`` is called whenever something came."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_read, comparison.trace, upstream, comparison.without, redraw)
        tasks.start_soon(_read, comparison.trace, proxy, comparison.through, redraw)


async def _read(trace: DemoTrace, client: openai.AsyncOpenAI, received: Received, redraw: Callable[[], None]) -> None:
    began = time.monotonic()
    try:
        stream = await client.chat.completions.create(
            model=trace.name,
            messages=trace.messages,  # type: ignore[arg-type]
            stream=True,
        )
        async for chunk in stream:  # type: ignore[union-attr]
            for choice in chunk.choices:
                delta = choice.delta
                reasoning = getattr(delta, "reasoning", None) or ""
                content = delta.content or ""
                if received.first_token_ms is None and (reasoning or content):
                    received.first_token_ms = (time.monotonic() - began) * 1000
                received.reasoning += reasoning
                received.content += content
                received.finish_reason = choice.finish_reason or received.finish_reason
            redraw()
    except openai.OpenAIError as error:
        received.error = str(error)
    received.done = True
    redraw()


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
