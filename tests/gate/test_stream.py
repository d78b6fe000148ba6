"""The gate of one reply, driven by hand."""

from __future__ import annotations

import pytest

from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Segment, Span, SpanKind
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, inline, policy, text

THINK = "x" * 64
"""16 tokens: the first boundary of the default policy."""


def test_nothing_leaves_before_its_verdict() -> None:
    driver = Driver()
    driver.receive(text(THINK))
    assert driver.sent == b""
    assert driver.audits[0].thinking == THINK
    driver.answer(SAFE)
    assert driver.sent == text(THINK).raw


def test_events_without_text_pass_at_once_when_nothing_is_held() -> None:
    driver = Driver()
    driver.receive(text(""))
    assert driver.sent == text("").raw


def test_a_benign_stream_is_byte_identical() -> None:
    events = [text(""), text(THINK), text("fine", Phase.ANSWERING), text("", Phase.ANSWERING, finish="stop"), DONE]
    driver = Driver()
    driver.receive(*events)
    driver.answer_all()
    assert driver.sent == b"".join(event.raw for event in events)
    assert driver.gate.finished


def test_finish_never_leaves_before_the_last_verdict() -> None:
    driver = Driver()
    driver.receive(text("hm", finish="stop"), DONE)
    assert driver.sent == b""
    driver.answer()
    assert driver.sent.endswith(b"DONE\n")


def test_a_cut_ends_with_the_closing_frames_and_closes_the_upstream() -> None:
    driver = Driver()
    driver.receive(text(THINK))
    driver.answer(HARMFUL)
    assert driver.sent == b"0:cut:This response was stopped by policy.:content_filter\nusage:16\nDONE\n"
    assert not driver.gate.wants_upstream
    assert driver.gate.finished
    driver.receive(text("more"), DONE)
    assert driver.sent.endswith(b"usage:16\nDONE\n")


def test_usage_after_a_cut_is_the_last_running_one() -> None:
    driver = Driver()
    event = text(THINK)
    event.usage = {"completion_tokens": 7}
    driver.receive(event)
    driver.answer(HARMFUL)
    assert b"usage:7\n" in driver.sent


def test_a_cut_after_the_upstream_ended_keeps_its_own_usage_and_end() -> None:
    driver = Driver()
    usage = Event(EventKind.CHUNK, b"usage-of-upstream\n", [], {"completion_tokens": 7})
    driver.receive(text("hm", finish="stop"), usage, DONE)
    driver.answer(HARMFUL)
    assert driver.sent.splitlines() == [
        b"0:cut:This response was stopped by policy.:content_filter",
        b"usage-of-upstream",
        b"DONE",
    ]


def test_text_that_comes_during_an_audit_goes_into_the_next_one() -> None:
    driver = Driver()
    driver.receive(text(THINK))
    driver.receive(*[text("y" * 40) for _ in range(9)])
    assert len(driver.audits) == 1
    driver.answer()
    assert driver.audits[0].thinking == THINK + "y" * 360
    assert driver.audits[0].judged_thinking == len(THINK)
    assert driver.audits[0].tokens == 90


def test_chunks_grow_while_the_stream_is_calm_and_start_over_when_it_is_not() -> None:
    driver = Driver(policy(actions={"potentially_harmful": "pass"}))
    sizes = []
    for verdict in (SAFE, SAFE, SAFE, SAFE, SAFE, MAYBE, SAFE):
        while not driver.audits:
            driver.receive(text("abcd"))
        sizes.append(driver.answer(verdict).tokens)
    assert sizes == [16, 32, 64, 128, 128, 128, 16]


def test_an_old_token_does_not_wait_for_a_full_chunk() -> None:
    driver = Driver()
    driver.receive(text("slow"))
    assert driver.gate.deadline == pytest.approx(0.5)
    driver.tick(0.499)
    assert not driver.audits
    driver.tick(0.002)
    assert driver.audits[0].thinking == "slow"
    assert driver.audits[0].held_ms == pytest.approx(501)


