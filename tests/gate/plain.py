"""The plainest dialect: one line an event, so that a test can read what was released without any of the wire room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardtrace_proxy.gate import StartAudit, StreamGate
from guardtrace_proxy.gate.outputs import Output, Reject, Release
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Segment, Span, SpanKind
from guardtrace_proxy.wire.fates import Cut, Fate, Kept

SAFE = Verdict(Level.SAFE, Probabilities(0.98, 0.01, 0.01))
MAYBE = Verdict(Level.POTENTIALLY_HARMFUL, Probabilities(0.1, 0.8, 0.1))
HARMFUL = Verdict(Level.HARMFUL, Probabilities(0.02, 0.08, 0.9))

DONE = Event(EventKind.DONE, b"DONE\n")


def policy(**settings: Any) -> Policy:
    return Policy.model_validate({"version": 1, **settings})


def text(
    content: str,
    phase: Phase = Phase.THINKING,
    *,
    index: int = 0,
    finish: str | None = None,
    kind: SpanKind = SpanKind.TEXT,
) -> Event:
    """An event with one text; ``finish`` makes it the last of its choice."""
    spans = [Span((phase.value,), content, kind)] if content else []
    segments = [Segment(phase, content)] if content else []
    part = ChoicePart(index, spans, segments, finish, -(-len(content.encode()) // 4), False)
    return Event(EventKind.CHUNK, f"{index}:{phase.value}:{content}:{finish or ''}\n".encode(), [part])


def inline(content: str, segments: list[Segment], *, finish: str | None = None) -> Event:
    """An event whose content holds inline tags, with the segments that became certain."""
    part = ChoicePart(
        0, [Span(("content",), content)] if content else [], segments, finish, -(-len(content) // 4), False
    )
    return Event(EventKind.CHUNK, f"0:content:{content}:{finish or ''}\n".encode(), [part])


class PlainWriter:
    """Implements ``wire.reply.Writer``. ``repeats`` are the events that mustn't leave as they came."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.repeats: list[bytes] = []

    def passes(self, event: Event) -> bool:
        self.asked.append(event.raw)
        return event.raw not in self.repeats

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        lines = []
        for part in event.parts:
            fate = fates.get(part.index)
            if isinstance(fate, Cut):
                lines.append(f"{part.index}:message:{fate.message}:content_filter")
            elif isinstance(fate, Kept):
                texts = [span.text for span in part.spans] if fate.texts is None else list(fate.texts)
                if fate.reasoning is not None:
                    lines.append(f"{part.index}:{fate.reasoning[0]}:{fate.reasoning[1]}:")
                for span, new in zip(part.spans, texts, strict=True):
                    if new or part.finish_reason:
                        lines.append(f"{part.index}:{span.path[0]}:{new}:{part.finish_reason or ''}")
        return "".join(line + "\n" for line in lines).encode()

    def cut(self, index: int, cut: Cut) -> bytes:
        return f"{index}:cut:{cut.close or ''}{cut.message}:content_filter\n".encode()

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        return f"{index}:note:{note['action']}:\n".encode()

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        return f"usage:{tokens_read if usage is None else usage['completion_tokens']}\n".encode()

    def error(self, message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
        return f"error:{code}\n".encode()

    def done(self) -> bytes:
        return b"DONE\n"


class Driver:
    """Drives a gate by hand: ``now`` is its clock, ``audits`` are those in flight, ``sent`` what left."""

    def __init__(self, rules: Policy | None = None, *, capacity: int = 4096, choices: int = 1, limit: int = 1 << 20):
        self.writer = PlainWriter()
        self.gate = StreamGate(
            rules or policy(), self.writer, capacity=capacity, max_stream_bytes=limit, choices=choices
        )
        self.now = 0.0
        self.sent = b""
        self.rejected: bytes | None = None
        self.audits: list[StartAudit] = []
        self.outputs: list[Output] = []

    def _take(self) -> None:
        for output in self.gate.take():
            self.outputs.append(output)
            if isinstance(output, Release):
                self.sent += output.data
            elif isinstance(output, Reject):
                self.rejected = output.body
            elif isinstance(output, StartAudit):
                self.audits.append(output)

    def receive(self, *events: Event) -> None:
        for event in events:
            self.gate.receive(event, self.now)
        self._take()

    def end(self, broken: str | None = None) -> None:
        self.gate.end(self.now, broken)
        self._take()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.gate.tick(self.now)
        self._take()

    def answer(self, verdict: Verdict | None = SAFE) -> StartAudit:
        """Answer the oldest audit in flight; None is a failure."""
        asked = self.audits.pop(0)
        if verdict is None:
            self.gate.audit_failed(asked.id, "timeout", self.now)
        else:
            self.gate.judged(asked.id, verdict, self.now)
        self._take()
        return asked

    def answer_all(self, verdict: Verdict | None = SAFE) -> None:
        while self.audits:
            self.answer(verdict)
