"""Modes beyond hold and monitor, confirmations, localised redaction, and thinking that leaves elsewhere."""

from __future__ import annotations

import pytest

from guardtrace_proxy.gate import Decided
from guardtrace_proxy.gate.localize import MAX_PIECES
from guardtrace_proxy.gate.question import HIDDEN_THINKING
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Segment, Span, SpanKind
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, inline, policy, text

TEN = "x" * 40
"""Ten tokens."""


def lag(max_lag: int = 20, **settings: object) -> Driver:
    return Driver(policy(thinking={"mode": "lag", "max_lag": max_lag}, **settings))


# lag


def test_lag_lets_text_go_at_once_up_to_its_bound() -> None:
    driver = lag(20)
    driver.receive(text(TEN), text(TEN), text(TEN))
    assert driver.sent == text(TEN).raw * 2
    driver.answer(SAFE)
    assert driver.sent == text(TEN).raw * 3


def test_an_event_larger_than_the_bound_waits_for_its_verdict() -> None:
    driver = lag(8)
    driver.receive(text(TEN), text("", finish="stop"))
    assert driver.sent == b""
    driver.answer(SAFE)
    assert driver.sent.startswith(text(TEN).raw)


def test_in_lag_the_end_still_waits_for_the_last_verdict() -> None:
    driver = lag(64)
    driver.receive(text(TEN), text("", finish="stop"), DONE)
    assert driver.sent == text(TEN).raw
    driver.answer(SAFE)
    assert driver.sent == text(TEN).raw + text("", finish="stop").raw + DONE.raw


def test_a_cut_in_lag_drops_what_has_not_left() -> None:
    driver = Driver(policy(thinking={"mode": "lag", "max_lag": 100}), choices=2)
    driver.receive(text("first " * 12), text("other " * 12, Phase.ANSWERING, index=1))
    driver.receive(text("second " * 12))
    # The second event may leave but stands behind another choice's held answer.
    assert driver.sent == text("first " * 12).raw
    driver.answer(HARMFUL)
    driver.answer(SAFE)
    assert b"second" not in driver.sent
    assert b"0:cut:" in driver.sent


def test_after_a_hit_nothing_runs_ahead_any_more() -> None:
    driver = lag(20)
    driver.receive(text(TEN), text(TEN))
    driver.answer(MAYBE)
    driver.receive(text(TEN))
    assert driver.sent == text(TEN).raw * 2
    driver.tick(1)
    driver.answer(SAFE)
    assert driver.sent == text(TEN).raw * 3


def test_a_redaction_in_lag_replaces_what_has_not_left() -> None:
    driver = lag(10)
    driver.receive(text("a" * 40), text("b" * 40))
    assert driver.sent == text("a" * 40).raw
    driver.answer(MAYBE)
    assert driver.sent == text("a" * 40).raw + b"0:thinking:[withheld by policy]:\n"
    driver.receive(text("c" * 64))
    # The auditor judges the transcript with its redaction, what had left before included.
    assert driver.answer(SAFE).thinking == "[withheld by policy]" + "c" * 64


@pytest.mark.parametrize("localize", [False, True])
def test_a_redaction_of_arguments_that_ran_ahead_cuts_before_their_call_is_complete(localize: bool) -> None:
    redacts = {"potentially_harmful": "redact", "harmful": "redact"}
    rules = policy(answer={"mode": "lag", "max_lag": 64}, actions=redacts, redaction={"localize": localize})
    driver = Driver(rules)
    arguments = text('{"cmd": "rm. Then more. -rf /home"', Phase.ANSWERING, kind=SpanKind.ARGUMENTS)
    driver.receive(arguments)
    driver.tick(1)
    assert driver.sent == arguments.raw
    driver.answer(HARMFUL)
    driver.receive(text("}", Phase.ANSWERING, kind=SpanKind.ARGUMENTS), text("", finish="tool_calls"), DONE)
    driver.answer_all(SAFE)
    assert b"}" not in driver.sent
    assert b"tool_calls" not in driver.sent
    assert b"0:cut:" in driver.sent