def test_sentences_can_be_the_unit() -> None:
    driver = Driver(policy(boundary={"unit": "sentences", "first": 2, "max": 2}))
    driver.receive(text("One. And a half"))
    assert not driver.audits
    driver.receive(text(". Then more"))
    assert driver.audits[0].thinking == "One. And a half."


def test_a_chunk_of_sentences_holds_back_what_has_no_end_yet() -> None:
    driver = Driver(policy(boundary={"unit": "sentences", "first": 1, "growth": 1, "max_hold_ms": 500}))
    events = [text("One."), text(" Two. Thr"), text("ee."), text(" Four. Fi")]
    driver.receive(*events[:3])
    assert [driver.answer().thinking, driver.answer().thinking] == ["One.", "One. Two. Three."]
    driver.receive(events[3])
    assert driver.answer().thinking == "One. Two. Three. Four."
    assert driver.sent == b"".join(event.raw for event in events[:3])
    driver.tick(0.5)
    assert driver.answer().thinking == "One. Two. Three. Four. Fi"
    assert driver.sent == b"".join(event.raw for event in events)


def test_an_audit_never_mixes_phases() -> None:
    driver = Driver()
    driver.receive(text("thought"), text("said", Phase.ANSWERING))
    first = driver.answer()
    assert (first.phase, first.thinking, first.answer) == (Phase.THINKING, "thought", "")
    driver.tick(1)
    second = driver.answer()
    assert (second.phase, second.thinking, second.answer) == (Phase.ANSWERING, "thought", "said")


def test_redaction_leaves_one_placeholder_a_run_and_goes_on() -> None:
    driver = Driver()
    driver.receive(text("bad1 " * 16))
    driver.answer(MAYBE)
    driver.receive(text("bad2 " * 16))
    driver.answer(MAYBE)
    driver.receive(text("good " * 16))
    driver.answer(SAFE)
    driver.receive(text("", finish="stop"), DONE)
    lines = driver.sent.decode().splitlines()
    assert lines == ["0:thinking:[withheld by policy]:", f"0:thinking:{'good ' * 16}:", "0:thinking::stop", "DONE"]


def test_an_event_that_the_dialect_keeps_from_passing_is_written_anew_in_its_place() -> None:
    driver = Driver()
    copy, finish = text("", Phase.ANSWERING), text("", finish="stop")
    driver.writer.repeats.append(copy.raw)
    driver.receive(text("bad " * 16), copy, text("good " * 16), finish, DONE)
    driver.answer(MAYBE)
    driver.answer(SAFE)
    lines = driver.sent.decode().splitlines()
    assert lines == ["0:thinking:[withheld by policy]:", f"0:thinking:{'good ' * 16}:", "0:thinking::stop", "DONE"]
    assert driver.writer.asked == [copy.raw, text("good " * 16).raw, finish.raw]


def test_the_auditor_judges_the_transcript_with_its_redactions() -> None:
    driver = Driver()
    driver.receive(text("bad " * 16))
    driver.answer(MAYBE)
    driver.receive(text("good " * 16))
    asked = driver.answer(SAFE)
    assert asked.thinking == "[withheld by policy]" + "good " * 16
    assert asked.judged_thinking == len("[withheld by policy]")


def test_redacting_tool_arguments_cuts() -> None:
    driver = Driver()
    driver.receive(text("{" * 64, Phase.ANSWERING, kind=SpanKind.ARGUMENTS))
    driver.answer(MAYBE)
    assert b":cut:" in driver.sent
    assert b"{" not in driver.sent


def test_monitor_alters_nothing_and_records() -> None:
    driver = Driver(policy(thinking={"mode": "monitor"}, answer={"mode": "monitor"}))
    driver.receive(text(THINK), text("", finish="stop"), DONE)
    assert driver.sent == text(THINK).raw + text("", finish="stop").raw + b"DONE\n"
    assert (driver.gate.said_all, driver.gate.finished) == (True, False)
    driver.answer(HARMFUL)
    assert driver.gate.finished
    decided = [output for output in driver.outputs if isinstance(output, Decided)]
    assert not decided[0].enforced
    assert decided[0].verdict is HARMFUL


