"""One stream's audits by one way of reading it, and the tokens that they read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.shapes import reasoning
from guardtrace_proxy.auditor.growing import common_length
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn, query_text, user_text
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind, Session

EVERY = 64
"""Tokens from one audit to the next."""
ASKED = "What should I do on Monday, and in which order?"


@dataclass(frozen=True)
class Row:
    """One stream. ``prefilled_tokens`` are those read for the trace, ``tail_tokens`` those behind it in each prompt."""

    length: int
    method: str
    seconds: float
    last_audit_seconds: float
    prefilled_tokens: int
    tail_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Method:
    """An auditor and how many tokens it has read.

    ``rereads``: each audit reads the query again, and so many tokens before it. ``unsaid``: tokens of the tail as the
    local auditor reads it that this one isn't given.
    """

    name: str
    auditor: Any
    tokens_read: Callable[[], int]
    rereads: int | None = None
    unsaid: int = 0

    async def follow(self, length: int) -> Row:
        """Audit one stream at every 64 tokens."""
        # asked otherwise for each length, so that no prefix cache knows the trace from the stream before
        query = Query([Turn("user", f"{length}: {ASKED}")])
        session = await self.auditor.open(query)
        await judge(session, Trace(""))
        traces = reasoning(self.auditor, length, EVERY)
        before, seconds = self.tokens_read(), []
        for number, thinking in enumerate(traces):
            judged = len(traces[number - 1]) if number else 0
            began = time.perf_counter()
            await judge(session, Trace(thinking, judged_thinking=judged))
            seconds.append(time.perf_counter() - began)
        await session.aclose()
        head, tail = around(self.auditor, query)
        again = 0 if self.rereads is None else self.rereads + head
        tail = (tail - self.unsaid) * len(traces)
        read = self.tokens_read() - before - again * len(traces) - tail
        return Row(length, self.name, sum(seconds), seconds[-1], read, tail, EVERY * len(traces))


async def judge(session: Session, trace: Trace) -> None:
    """One label read; random weights give the labels no mass, which is found out when all is computed."""
    try:
        await session.judge(trace, Depth.LABEL)
    except AuditorFailure as failure:
        if failure.kind is not FailureKind.UNSURE:
            raise


def around(auditor: Any, asked: Query) -> tuple[int, int]:
    """Tokens before a trace that aren't the system prompt's, and tokens behind it."""

    def prompt(query: str, thinking: str) -> list[int]:
        user = user_text(query, thinking, "")
        return [*auditor.layout.prompt(auditor.system_prompt, user, [], auditor.labels.opening), auditor.labels.zero]

    query = query_text(asked.turns)
    one, other = prompt(query, "Bread."), prompt(query, "Water!")
    before, behind = common_length(one, other), common_length(one[::-1], other[::-1])
    return before - common_length(one, prompt("Another", "Bread.")), behind