def test_a_redaction_before_arguments_that_ran_ahead_and_are_safe_cuts_nothing() -> None:
    driver = Driver(policy(answer={"mode": "lag", "max_lag": 64}, boundary={"first": 4, "max": 4, "growth": 1.0}))
    said = text("a" * 16, Phase.ANSWERING)
    arguments = text('{"at": "home"}', Phase.ANSWERING, kind=SpanKind.ARGUMENTS)
    driver.receive(said, arguments, text("", finish="tool_calls"))
    driver.answer(MAYBE)
    driver.answer_all(SAFE)
    assert driver.sent == said.raw + arguments.raw + text("", finish="tool_calls").raw


def test_each_phase_has_a_bound_of_its_own() -> None:
    driver = Driver(policy(thinking={"mode": "lag", "max_lag": 20}, answer={"mode": "lag", "max_lag": 10}))
    driver.receive(text(TEN), text(TEN), text(TEN, Phase.ANSWERING))
    assert driver.sent == text(TEN).raw * 2
    driver.answer(SAFE)
    driver.receive(text(TEN, Phase.ANSWERING))
    assert driver.sent == text(TEN).raw * 2 + text(TEN, Phase.ANSWERING).raw


def test_inside_an_inline_block_the_smaller_bound_counts() -> None:
    driver = Driver(policy(thinking={"mode": "lag", "max_lag": 20}, answer={"mode": "lag", "max_lag": 10}))
    block = inline(TEN, [Segment(Phase.THINKING, TEN, False, "</think>")])
    driver.receive(block, block)
    assert driver.sent == block.raw


def test_a_redaction_in_lag_takes_back_what_was_clear_and_had_not_left() -> None:
    driver = Driver(policy(thinking={"mode": "lag", "max_lag": 100}), choices=2)
    driver.receive(text("first " * 12), text("other " * 12, Phase.ANSWERING, index=1))
    driver.receive(text("second " * 12))
    # The second event was free to leave, but stands behind another choice's held answer.
    driver.answer(MAYBE)
    driver.answer(SAFE)
    assert driver.sent == text("first " * 12).raw + text("other " * 12, Phase.ANSWERING, index=1).raw
    driver.tick(1)
    driver.answer(SAFE)
    assert b"second" in driver.sent


def test_a_whole_reply_never_runs_ahead() -> None:
    driver = lag(1000)
    spans, segments = [Span(("thinking",), "hm")], [Segment(Phase.THINKING, "hm")]
    driver.receive(Event(EventKind.COMPLETION, b"whole\n", [ChoicePart(0, spans, segments, "stop", 1)]))
    assert driver.sent == b""
    driver.answer(SAFE)
    assert driver.sent == b"whole\n"


# withhold, strip, another field


def test_withheld_thinking_is_audited_recorded_and_never_shown() -> None:
    driver = Driver(policy(thinking={"mode": "withhold"}))
    driver.receive(text("dark thoughts"), text("polite", Phase.ANSWERING, finish="stop"), DONE)
    assert driver.answer(HARMFUL).thinking == "dark thoughts"
    asked = driver.answer(SAFE)
    assert (asked.thinking, asked.answer) == (HIDDEN_THINKING, "polite")
    assert driver.sent == text("polite", Phase.ANSWERING, finish="stop").raw + DONE.raw
    decided = [output for output in driver.outputs if isinstance(output, Decided)]
    assert [entry.enforced for entry in decided] == [False, True]


def test_stripped_thinking_is_acted_on_as_its_mode_says() -> None:
    driver = Driver(policy(reasoning_field="strip"))
    driver.receive(text("dark thoughts"), text("polite", Phase.ANSWERING))
    driver.answer(HARMFUL)
    assert b"dark" not in driver.sent
    assert b":cut:" in driver.sent