def test_with_monitored_thinking_the_answer_is_judged_without_it() -> None:
    driver = Driver(policy(thinking={"mode": "monitor"}))
    driver.receive(text("dark thoughts"), text("polite", Phase.ANSWERING, finish="stop"))
    assert driver.sent == text("dark thoughts").raw
    driver.answer(HARMFUL)
    asked = driver.answer(SAFE)
    assert "dark" not in asked.thinking
    assert asked.answer == "polite"


def test_unclosed_inline_thinking_is_held_when_only_the_answer_is() -> None:
    driver = Driver(policy(thinking={"mode": "monitor"}))
    think = Segment(Phase.THINKING, "<think>", True, "</think>")
    driver.receive(inline("<think>bad", [think, Segment(Phase.THINKING, "bad", False, "</think>")]))
    assert driver.sent == b""


def test_a_cut_closes_the_thinking_tag_that_the_client_has_seen() -> None:
    driver = Driver()
    opening = Segment(Phase.THINKING, "<think>", True, "</think>")
    driver.receive(inline("<think>" + THINK, [opening, Segment(Phase.THINKING, THINK, False, "</think>")]))
    driver.answer(SAFE)
    driver.receive(inline("y" * 200, [Segment(Phase.THINKING, "y" * 200, False, "</think>")]))
    driver.answer(HARMFUL)
    assert b"0:cut:</think>This response" in driver.sent


def test_a_cut_before_the_tag_left_closes_nothing() -> None:
    driver = Driver()
    opening = Segment(Phase.THINKING, "<think>", True, "</think>")
    driver.receive(inline("<think>" + THINK, [opening, Segment(Phase.THINKING, THINK, False, "</think>")]))
    driver.answer(HARMFUL)
    assert b"0:cut:This response" in driver.sent


def test_a_tag_that_may_still_come_holds_its_event() -> None:
    driver = Driver()
    driver.receive(inline(THINK + "<th", [Segment(Phase.ANSWERING, THINK)]))
    driver.answer(SAFE)
    assert driver.sent == b""
    driver.receive(inline("e end", [Segment(Phase.ANSWERING, "<the end")], finish="stop"))
    driver.answer(SAFE)
    assert b"<th" in driver.sent


def test_text_beyond_the_capacity_is_split_and_none_is_left_out() -> None:
    driver = Driver(capacity=50)
    driver.receive(text("ü" * 60, finish="stop"))
    seen = ""
    while driver.audits:
        asked = driver.answer()
        seen = asked.thinking
        assert len(asked.thinking[asked.judged_thinking :].encode()) <= 50
    assert seen == "ü" * 60
    assert driver.sent == text("ü" * 60, finish="stop").raw


def test_a_failed_audit_cuts_by_default() -> None:
    driver = Driver()
    driver.receive(text(THINK))
    driver.answer(None)
    assert b":cut:" in driver.sent
    assert THINK.encode() not in driver.sent


def test_a_failed_audit_can_release_with_a_mark() -> None:
    driver = Driver(policy(on_auditor_failure="release"))
    driver.receive(text(THINK))
    driver.answer(None)
    assert driver.sent == b"0:note:release:\n" + text(THINK).raw


def test_a_failed_audit_can_be_held_and_retried_until_the_limit() -> None:
    driver = Driver(policy(on_auditor_failure="hold", hold_limit_ms=1000))
    driver.receive(text(THINK))
    began, pauses = driver.now, []
    while driver.audits:
        driver.answer(None)
        if driver.gate.deadline is None:
            break
        pauses.append(driver.gate.deadline - driver.now)
        driver.tick(pauses[-1])
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.3])
    assert driver.now == pytest.approx(began + 1), "no later than hold_limit_ms"
    assert b":cut:" in driver.sent


