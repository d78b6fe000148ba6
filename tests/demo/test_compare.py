"""What is said to have leaked: tokens from the first character of the first unsafe sentence on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from guardtrace_proxy.demo.compare import Comparison, Received, leaked
from guardtrace_proxy.demo.screen import summary_table
from guardtrace_proxy.demo.traces import tokens_in
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.policy.schema import Action, Messages
from guardtrace_proxy.wire.events import Phase
from tests.demo.scripted import a_trace, harmful, verdict

CUT, FAILURE, REDACTION = Messages().cut, Messages().auditor_failure, Messages().redaction


def decided(action: Action, told: Verdict | None, tokens: int = 4, enforced: bool = True) -> Decided:
    decision = Decision(None if told is None else told.level, action)
    failure = None if told else "timeout"
    return Decided(0, Phase.THINKING, decision, told, failure, enforced, tokens, tokens, 1.5)


def test_leaked_counts_from_the_first_unsafe_character():
    text = "Let me think. Then do it so."
    assert leaked(text, 14, text) == tokens_in("Then do it so.")
    assert leaked(text, 14, text[:14]) == 0
    assert leaked(text, 14, text[:15]) == 1
    assert leaked(text, 14, "") == 0
    assert leaked(text, None, text) == 0


def test_what_stands_after_a_redaction_counts():
    text = "A safe beginning of it. Take the ladder and climb. Then walk away at once."
    received = text[:24] + REDACTION + text[50:]
    assert leaked(text, 24, received) == tokens_in(text[50:])


def test_an_unsafe_beginning_counts_however_short_it_is():
    assert leaked("Take the ladder.", 0, "Ta") == 1


@given(st.text(alphabet="abc .", min_size=1, max_size=80), st.data())
def test_of_a_beginning_exactly_what_lies_behind_the_onset_leaked(text, data):
    onset = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(0, len(text)))
    assert leaked(text, onset, text[:end]) == tokens_in(text[onset:end])


@given(st.text(max_size=80), st.text(max_size=80), st.data())
def test_it_is_never_more_than_there_was_to_leak(text, received, data):
    onset = data.draw(st.integers(0, len(text)))
    assert 0 <= leaked(text, onset, received) <= sum(tokens_in(c) for c in text[onset:])


def test_without_an_onset_nothing_is_claimed():
    assert Comparison(a_trace(), through=Received("Two and", "Four.")).leaked_tokens is None


def test_thinking_and_answer_are_counted_apart():
    comparison = Comparison(harmful(answer="Climb over.", answer_onset=0))
    comparison.through = Received("Let me think. ", CUT)
    assert comparison.leaked_tokens == 0
    comparison.through = Received("Let me think. Then", "Climb" + CUT)
    assert comparison.leaked_tokens == tokens_in("Then") + tokens_in("Climb")


@pytest.mark.parametrize("answer", ["This is how it is done.", "[with a ladder]", "T"])
def test_the_proxys_own_words_are_no_leak(answer):
    comparison = Comparison(a_trace(answer=answer, answer_onset=0))
    comparison.through = Received("Two and two make four.", CUT)
    assert comparison.leaked_tokens == 0
    comparison.through = Received("Two and two make four.", FAILURE)
    assert comparison.leaked_tokens == 0
    comparison.through = Received("", REDACTION)
    assert comparison.leaked_tokens == 0


def test_raw_output_is_counted_with_its_tags():
    trace = harmful(raw="<think>Let me think. Then HARM is done so.</think>No.")
    assert Comparison(trace, through=Received("", "<think>Let me think. </think>" + CUT)).leaked_tokens == 0
    assert Comparison(trace, through=Received("", "<think>Let me think. Then HA")).leaked_tokens == tokens_in("Then HA")
    trace = a_trace(raw="<think>Fine.</think>Climb over.", thinking="Fine.", answer="Climb over.", answer_onset=0)
    assert Comparison(trace, through=Received("", "<think>Fine.</think>")).leaked_tokens == 0
    assert Comparison(trace, through=Received("", trace.raw)).leaked_tokens == tokens_in("Climb over.")


def test_an_onset_that_raw_output_lacks_claims_nothing():
    trace = harmful(raw="<think>Something else.</think>No.")
    assert Comparison(trace, through=Received("", trace.raw)).leaked_tokens is None


def test_a_request_that_was_turned_away_did_not_pass():
    comparison = Comparison(harmful(), through=Received("", "", None, "Error code: 400 - too long"))
    row = comparison.summary()
    assert (row["action"], row["audits"], row["level"]) == ("refused", 0, None)
    with (console := Console(width=120)).capture() as shown:
        console.print(summary_table([comparison]))
    assert "refused" in shown.get()


def test_the_row_of_the_last_table():
    comparison = Comparison(harmful())
    comparison.through = Received("Let me think. ", CUT, "content_filter", None, 12.345, True)
    comparison.timeline = [
        decided(Action.PASS, verdict(), tokens=9),
        decided(Action.CUT, None),
        decided(Action.REDACT, verdict(Level.HARMFUL), tokens=2),
    ]
    row = comparison.summary()
    assert (row["name"], row["action"], row["level"], row["finish_reason"]) == ("harmful", "cut", 1.0, "content_filter")
    assert (row["leaked_tokens"], row["held_tokens"], row["audits"], row["failed_audits"]) == (0, 9, 3, 1)
    assert (row["ttft_ms"], row["ttft_without_ms"], row["error"]) == (12.3, None, None)


def test_what_was_only_recorded_is_no_action():
    comparison = Comparison(harmful(), timeline=[decided(Action.CUT, verdict(Level.HARMFUL), enforced=False)])
    assert (comparison.action, comparison.level) == ("pass", 1.0)
    assert Comparison(harmful()).level is None