def thinking_block(closed: bool = True) -> Event:
    opening = Segment(Phase.THINKING, "<think>", True, "</think>")
    inside = Segment(Phase.THINKING, "dark", False, "</think>")
    closing = Segment(Phase.THINKING, "</think>", True, "</think>")
    if not closed:
        return inline("<think>dark", [opening, inside])
    return inline("<think>dark</think>light", [opening, inside, closing, Segment(Phase.ANSWERING, "light")])


@pytest.mark.parametrize("settings", [{"thinking": {"mode": "withhold"}}, {"reasoning_field": "strip"}])
def test_inline_thinking_goes_with_its_tags(settings: dict[str, object]) -> None:
    driver = Driver(policy(**settings))
    driver.receive(thinking_block(), inline("", [], finish="stop"), DONE)
    driver.answer_all()
    assert driver.sent == b"0:content:light:\n" + inline("", [], finish="stop").raw + DONE.raw


def test_a_cut_closes_no_tag_that_the_client_never_saw() -> None:
    driver = Driver(policy(reasoning_field="strip"))
    driver.receive(thinking_block(closed=False))
    driver.tick(1)
    driver.answer(SAFE)
    driver.receive(inline("y" * 80, [Segment(Phase.THINKING, "y" * 80, False, "</think>")]))
    driver.tick(1)
    driver.answer(HARMFUL)
    assert b"0:cut:This" in driver.sent
    assert b"<think>" not in driver.sent


def test_inline_thinking_moves_to_the_field_that_is_wanted() -> None:
    driver = Driver(policy(reasoning_field="reasoning"))
    driver.receive(thinking_block(), inline("", [], finish="stop"))
    driver.answer_all()
    assert driver.sent.decode().splitlines()[:2] == ["0:reasoning:dark:", "0:content:light:"]


def test_a_field_that_is_the_wanted_one_leaves_byte_for_byte() -> None:
    segment = Segment(Phase.THINKING, "hm")
    wanted = Event(EventKind.CHUNK, b"RAW\n", [ChoicePart(0, [Span(("delta", "reasoning"), "hm")], [segment])])
    other = Event(EventKind.CHUNK, b"RAW\n", [ChoicePart(0, [Span(("delta", "thinking"), "hm")], [segment])])
    copies = Span(("delta", "reasoning"), "hm", copies=(("delta", "reasoning_content"),))
    twice = Event(EventKind.CHUNK, b"RAW\n", [ChoicePart(0, [copies], [segment])])
    for event, sent in ((wanted, b"RAW\n"), (other, b"0:reasoning:hm:\n"), (twice, b"0:reasoning:hm:\n")):
        driver = Driver(policy(reasoning_field="reasoning"))
        driver.receive(event, text("", finish="stop"))
        driver.answer_all()
        assert driver.sent.startswith(sent)


def test_moved_thinking_is_redacted_where_it_goes() -> None:
    driver = Driver(policy(reasoning_field="reasoning_content"))
    driver.receive(text("bad " * 16), text("good " * 16))
    driver.answer(MAYBE)
    driver.tick(1)
    driver.answer_all(SAFE)
    assert driver.sent.decode().splitlines() == [
        "0:reasoning_content:[withheld by policy]:",
        f"0:reasoning_content:{'good ' * 16}:",
    ]


def test_a_field_that_is_the_wanted_one_loses_tokens_that_run_ahead_into_what_is_redacted() -> None:
    part = ChoicePart(0, [Span(("reasoning",), "hm")], [Segment(Phase.THINKING, "hm")], unsaid=4)
    driver = Driver(policy(reasoning_field="reasoning"))
    driver.receive(Event(EventKind.CHUNK, b"RAW\n", [part]))
    driver.tick(1)
    driver.answer(SAFE)
    driver.receive(text("bad " * 16), text("", finish="stop"))
    driver.answer(MAYBE)
    assert driver.sent.decode().splitlines()[:2] == ["0:reasoning:hm:", "0:reasoning:[withheld by policy]:"]