def test_a_recovered_auditor_lets_the_held_text_go() -> None:
    driver = Driver(policy(on_auditor_failure="hold"))
    driver.receive(text(THINK))
    driver.answer(None)
    driver.tick(0.2)
    driver.answer(SAFE)
    assert driver.sent == text(THINK).raw


def test_an_upstream_that_breaks_off_never_looks_finished() -> None:
    driver = Driver()
    driver.receive(text("half a thou"))
    driver.end("connection lost")
    driver.answer(SAFE)
    assert driver.sent == text("half a thou").raw + b"error:upstream_error\n"
    assert driver.gate.finished


def test_a_finish_without_done_gets_its_done() -> None:
    driver = Driver()
    driver.receive(text("all", finish="stop"))
    driver.end()
    driver.answer(SAFE)
    assert driver.sent.endswith(b"DONE\n")


def test_an_end_without_anything_is_an_error() -> None:
    driver = Driver()
    driver.end()
    assert driver.sent == b"error:upstream_error\n"


def test_a_malformed_event_ends_the_stream_with_an_error() -> None:
    driver = Driver()
    driver.receive(text("fine"), Event(EventKind.MALFORMED, b"{", [], None, "not JSON"))
    assert not driver.gate.wants_upstream
    driver.answer(SAFE)
    assert driver.sent == text("fine").raw + b"error:upstream_error\n"


def test_the_upstreams_own_error_passes_in_order() -> None:
    driver = Driver()
    driver.receive(text("fine"), Event(EventKind.ERROR, b"ERROR\n"), DONE)
    driver.answer(SAFE)
    assert driver.sent == text("fine").raw + b"ERROR\nDONE\n"


def test_reading_pauses_at_the_bound_and_goes_on_below_it() -> None:
    driver = Driver(limit=300)
    driver.receive(text(THINK), text(THINK), text(THINK), text(THINK))
    assert not driver.gate.wants_reading
    driver.answer()
    assert driver.gate.wants_reading


def test_an_error_shaped_cut_ends_the_whole_stream() -> None:
    driver = Driver(policy(cut_shape="error"), choices=2)
    driver.receive(text(THINK), text(THINK, index=1))
    driver.answer(HARMFUL)
    assert driver.sent == b"0:cut:This response was stopped by policy.:content_filter\nDONE\n"
    assert driver.gate.finished


def test_each_choice_has_its_own_fate() -> None:
    driver = Driver(choices=2)
    driver.receive(text("a" * 64), text("b" * 64, index=1))
    driver.answer(HARMFUL)
    assert driver.gate.wants_upstream
    driver.answer(SAFE)
    driver.receive(text("a" * 64), text("", index=1, finish="stop"), DONE)
    assert driver.sent.decode().splitlines() == [
        "0:cut:This response was stopped by policy.:content_filter",
        f"1:thinking:{'b' * 64}:",
        "1:thinking::stop",
        "DONE",
    ]


def test_the_upstream_is_closed_at_the_cut_of_its_last_live_choice() -> None:
    driver = Driver(choices=2)
    driver.receive(text("a" * 64), text("b" * 64, index=1))
    driver.answer(HARMFUL)
    driver.answer(HARMFUL)
    assert not driver.gate.wants_upstream
    assert driver.sent.count(b":cut:") == 2
    assert driver.sent.endswith(b"DONE\n")


def test_an_event_of_several_choices_is_split_when_their_fates_differ() -> None:
    parts = [
        ChoicePart(index, [Span(("thinking",), letter * 64)], [Segment(Phase.THINKING, letter * 64)], None, 16)
        for index, letter in enumerate("ab")
    ]
    driver = Driver(choices=2)
    driver.receive(Event(EventKind.CHUNK, b"both\n", parts))
    driver.answer(HARMFUL)
    driver.answer(SAFE)
    assert b"both" not in driver.sent
    assert f"1:thinking:{'b' * 64}:".encode() in driver.sent
    assert b"aaa" not in driver.sent


