"""How streams end, where the property test of the stream contract (tests/properties) found something."""

from __future__ import annotations

import pytest

from guardtrace_proxy.gate import End
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Segment
from tests.gate.plain import DONE, HARMFUL, SAFE, Driver, inline, policy, text

TEN = "x" * 40
ERROR = Event(EventKind.ERROR, b"error:503\n")
AHEAD = Event(EventKind.CHUNK, b"TOKENS\n", [ChoicePart(0, [], [], unsaid=5)])
"""Tokens that come before their text."""


def test_done_leaves_behind_the_last_verdict_on_what_ran_ahead() -> None:
    driver = Driver(policy(thinking={"mode": "lag"}))
    driver.receive(text(TEN), ERROR, DONE)
    assert driver.sent == text(TEN).raw + ERROR.raw
    driver.answer(HARMFUL)
    assert driver.sent.startswith(text(TEN).raw + ERROR.raw + b"0:cut:")
    assert driver.sent.endswith(DONE.raw)


def test_of_several_errors_one_passes() -> None:
    """Providers put generated text there: each is bounded, so there may not be any number of them."""
    driver = Driver()
    others = [Event(EventKind.ERROR, b"error:%d\n" % number) for number in range(3)]
    driver.receive(ERROR, *others, text(TEN), *others, DONE)
    driver.answer_all(SAFE)
    assert driver.sent == ERROR.raw + text(TEN).raw + DONE.raw


@pytest.mark.parametrize("ends", [[DONE], []], ids=["done", "closed"])
def test_no_error_follows_a_cut(ends: list[Event]) -> None:
    """Its message is the upstream's, and bounded is not judged."""
    driver = Driver()
    driver.receive(text(TEN), ERROR, *ends)
    driver.end()
    driver.answer_all(HARMFUL)
    assert ERROR.raw not in driver.sent
    assert driver.sent.startswith(b"0:cut:")
    assert driver.sent.endswith(DONE.raw)
    driver = Driver(choices=2)
    driver.receive(text(TEN), text(TEN, index=1), ERROR)
    driver.answer(HARMFUL)
    driver.answer(SAFE)
    assert driver.sent.endswith(text(TEN, index=1).raw + ERROR.raw)


BREAKS = {
    "connection": ([], "The connection broke off."),
    "no end": ([], None),
    "shut down": ([], "The proxy is shutting down."),
    "malformed": ([Event(EventKind.MALFORMED, b"{")], None),
}


@pytest.mark.parametrize("name", BREAKS)
def test_neither_does_an_error_of_ours_where_the_reply_broke_off_before_its_last_verdict(name: str) -> None:
    events, broken = BREAKS[name]
    driver = Driver()
    driver.receive(text("x" * 64), *events)
    driver.end(broken)
    driver.answer_all(HARMFUL)
    assert driver.sent == b"0:cut:This response was stopped by policy.:content_filter\nusage:16\nDONE\n"
    assert driver.gate.ended is End.WHOLE
    driver = Driver(choices=2)
    driver.receive(text(TEN), text(TEN, index=1), *events)
    driver.end(broken)
    driver.answer(HARMFUL)
    driver.answer(SAFE)
    assert driver.sent.endswith(text(TEN, index=1).raw + b"error:upstream_error\n")
    assert driver.gate.ended is End.BROKEN_OFF


def test_a_second_cut_does_not_forget_that_the_error_was_dropped() -> None:
    driver = Driver(choices=2)
    driver.receive(text(TEN, finish="stop"), text(TEN, index=1, finish="stop"), ERROR)
    driver.end()
    driver.answer_all(HARMFUL)
    assert ERROR.raw not in driver.sent
    assert driver.sent.endswith(DONE.raw)


def test_a_reply_that_lacks_a_whole_choice_broke_off() -> None:
    driver = Driver(choices=2)
    driver.receive(text(TEN, finish="stop"))
    driver.end()
    driver.answer_all(SAFE)
    assert driver.sent == text(TEN, finish="stop").raw + b"error:upstream_error\n"


