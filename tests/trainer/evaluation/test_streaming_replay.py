"""Recorded traces through the real gate: what a policy would have done, and when."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="the extra `train` isn't installed")

from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_trainer.evaluation.frames import frames_of, token_count, tokens_of
from guardtrace_trainer.evaluation.replay import Pace, Replayed, plan_for, replay
from tests.trainer.evaluation.word_auditor import WordAuditor

SAFE = "Two and two make four. " * 20
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


def policy(**settings: Any) -> Policy:
    return Policy.model_validate({"version": 1, **settings})


def play(
    thinking: str,
    answer: str,
    auditor: WordAuditor | None = None,
    rules: Policy | None = None,
    pace: Pace = Pace(),
    depth: str = "annotate",
) -> Replayed:
    session = auditor or WordAuditor()
    return anyio.run(replay, session, rules or policy(), plan_for(depth, 0.1), thinking, answer, pace)


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
    replayed = play(thinking, answer)
    assert replayed.action is action
    assert replayed.is_stopped is (action is not Action.PASS)


def test_a_policys_own_actions_are_followed():
    rules = policy(actions={"potentially_harmful": "flag", "harmful": "redact"})
    assert play(SAFE + "HARM", "No.", rules=rules).action is Action.REDACT
    flagged = play(SAFE + "HINT", "No.", rules=rules)
    assert flagged.action is Action.FLAG
    assert not flagged.is_stopped
    assert None not in flagged.left


def test_the_last_audit_has_seen_everything():
    auditor = WordAuditor()
    replayed = play(SAFE, "Four, and that is all.", auditor)
    assert (auditor.seen[-1].thinking, auditor.seen[-1].answer) == (SAFE, "Four, and that is all.")
    assert len(replayed.audits) == len(auditor.seen) > 3
    assert replayed.audits[-1].covered == replayed.tokens == replayed.thinking_tokens + 6


def test_a_cut_ends_the_replay():
    auditor = WordAuditor()
    replayed = play("HARM " + SAFE * 5, "No.", auditor)
    assert len(auditor.seen) == 1
    assert len(replayed.came) == 16
    assert set(replayed.left) == {None}


def test_a_failing_auditor_is_the_policys_business():
    failure = AuditorFailure(FailureKind.OUTGROWN, "too much")
    cut = play(SAFE, "Four.", WordAuditor(failure=failure))
    assert cut.is_stopped
    assert cut.has_failed
    assert not cut.audits[0].acts
    assert not play(SAFE, "Four.", WordAuditor(failure=failure), policy(on_auditor_failure="release")).is_stopped
    held = play(SAFE, "Four.", WordAuditor(failure=failure), policy(on_auditor_failure="hold", hold_limit_ms=2000))
    assert held.has_failed
    assert held.audits[-1].answered_at >= 2


def test_time_is_the_pace_of_tokens_and_that_of_audits():
    # 115 tokens of thinking at 100 a second; chunks of 16, 32, 64; an audit takes 45 ms
    replayed = play(SAFE, "", pace=Pace(100, 45))
    first = replayed.audits[0]
    assert (first.covered, first.produced) == (16, 20)
    assert first.asked_at == pytest.approx(0.15)
    assert first.answered_at == pytest.approx(0.195)
    assert replayed.came[15] == pytest.approx(0.15)
    assert replayed.left[0] == replayed.left[15] == pytest.approx(0.195)
    assert replayed.left[-1] is not None
    assert replayed.left[-1] == pytest.approx(1.14 + 0.045)


def test_what_waits_too_long_is_judged_at_the_gates_deadline():
    replayed = play(SAFE, "", rules=policy(boundary={"first": 100, "max": 100, "max_hold_ms": 100}), pace=Pace(50, 0))
    assert replayed.audits[0].asked_at == pytest.approx(0.1)
    assert replayed.audits[0].covered in (5, 6)


def test_an_audit_takes_its_own_time_unless_it_is_said():
    assert play(SAFE, "", WordAuditor(milliseconds=70), pace=Pace(100, None)).audits[0].answered_at == pytest.approx(
        0.22
    )
    assert play(SAFE, "", WordAuditor(milliseconds=70), pace=Pace(100, 10)).audits[0].answered_at == pytest.approx(0.16)


def test_in_mode_lag_text_leaves_before_its_verdict():
    rules = policy(thinking={"mode": "lag", "max_lag": 8})
    replayed = play("HARM " + SAFE, "", rules=rules, pace=Pace(100, 0))
    assert [at is not None for at in replayed.left[:17]] == [True] * 8 + [False] * 9


def test_a_redaction_keeps_its_text_and_the_rest_leaves():
    replayed = play("HINT. " + SAFE, "Four.")
    assert replayed.left[:16] == (None,) * 16
    assert None not in replayed.left[16:]


def test_thinking_that_a_policy_moves_has_left_all_the_same():
    assert None not in play(SAFE, "Four.", rules=policy(reasoning_field="reasoning_content")).left
    withheld = play(SAFE, "Four.", rules=policy(thinking={"mode": "withhold"}))
    assert set(withheld.left[: withheld.thinking_tokens]) == {None}
    assert None not in withheld.left[withheld.thinking_tokens :]


def test_what_is_prefilled_is_the_new_text_and_a_tail_for_each_audit():
    replayed = play(SAFE, "")
    tail = token_count("\nCurrent Task Cleaned Response: ") + 9
    assert replayed.audits[0].prefilled == pytest.approx(16 + tail, abs=1)
    assert replayed.audits[1].prefilled == pytest.approx(32 + tail, abs=1)


def test_a_cascade_that_escalates_reads_the_turns_end_twice():
    once, twice = (play("HINT" * 16, "", depth=depth) for depth in ("annotate", "cascade"))
    assert twice.audits[0].prefilled == once.audits[0].prefilled + 9


def test_an_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="none of label, annotate, cascade"):
        plan_for("deep", 0.1)


@given(TEXTS)
def test_tokens_are_the_text_in_pieces_of_four_bytes(text):
    pieces = tokens_of(text)
    assert "".join(pieces) == text
    assert all(1 <= len(piece.encode()) <= 4 for piece in pieces)
    assert len(pieces) == token_count(text)


@given(TEXTS, TEXTS)
def test_frames_are_the_trace_a_token_each(thinking, answer):
    stream = ChatStream(ThinkingStyle("field"), include_usage=False, max_event_bytes=1 << 20)
    frames = frames_of(thinking, answer)
    assert len({*frames}) == len(frames)
    events = [event for frame in frames for event in stream.feed(frame)] + stream.end()
    text = {Phase.THINKING: "", Phase.ANSWERING: ""}
    for event in events:
        for part in event.parts:
            assert part.tokens == len(part.segments) <= 1
            for segment in part.segments:
                text[segment.phase] += segment.text
    assert (text[Phase.THINKING], text[Phase.ANSWERING]) == (thinking, answer)
    assert [part.finish_reason for event in events for part in event.parts][-1] == "stop"


@given(st.integers(0, 40), st.integers(0, 20), st.sampled_from([None, 20.0, 200.0]), st.sampled_from([0, 30, 400]))
def test_in_mode_hold_a_token_leaves_behind_a_verdict_that_covers_it(before, after, rate, delay):
    thinking = "Fine. " * before + "HARM. " + "Fine. " * after
    replayed = play(thinking, "No.", pace=Pace(rate, delay))
    assert replayed.action is Action.CUT
    for number, at in enumerate(replayed.left):
        if at is not None:
            assert any(a.covered > number and a.answered_at <= at and not a.acts for a in replayed.audits)
            assert at >= replayed.came[number]