def completion(content: str) -> Event:
    spans = [Span(("thinking",), "hm"), Span(("answering",), content)]
    segments = [Segment(Phase.THINKING, "hm"), Segment(Phase.ANSWERING, content)]
    return Event(EventKind.COMPLETION, b"whole\n", [ChoicePart(0, spans, segments, "stop", 3)])


def test_a_reply_without_streaming_walks_the_same_gate() -> None:
    driver = Driver()
    driver.receive(completion("fine"))
    driver.answer_all(SAFE)
    assert driver.sent == b"whole\n"
    assert driver.gate.finished


def test_a_cut_without_streaming_replaces_the_reply() -> None:
    driver = Driver()
    driver.receive(completion("fine"))
    driver.answer(SAFE)
    driver.answer(HARMFUL)
    assert driver.sent == b"0:message:This response was stopped by policy.:content_filter\n"


def test_an_error_shaped_cut_without_streaming_is_rejected() -> None:
    driver = Driver(policy(cut_shape="error"))
    driver.receive(completion("fine"))
    driver.answer(HARMFUL)
    assert driver.sent == b""
    assert driver.rejected is not None


def test_a_redaction_without_streaming_rewrites_the_reply() -> None:
    driver = Driver()
    driver.receive(completion("fine"))
    driver.answer(MAYBE)
    driver.answer(SAFE)
    assert driver.sent == b"0:thinking:[withheld by policy]:stop\n0:answering:fine:stop\n"


def test_flagged_text_goes_out_with_a_mark_once() -> None:
    driver = Driver(policy(actions={"potentially_harmful": "flag"}))
    driver.receive(text(THINK))
    driver.answer(MAYBE)
    driver.receive(text(THINK))
    driver.answer(MAYBE)
    assert driver.sent == b"0:note:flag:\n" + text(THINK).raw * 2


def ahead(unsaid: int) -> Event:
    """Tokens that come before their text."""
    return Event(EventKind.CHUNK, b"TOKENS\n", [ChoicePart(0, [], [], None, 0, False, unsaid)])


def test_tokens_that_run_ahead_of_their_text_wait_for_it() -> None:
    driver = Driver()
    driver.receive(text(THINK), ahead(5), text("later " * 20))
    driver.answer(SAFE)
    assert driver.sent == text(THINK).raw
    driver.tick(1)
    driver.answer(SAFE)
    assert driver.sent == text(THINK).raw + b"TOKENS\n" + text("later " * 20).raw


def test_tokens_whose_text_never_comes_leave_at_the_end() -> None:
    driver = Driver()
    driver.receive(text(THINK), ahead(5), text("", finish="stop"), DONE)
    assert driver.sent == b""
    driver.answer(SAFE)
    assert driver.sent == text(THINK).raw + b"TOKENS\n" + text("", finish="stop").raw + DONE.raw


@pytest.mark.parametrize("verdict", [MAYBE, HARMFUL])
def test_tokens_go_with_the_text_that_is_redacted_or_cut(verdict: Verdict) -> None:
    driver = Driver()
    driver.receive(ahead(5), text("bad " * 16))
    driver.answer(verdict)
    assert b"TOKENS" not in driver.sent


def test_tokens_behind_a_finish_wait_for_their_text_and_go_when_it_can_not_come() -> None:
    driver = Driver(choices=2)
    driver.receive(text("", finish="stop"), ahead(5), text("bad", index=1))
    driver.tick(1)
    assert driver.sent == text("", finish="stop").raw
    driver.answer(HARMFUL)
    assert driver.gate.finished
    assert b"TOKENS" not in driver.sent


def test_tokens_of_stripped_thinking_are_not_shown() -> None:
    driver = Driver(policy(reasoning_field="strip"))
    driver.receive(ahead(5), text("dark " * 16), text("", finish="stop"))
    driver.answer(SAFE)
    assert b"TOKENS" not in driver.sent
