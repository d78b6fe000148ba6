"""Text that is gathered comes to the same as text that is taken token by token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.gate import StartAudit
from guardtrace_proxy.gate.outputs import Decided, Output, Release
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.events import Event, MoreOf, MoreText, Phase
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, policy, text

OF = {(index, phase): MoreOf(index, (phase.value,), phase, None) for index in (0, 1) for phase in Phase}


def more(content: str, phase: Phase = Phase.THINKING, index: int = 0) -> MoreText:
    raw = f"{index}:{phase.value}:{content}:\n".encode()
    return MoreText(raw, content, -(-len(content.encode()) // 4), OF[index, phase])


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Answer:
    verdict: Verdict | None


TEXTS = st.builds(
    more,
    st.sampled_from(["word", "a", "Two words. ", "Ein längerer Satz! ", "."]),
    st.sampled_from([Phase.THINKING, Phase.THINKING, Phase.THINKING, Phase.ANSWERING]),
    st.sampled_from([0, 0, 0, 0, 1]),
)
WAITS = st.builds(Wait, st.sampled_from([0.01, 0.2, 0.6]))
ANSWERS = st.builds(Answer, st.sampled_from([SAFE, SAFE, SAFE, MAYBE, HARMFUL, None]))
STEPS = st.lists(st.one_of(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, WAITS, ANSWERS), max_size=60)
BOUNDARY = {"first": 6, "growth": 2.0, "max": 24, "max_hold_ms": 500}
POLICIES = st.sampled_from(
    [
        policy(boundary=BOUNDARY),
        policy(boundary=BOUNDARY, actions={"potentially_harmful": "redact", "harmful": "redact"}),
        policy(boundary=BOUNDARY, actions={"harmful": "redact"}, redaction={"localize": True}),
        policy(boundary=BOUNDARY, decision={"confirmations": 2}),
        policy(boundary=BOUNDARY, on_auditor_failure="hold"),
        policy(boundary=BOUNDARY, on_auditor_failure="release"),
        policy(boundary={**BOUNDARY, "unit": "sentences", "first": 1}),
        policy(boundary=BOUNDARY, reasoning_field="strip"),
        policy(boundary=BOUNDARY, thinking={"mode": "lag", "max_lag": 8}),
    ]
)


def walk(steps: list[MoreText | Wait | Answer], rules: Policy, *, gathers: bool, capacity: int, limit: int) -> Driver:
    driver = Driver(rules, choices=2, capacity=capacity, limit=limit)
    for step in steps:
        if isinstance(step, Wait):
            driver.tick(step.seconds)
        elif isinstance(step, Answer):
            if driver.audits:
                driver.answer(step.verdict)
        elif driver.gate.wants_reading:
            # On the way to the reader's next text time passes, unnoticed by the gate.
            driver.now += 0.001
            driver.receive(step if gathers else step.whole())
    for index in (0, 1):
        driver.receive(text("", index=index, finish="stop"))
    driver.receive(DONE)
    while driver.audits or driver.gate.deadline is not None:
        if driver.audits:
            driver.answer(SAFE)
        else:
            driver.tick(10.0)
    return driver


def told(outputs: list[Output]) -> list[object]:
    """What came of it, but for when a chunk's oldest text came: a run is as old as its first token."""
    return [
        (each.choice, each.phase, each.decision, each.failure, each.enforced, each.tokens)
        if isinstance(each, Decided)
        else (each.choice, each.phase, each.thinking, each.answer)
        if isinstance(each, StartAudit)
        else each
        for each in outputs
        if not isinstance(each, Release)
    ]


@given(STEPS, POLICIES, st.sampled_from([4096, 4096, 4096, 1 << 20]))
def test_gathering_changes_nothing(steps: list[MoreText | Wait | Answer], rules: Policy, limit: int) -> None:
    gathered = walk(steps, rules, gathers=True, capacity=4096, limit=limit)
    single = walk(steps, rules, gathers=False, capacity=4096, limit=limit)
    assert gathered.sent == single.sent
    assert told(gathered.outputs) == told(single.outputs)
    assert gathered.gate.tokens_read == single.gate.tokens_read
    assert gathered.gate.finished
    assert gathered.gate.held_bytes == single.gate.held_bytes == 0


@given(STEPS, POLICIES, st.sampled_from([5, 17, 64]), st.sampled_from([120, 400, 4096]))
def test_nothing_is_lost_where_little_fits(
    steps: list[MoreText | Wait | Answer], rules: Policy, capacity: int, limit: int
) -> None:
    steps = [step for step in steps if not isinstance(step, Answer) or step.verdict is SAFE]
    gathered = walk(steps, rules, gathers=True, capacity=capacity, limit=limit)
    single = walk(steps, rules, gathers=False, capacity=capacity, limit=limit)
    assert gathered.sent == single.sent


def driver_with_one_waiting() -> Driver:
    driver = Driver(policy(boundary=BOUNDARY))
    driver.receive(more("word"))
    return driver


def test_what_is_gathered_is_held_and_counted() -> None:
    driver = driver_with_one_waiting()
    news = [driver.gate.receive(more("word"), 0.0) for _ in range(4)]
    assert news == [False] * 4
    assert driver.gate.tokens_read == 5
    assert driver.gate.held_bytes == 5 * len(more("word").raw)
    assert driver.gate.receive(more("word"), 0.0)  # the sixth fills the chunk
    driver.receive()
    assert [audit.thinking for audit in driver.audits] == ["word" * 6]
    driver.answer()
    assert driver.sent == more("word").raw * 6


def test_a_deadline_is_kept() -> None:
    driver = driver_with_one_waiting()
    driver.gate.receive(more("more"), 0.4)
    assert driver.gate.deadline == 0.5
    assert driver.gate.receive(more("late"), 0.6)
    driver.receive()
    assert [audit.thinking for audit in driver.audits] == ["wordmorelate"]


def test_a_run_is_divided_where_its_events_part() -> None:
    driver = Driver(policy(boundary=BOUNDARY, actions={"harmful": "redact"}, redaction={"localize": True}))
    driver.receive(*map(more, ("One.", " Two.", " Bad.", " Four")))
    while driver.audits:
        driver.answer(HARMFUL if "Bad" in driver.audits[0].thinking else SAFE)
    driver.tick(1.0)
    driver.answer_all()
    kept = more("One.").raw + more(" Two.").raw
    assert driver.sent == kept + b"0:thinking:[withheld by policy]:\n" + more(" Four").raw


def test_a_run_fills_an_audit_no_more_than_a_quarter() -> None:
    driver = Driver(policy(boundary={**BOUNDARY, "first": 1000, "max": 1000}), capacity=400)
    driver.receive(*[more("word") for _ in range(150)])
    driver.tick(1.0)
    assert [300 < len(audit.thinking) <= 400 for audit in driver.audits] == [True]


@pytest.mark.parametrize("event", [text("answer", Phase.ANSWERING), text("word"), text("", finish="stop")])
def test_what_was_gathered_comes_first(event: Event) -> None:
    driver = driver_with_one_waiting()
    driver.receive(more("more"), event)
    driver.tick(1.0)
    assert driver.audits[0].thinking.startswith("wordmore")
