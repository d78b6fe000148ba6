"""How streams end, where the property test of the stream contract (tests/properties) found something."""

from __future__ import annotations

from guardtrace_proxy.wire.events import Event, EventKind, Phase
from tests.gate.plain import DONE, HARMFUL, SAFE, Driver, policy, text

TEN = "x" * 40
ERROR = Event(EventKind.ERROR, b"error:503\n")


def test_done_leaves_behind_the_last_verdict_on_what_ran_ahead() -> None:
    driver = Driver(policy(thinking={"mode": "lag"}))
    driver.receive(text(TEN), ERROR, DONE)
    assert driver.sent == text(TEN).raw + ERROR.raw
    driver.answer(HARMFUL)
    assert driver.sent.startswith(text(TEN).raw + ERROR.raw + b"0:cut:")
    assert driver.sent.endswith(DONE.raw)


def test_a_reply_that_lacks_a_whole_choice_broke_off() -> None:
    driver = Driver(choices=2)
    driver.receive(text(TEN, finish="stop"))
    driver.end()
    driver.answer_all(SAFE)
    assert driver.sent == text(TEN, finish="stop").raw + b"error:upstream_error\n"


def test_the_usage_stands_behind_the_last_cut_even_of_text_behind_its_finish() -> None:
    driver = Driver(policy(answer={"mode": "lag"}), choices=2)
    driver.receive(text("", Phase.ANSWERING, finish="stop"), text("late", Phase.ANSWERING))
    driver.receive(text(TEN, Phase.ANSWERING, index=1, finish="stop"))
    driver.end()
    driver.audits.sort(key=lambda asked: -asked.choice)
    driver.answer(HARMFUL)
    driver.answer(HARMFUL)
    assert driver.sent.splitlines()[-2].startswith(b"usage:")