UNFINISHED = {
    "no finish": (1, [text(TEN)]),
    "nothing": (1, []),
    "one of two": (2, [text(TEN, finish="stop"), text(TEN, index=1)]),
    "one that never came": (2, [text(TEN, finish="stop")]),
    "one that nobody asked for": (1, [text(TEN, finish="stop"), text(TEN, index=1)]),
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_done_finishes_no_choice(name: str) -> None:
    """Gateways end all streams alike, also those that broke off behind them."""
    choices, events = UNFINISHED[name]
    driver = Driver(choices=choices)
    driver.receive(*events, DONE)
    driver.answer_all(SAFE)
    assert driver.sent == b"".join(event.raw for event in events) + b"error:upstream_error\n"
    assert driver.gate.finished


@pytest.mark.parametrize("early", [True, False])
def test_a_cut_finishes_what_the_upstream_didnt_whenever_its_done_comes(early: bool) -> None:
    driver = Driver()
    driver.receive(text("x" * 64))
    if early:
        driver.receive(DONE)
    driver.answer_all(HARMFUL)
    driver.receive(DONE)
    assert driver.sent == b"0:cut:This response was stopped by policy.:content_filter\nusage:16\nDONE\n"


def test_the_usage_stands_behind_the_last_cut_even_of_text_behind_its_finish() -> None:
    driver = Driver(policy(answer={"mode": "lag"}), choices=2)
    driver.receive(text("", Phase.ANSWERING, finish="stop"), text("late", Phase.ANSWERING))
    driver.receive(text(TEN, Phase.ANSWERING, index=1, finish="stop"))
    driver.end()
    driver.audits.sort(key=lambda asked: -asked.choice)
    driver.answer(HARMFUL)
    driver.answer(HARMFUL)
    assert driver.sent.splitlines()[-2].startswith(b"usage:")


def test_tokens_whose_text_nobody_judged_are_dropped_where_the_reply_breaks_off() -> None:
    """Whoever drives the gate may have forgotten what the reader still kept back."""
    driver = Driver()
    driver.receive(text(TEN), AHEAD)
    driver.end("stopped")
    driver.answer_all(SAFE)
    assert driver.sent == text(TEN).raw + b"error:upstream_error\n"


def test_tokens_of_which_the_reader_says_that_no_text_comes_leave_where_the_reply_breaks_off() -> None:
    driver = Driver()
    driver.receive(text(TEN), AHEAD, Event(EventKind.CHUNK, b"", [ChoicePart(0, [], [])]))
    driver.end("stopped")
    driver.answer_all(SAFE)
    assert driver.sent == text(TEN).raw + AHEAD.raw + b"error:upstream_error\n"


def test_in_monitor_tokens_whose_text_never_came_hold_back_no_end() -> None:
    driver = Driver(policy(thinking={"mode": "monitor"}, answer={"mode": "monitor"}))
    sent = [text(TEN), AHEAD, text("", finish="stop"), DONE]
    driver.receive(*sent)
    assert driver.sent == b"".join(event.raw for event in sent)
    assert (driver.gate.said_all, driver.gate.finished) == (True, False)
    driver = Driver()
    driver.receive(*sent)
    assert driver.sent == b""
    driver.answer_all(SAFE)
    assert driver.sent == b"".join(event.raw for event in sent)


def test_what_could_have_become_a_tag_keeps_no_reply_open() -> None:
    driver = Driver()
    driver.receive(inline("if a <", [Segment(Phase.ANSWERING, "if a ")]))
    driver.end("stopped")
    driver.answer_all(SAFE)
    assert driver.gate.finished
    assert driver.sent == b"error:upstream_error\n"


def test_neither_does_it_in_a_choice_that_nobody_asked_for() -> None:
    driver = Driver()
    nobody_asked = inline("if a <", [Segment(Phase.ANSWERING, "if a ")])
    nobody_asked.parts[0].index = 1
    driver.receive(nobody_asked, text("bad " * 16))
    driver.answer(HARMFUL)
    driver.end()
    driver.answer_all(SAFE)
    assert driver.gate.finished


def test_a_choice_that_nobody_asked_for_stands_in_for_none_that_was() -> None:
    driver = Driver(choices=2)
    runs = text(TEN, index=1)
    driver.receive(runs, text("", index=3, finish="stop"), text("bad " * 16))
    driver.answer(HARMFUL)
    assert driver.gate.wants_upstream
    assert DONE.raw not in driver.sent
    driver.receive(text("", index=1, finish="stop"), DONE)
    driver.answer_all(SAFE)
    assert driver.sent.endswith(text("", index=1, finish="stop").raw + DONE.raw)


@pytest.mark.parametrize("cut", [0, 7])
def test_a_choice_that_nobody_asked_for_is_finished_or_the_reply_broke_off(cut: int) -> None:
    for finish in (None, "stop"):
        driver = Driver()
        driver.receive(text("bad " * 16, index=cut), text(TEN, index=7 - cut))
        driver.answer(HARMFUL)
        assert driver.gate.wants_upstream
        if finish:
            driver.receive(text("", index=7 - cut, finish=finish))
        driver.end()
        driver.answer_all(SAFE)
        assert driver.sent.endswith(DONE.raw if finish else b"error:upstream_error\n")
        assert driver.gate.ended is (End.WHOLE if finish else End.BROKEN_OFF)


# How a reply ended, for records

LAG = policy(thinking={"mode": "lag"})
ERROR_SHAPE = policy(cut_shape="error")
KINDS = {
    "its own end": (End.WHOLE, policy(), SAFE, [text(TEN, finish="stop"), DONE]),
    "a finish without DONE": (End.WHOLE, policy(), SAFE, [text(TEN, finish="stop")]),
    "a cut": (End.WHOLE, policy(), HARMFUL, [text(TEN), DONE]),
    "a failed audit's cut": (End.WHOLE, policy(), None, [text(TEN, finish="stop"), DONE]),
    "a cut as an error": (End.WHOLE, ERROR_SHAPE, HARMFUL, [text(TEN), DONE]),
    "no end": (End.BROKEN_OFF, policy(), SAFE, [text(TEN)]),
    "a DONE alone": (End.BROKEN_OFF, policy(), SAFE, [text(TEN), DONE]),
    "what can't be read": (End.BROKEN_OFF, policy(), SAFE, [text(TEN), Event(EventKind.MALFORMED, b"{")]),
    "its own error": (End.BROKEN_OFF, policy(), SAFE, [text(TEN), ERROR, DONE]),
    "its own error behind its finish": (End.BROKEN_OFF, policy(), SAFE, [text(TEN, finish="stop"), ERROR]),
    "its own error ahead of a cut": (End.BROKEN_OFF, LAG, HARMFUL, [text(TEN), ERROR, DONE]),
    "an error that a cut takes away": (End.WHOLE, policy(), HARMFUL, [text(TEN), ERROR, DONE]),
    "an error that a cut's error takes away": (End.WHOLE, ERROR_SHAPE, HARMFUL, [text(TEN), ERROR, DONE]),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_gate_says_how_a_reply_ended(name: str) -> None:
    kind, rules, verdict, events = KINDS[name]
    driver = Driver(rules)
    driver.receive(*events)
    driver.end()
    driver.answer_all(verdict)
    assert (driver.gate.finished, driver.gate.ended) == (True, kind)
    seen = {line for line in driver.sent.splitlines() if line in (b"error:503", b"error:upstream_error")}
    assert bool(seen) is (kind is End.BROKEN_OFF)


def test_it_says_so_once_all_is_said_and_no_sooner() -> None:
    driver = Driver(policy(thinking={"mode": "monitor"}, answer={"mode": "monitor"}))
    driver.receive(text(TEN), text("", finish="stop"))
    assert driver.gate.ended is None
    driver.end()
    assert (driver.gate.said_all, driver.gate.finished, driver.gate.ended) == (True, False, End.WHOLE)


def test_what_was_stopped_broke_off_and_so_did_what_had_to_be_given_up() -> None:
    driver = Driver()
    driver.receive(text(TEN))
    driver.end("stopped")
    driver.answer_all(SAFE)
    assert driver.gate.ended is End.BROKEN_OFF
    driver = Driver(limit=30)
    driver.receive(text(TEN), AHEAD)
    driver.answer_all(SAFE)
    driver.receive(*[AHEAD] * 9)
    assert driver.sent.endswith(b"error:upstream_error\n")
    assert driver.gate.ended is End.BROKEN_OFF