def test_stripped_thinking_in_a_whole_reply() -> None:
    driver = Driver(policy(reasoning_field="strip"))
    spans = [Span(("message", "reasoning"), "hm"), Span(("message", "content"), "fine")]
    segments = [Segment(Phase.THINKING, "hm"), Segment(Phase.ANSWERING, "fine")]
    driver.receive(Event(EventKind.COMPLETION, b"whole\n", [ChoicePart(0, spans, segments, "stop", 2)]))
    driver.answer_all()
    assert b"hm" not in driver.sent
    assert b"fine" in driver.sent


# confirmations


def patient(**settings: object) -> Driver:
    return Driver(policy(decision={"confirmations": 2}, **settings))


def test_one_hit_does_nothing_and_releases_nothing() -> None:
    driver = patient()
    driver.receive(text("a" * 64))
    driver.answer(HARMFUL)
    assert driver.sent == b""
    assert not driver.audits
    assert driver.gate.deadline is None


def test_the_second_hit_in_a_row_acts_on_all_that_is_held() -> None:
    driver = patient()
    driver.receive(text("a" * 64))
    driver.answer(MAYBE)
    driver.receive(text("b" * 64))
    assert driver.answer(MAYBE).thinking == "a" * 64 + "b" * 64
    assert driver.sent == b"0:thinking:[withheld by policy]:\n"


def test_a_hit_that_is_not_confirmed_is_cleared_by_the_next_verdict() -> None:
    driver = patient()
    driver.receive(text("a" * 64))
    driver.answer(HARMFUL)
    driver.receive(text("b" * 64))
    driver.answer(SAFE)
    assert driver.sent == text("a" * 64).raw + text("b" * 64).raw
    driver.receive(text("c" * 200))
    driver.answer(HARMFUL)
    assert b":cut:" not in driver.sent


def test_tokens_that_were_asked_about_fill_no_chunk() -> None:
    driver = patient(boundary={"first": 16, "growth": 1})
    driver.receive(text("a" * 64))
    asked = driver.answer(HARMFUL)
    driver.receive(text("b" * 60))
    assert not driver.audits
    driver.receive(text("b" * 4))
    assert (asked.tokens, driver.audits[0].tokens) == (16, 16)


@pytest.mark.parametrize("last", [text("", finish="stop"), text("said", Phase.ANSWERING)])
def test_the_end_of_stream_or_phase_confirms(last: Event) -> None:
    driver = patient()
    driver.receive(text("a" * 64))
    driver.answer(HARMFUL)
    driver.receive(last)
    driver.answer(HARMFUL)
    assert b":cut:" in driver.sent
    assert b"aaa" not in driver.sent


def test_an_unconfirmed_hit_at_the_memory_bound_goes_on() -> None:
    driver = Driver(policy(decision={"confirmations": 3}), limit=60)
    driver.receive(text("a" * 64))
    for _ in range(3):
        assert driver.audits
        driver.answer(HARMFUL)
    assert b":cut:" in driver.sent


def test_a_failure_after_an_unconfirmed_hit_never_releases() -> None:
    driver = patient(on_auditor_failure="release")
    driver.receive(text("a" * 64))
    driver.answer(HARMFUL)
    driver.receive(text("b" * 64))
    driver.answer(None)
    assert b"aaa" not in driver.sent


@pytest.mark.parametrize("action", ["flag", "redact"])
@pytest.mark.parametrize("confirmations", [1, 2])
@pytest.mark.parametrize("localize", [False, True])
def test_a_failure_after_a_hit_that_was_acted_on_releases_what_came_since(
    action: str, confirmations: int, localize: bool
) -> None:
    rules = policy(
        actions={"potentially_harmful": action},
        decision={"confirmations": confirmations},
        redaction={"localize": localize},
        on_auditor_failure="release",
    )
    driver = Driver(rules)
    for _ in range(confirmations):
        driver.receive(text("It is bad. " * 8))
        driver.answer(MAYBE)
    while driver.audits:
        driver.answer(MAYBE)
    driver.receive(text("c" * 200))
    driver.answer(None)
    assert b":cut:" not in driver.sent
    assert driver.sent.endswith(b"0:note:release:\n" + text("c" * 200).raw)


