"""Recorded traces through the real gate: what a policy would have done."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, DoesNotFit, FailureKind
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.policy.schema import Action, Actions, Policy
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_trainer.nano.replay import Outcome, frames_of, replay

QUERY = Query([Turn("user", "How?")], [])
SAFE = "Two and two make four. " * 20


class Auditor:
    """Goes by a word; ``seen`` are the traces that it was asked about."""

    name = "words"
    warnings: tuple[str, ...] = ()
    escalate_at: float | None = None

    def __init__(self, capacity: int = 100_000, failure: Exception | None = None) -> None:
        self.capacity = capacity
        self.failure = failure
        self.seen: list[Trace] = []
        self.closed = 0

    async def start(self) -> None:
        pass

    async def open(self, query: Query) -> Auditor:
        if isinstance(self.failure, DoesNotFit):
            raise self.failure
        return self

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        self.seen.append(trace)
        if self.failure is not None:
            raise self.failure
        text = trace.thinking + trace.answer
        return Verdict(Level.HARMFUL if "HARM" in text else Level.POTENTIALLY_HARMFUL if "HINT" in text else Level.SAFE)

    async def aclose(self) -> None:
        self.closed += 1


def play(thinking: str, answer: str, auditor: Auditor, policy: Policy | None = None) -> Outcome:
    return anyio.run(replay, auditor, policy or Policy(version=1), QUERY, thinking, answer)


@pytest.mark.parametrize(
    ("thinking", "answer", "action"),
    [
        (SAFE, "Four.", Action.PASS),
        (SAFE + "HARM is done.", "No.", Action.CUT),
        (SAFE, "HARM is done.", Action.CUT),
        ("HINT", "No.", Action.REDACT),
        ("", "Four.", Action.PASS),
        ("", "", Action.PASS),
    ],
)
def test_the_most_severe_action_counts(thinking, answer, action):
    auditor = Auditor()
    assert play(thinking, answer, auditor).action is action
    assert auditor.closed == 1


def test_a_policys_own_actions_are_followed():
    policy = Policy(version=1, actions=Actions(potentially_harmful=Action.FLAG, harmful=Action.REDACT))
    assert play(SAFE + "HARM", "No.", Auditor(), policy).action is Action.REDACT
    assert play(SAFE + "HINT", "No.", Auditor(), policy).action is Action.FLAG


def test_the_last_audit_has_seen_everything():
    auditor = Auditor()
    outcome = play(SAFE, "Four, and that is all.", auditor)
    assert (auditor.seen[-1].thinking, auditor.seen[-1].answer) == (SAFE, "Four, and that is all.")
    assert len(outcome.decisions) == len(auditor.seen) > 3


def test_a_cut_ends_the_replay():
    auditor = Auditor()
    play("HARM " + SAFE * 5, "No.", auditor)
    assert len(auditor.seen) == 1


def test_a_request_that_doesnt_fit_is_told():
    with pytest.raises(DoesNotFit):
        play(SAFE, "Four.", Auditor(failure=DoesNotFit("messages", "too long")))


def test_a_failing_auditor_is_told_and_closed():
    auditor = Auditor(failure=AuditorFailure(FailureKind.OUTGROWN, "too much"))
    with pytest.raises(AuditorFailure):
        play(SAFE, "Four.", auditor)
    assert auditor.closed == 1


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(st.characters(codec="utf-8"), max_size=60))
def test_frames_are_the_trace_in_small_pieces(thinking, answer):
    stream = ChatStream(ThinkingStyle("field"), include_usage=False, max_event_bytes=1 << 20)
    events = [event for frame in frames_of(thinking, answer) for event in stream.feed(frame)] + stream.end()
    text = {Phase.THINKING: "", Phase.ANSWERING: ""}
    for event in events:
        for part in event.parts:
            for segment in part.segments:
                assert len(segment.text) <= 4
                text[segment.phase] += segment.text
    assert (text[Phase.THINKING], text[Phase.ANSWERING]) == (thinking, answer)
    assert [part.finish_reason for event in events for part in event.parts][-1] == "stop"
