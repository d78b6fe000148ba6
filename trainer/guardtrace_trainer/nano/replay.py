"""Recorded traces through the real gate and auditor, without sockets: what would a policy have done?"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import Auditor, Depth
from guardtrace_proxy.gate import Decided, StartAudit, StreamGate
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.tags import ThinkingStyle

PIECE_CHARS = 4
"""Characters a piece: about what a token is."""


@dataclass(frozen=True)
class Outcome:
    """What became of one stream."""

    decisions: tuple[Decided, ...]

    @property
    def action(self) -> Action:
        """The most severe action taken."""
        order = list(Action)
        taken = [decided.decision.action for decided in self.decisions if decided.decision]
        return max(taken, key=order.index, default=Action.PASS)


def frames_of(thinking: str, answer: str) -> list[bytes]:
    """The trace as a stream of chat-completion chunks in small pieces."""
    deltas = [
        {field: text[start : start + PIECE_CHARS]}
        for field, text in (("reasoning", thinking), ("content", answer))
        for start in range(0, len(text), PIECE_CHARS)
    ]
    frames = [_frame(delta, None) for delta in deltas]
    return [*frames, _frame({}, "stop"), b"data: [DONE]\n\n"]


def _frame(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + msgspec.json.encode({"id": "replay", "choices": [choice]}) + b"\n\n"


async def replay(
    auditor: Auditor, policy: Policy, query: Query, thinking: str, answer: str, depth: Depth = Depth.ANNOTATE
) -> Outcome:
    """Play one trace; every audit ends before the next piece comes, as on a fast auditor."""
    session = await auditor.open(query)
    writer = ChatStream(ThinkingStyle("field"), include_usage=False, max_event_bytes=1 << 20)
    gate = StreamGate(policy, writer, capacity=session.capacity, max_stream_bytes=1 << 24)
    decisions: list[Decided] = []
    try:
        for frame in frames_of(thinking, answer):
            for event in writer.feed(frame):
                gate.receive(event, 0.0)
            pending = gate.take()
            while pending:
                for output in pending:
                    if isinstance(output, Decided):
                        decisions.append(output)
                    elif isinstance(output, StartAudit):
                        trace = Trace(
                            output.thinking,
                            output.answer,
                            judged_thinking=output.judged_thinking,
                            judged_answer=output.judged_answer,
                        )
                        gate.judged(output.id, await session.judge(trace, depth), 0.0)
                pending = gate.take()
            if gate.finished or not gate.wants_upstream:
                break
    finally:
        await session.aclose()
    return Outcome(tuple(decisions))