# localize


def localizing(**settings: object) -> Driver:
    return Driver(policy(redaction={"localize": True}, **settings))


def search(driver: Driver, bad: str = "bad") -> None:
    while driver.audits:
        asked = driver.audits[0]
        fresh = asked.thinking[asked.judged_thinking :]
        driver.answer(MAYBE if bad in fresh else SAFE)


def test_only_the_unsafe_sentence_is_redacted() -> None:
    driver = localizing()
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    search(driver)
    assert driver.sent == (
        b"0:thinking:This is fine.[withheld by policy] This is fine too. And so is this, all of it.:\n"
    )


def test_a_search_asks_about_what_will_be_released_and_counts_tokens_once() -> None:
    driver = localizing()
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    tokens = []
    while driver.audits:
        asked = driver.audits[0]
        tokens.append(asked.tokens)
        driver.answer(MAYBE if "bad" in asked.thinking else SAFE)
    assert tokens[0] > 0
    assert not any(tokens[1:])
    driver.receive(text("More to come, all of it good and well and long enough to be a chunk."))
    assert driver.audits[0].thinking.startswith("This is fine.[withheld by policy] This is fine too.")


def test_a_search_takes_a_bounded_number_of_audits_none_larger_than_fits() -> None:
    capacity = 6000
    redacts = {"potentially_harmful": "redact", "harmful": "redact"}
    driver = Driver(policy(redaction={"localize": True}, actions=redacts), capacity=capacity)
    driver.receive(text("bad\nfine\n" * 600, finish="stop"))
    audits = 0
    while driver.audits:
        asked = driver.audits[0]
        question = asked.thinking[asked.judged_thinking :]
        driver.answer(None if len(question.encode()) > capacity else MAYBE if "bad" in question else SAFE)
        audits += 1
    assert b"bad" not in driver.sent
    assert b":cut:" not in driver.sent
    assert audits <= 2 * MAX_PIECES


def test_text_that_comes_during_a_search_waits() -> None:
    driver = localizing()
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    driver.receive(text(" Later."))
    search(driver)
    driver.tick(1)
    assert driver.audits[0].thinking.endswith(" Later.")


def test_a_harmful_part_cuts_in_the_midst_of_a_search() -> None:
    driver = localizing()
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    driver.answer(MAYBE)
    driver.answer(HARMFUL)
    assert driver.sent.startswith(b"0:cut:")


def test_an_auditor_that_fails_in_a_search_is_asked_again_or_cuts() -> None:
    driver = localizing(on_auditor_failure="hold")
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    driver.answer(MAYBE)
    before = driver.audits[0]
    driver.answer(None)
    driver.tick(0.2)
    assert driver.audits[0].thinking == before.thinking
    search(driver)
    assert b"[withheld by policy]" in driver.sent
    for rule in ("cut", "release"):
        other = localizing(on_auditor_failure=rule)
        other.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
        other.answer(MAYBE)
        other.answer(None)
        assert b"bad" not in other.sent
        assert b":cut:" in other.sent


def test_a_search_needs_no_second_confirmation() -> None:
    driver = localizing(decision={"confirmations": 2}, actions={"potentially_harmful": "redact", "harmful": "cut"})
    driver.receive(text("This is fine. This is bad. This is fine too. And so is this, all of it."))
    driver.answer(MAYBE)
    driver.receive(text(" And here is more of it. And more, to fill another chunk of this size."))
    driver.answer(MAYBE)
    driver.answer(SAFE)
    driver.answer(HARMFUL)
    assert b":cut:" in driver.sent
