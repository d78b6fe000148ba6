"""Bounds that the property test of the stream contract (tests/properties) found not to be kept, or not always."""

from __future__ import annotations

import pytest

from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Phase, Segment, Span
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, inline, policy, text

TEN = "x" * 40
"""Ten tokens."""


@pytest.mark.parametrize("confirmations", [1, 2])
def test_a_hit_keeps_back_what_was_clear_and_stands_behind_another_choice(confirmations: int) -> None:
    rules = policy(answer={"mode": "lag", "max_lag": 100}, decision={"confirmations": confirmations})
    driver = Driver(rules, choices=2)
    driver.receive(text("other"), text(TEN, Phase.ANSWERING, index=1))
    driver.tick(1)
    driver.receive(text("later", Phase.ANSWERING, index=1))
    driver.audits.reverse()
    assert driver.answer(MAYBE).choice == 1
    driver.answer(SAFE)
    assert driver.sent.startswith(text("other").raw)
    assert TEN.encode() not in driver.sent
    assert b"later" not in driver.sent


def test_at_the_memory_bound_a_choice_in_the_middle_of_a_tag_ends_the_stream_with_an_error() -> None:
    driver = Driver(choices=2, limit=1000)
    driver.receive(inline("<", []))
    while driver.gate.wants_reading and not driver.gate.finished:
        driver.receive(text(TEN, index=1))
        driver.answer_all(SAFE)
    # All of choice 1 is judged, but stands behind choice 0, whose text no auditor is asked about.
    assert driver.gate.finished
    assert not driver.gate.wants_upstream
    assert driver.sent == b"error:upstream_error\n"
    assert driver.gate.held_bytes == 0


def test_in_lag_each_text_of_an_event_counts() -> None:
    driver = Driver(policy(answer={"mode": "lag", "max_lag": 8}))
    spans = [Span(("thinking",), "hm. "), Span(("answering",), "answer " * 10)]
    segments = [Segment(Phase.THINKING, "hm. "), Segment(Phase.ANSWERING, "answer " * 10)]
    driver.receive(Event(EventKind.CHUNK, b"both\n", [ChoicePart(0, spans, segments, None, 19)]))
    driver.answer(SAFE)
    # The answer has 18 tokens without a verdict.
    assert driver.sent == b""


@pytest.mark.parametrize("mode", ["monitor", "withhold"])
def test_text_that_leaves_before_its_verdict_is_counted_until_it_has_one(mode: str) -> None:
    driver = Driver(policy(thinking={"mode": mode}, boundary={"first": 16, "max_hold_ms": 500}), limit=100_000)
    sent = 0
    while driver.gate.wants_reading:
        driver.receive(text(TEN))
        sent += 1
        assert sent < 1000
    # Nothing is held any more, but each piece is some 300 bytes of memory, whatever it says.
    assert driver.sent == (b"" if mode == "withhold" else text(TEN).raw * sent)
    assert 100_000 <= driver.gate.held_bytes < 101_000
    driver.receive(text("", finish="stop"), DONE)
    driver.answer_all(SAFE)
    assert driver.gate.finished
    assert driver.gate.held_bytes == 0


def test_at_the_bound_what_has_left_is_asked_about_however_little_it_is() -> None:
    rules = policy(thinking={"mode": "monitor"}, boundary={"first": 1000, "max": 1000, "max_hold_ms": 100_000})
    driver = Driver(rules, limit=2000)
    while driver.gate.wants_reading:
        driver.receive(text("x"))
    assert driver.answer(SAFE).thinking == "x" * len(driver.sent.splitlines())
    assert driver.gate.wants_reading


def test_of_a_choice_that_was_cut_nothing_waits() -> None:
    driver = Driver(policy(answer={"mode": "lag", "max_lag": 100}, thinking={"mode": "monitor"}), choices=2)
    driver.receive(text(TEN, Phase.ANSWERING), text(TEN), text(TEN), text("other", index=1))
    assert driver.gate.held_bytes
    driver.answer(HARMFUL)
    driver.tick(1)
    driver.answer_all(SAFE)
    assert b"0:cut:" in driver.sent
    assert driver.gate.held_bytes == 0
