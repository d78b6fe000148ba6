"""Properties over interleavings of events, verdicts, failures and time, checked against the contract's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.events import Event, EventKind, Phase
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, policy, text

VERDICTS: dict[str, Verdict | None] = {"safe": SAFE, "maybe": MAYBE, "harmful": HARMFUL, "failure": None}

MAX_LAG = 8
policies = st.builds(
    lambda thinking, answer, shape, failure, first, growth, mild, unit, confirmations, localize, field: policy(
        thinking={"mode": thinking, "max_lag": MAX_LAG},
        answer={"mode": answer, "max_lag": MAX_LAG},
        cut_shape=shape,
        on_auditor_failure=failure,
        boundary={"unit": unit, "first": first, "growth": growth, "max": first * 4},
        actions={"potentially_harmful": mild},
        decision={"confirmations": confirmations},
        redaction={"localize": localize},
        reasoning_field=field,
        hold_limit_ms=2000,
    ),
    st.sampled_from(["hold", "hold", "lag", "monitor", "withhold"]),
    st.sampled_from(["hold", "hold", "lag", "monitor"]),
    st.sampled_from(["content_filter", "refusal", "error"]),
    st.sampled_from(["cut", "hold", "release"]),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from(["pass", "flag", "redact", "cut"]),
    st.sampled_from(["tokens", "tokens", "sentences"]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["as_is", "as_is", "as_is", "strip", "reasoning"]),
)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.integers(0, 2), st.sampled_from(list(Phase)), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.integers(0, 2)),
        st.tuples(st.just("verdict"), st.sampled_from(list(VERDICTS))),
        st.tuples(st.just("time"), st.floats(0.01, 0.7)),
    ),
    max_size=60,
)


@dataclass
class World:
    """What really happened: what was sent in, and which texts were judged by a verdict that lets them go."""

    driver: Driver
    sent_in: list[Event] = field(default_factory=list)
    serial: int = 0
    finished: set[int] = field(default_factory=set)
    judged: dict[tuple[int, Phase], str] = field(default_factory=dict)

    def step(self, step: tuple[object, ...]) -> None:
        kind = step[0]
        if kind == "text" and step[1] not in self.finished:
            _, index, phase, length = step
            self.serial += 1
            # Sentences, so that a search finds its borders.
            content = f"<{self.serial}{'x' * length}>." if length else ""  # type: ignore[operator]
            self.receive(text(content, phase, index=index))  # type: ignore[arg-type]
        elif kind == "finish" and step[1] not in self.finished:
            self.finished.add(step[1])  # type: ignore[arg-type]
            self.receive(text("", Phase.ANSWERING, index=step[1], finish="stop"))  # type: ignore[arg-type]
        elif kind == "verdict" and self.driver.audits:
            self.answer(VERDICTS[step[1]])  # type: ignore[index]
        elif kind == "time":
            self.driver.tick(step[1])  # type: ignore[arg-type]

    def receive(self, event: Event) -> None:
        if self.driver.gate.wants_upstream:
            self.sent_in.append(event)
        self.driver.receive(event)

    def answer(self, verdict: Verdict | None) -> None:
        asked = self.driver.audits[0]
        judged = asked.thinking if asked.phase is Phase.THINKING else asked.answer
        if verdict is not None:
            self.judged[asked.choice, asked.phase] = judged
        self.driver.answer(verdict)

    def finish(self, verdict: Verdict | None) -> None:
        for index in set(range(3)) - self.finished:
            self.step(("finish", index))
        if self.driver.gate.wants_upstream:
            self.receive(DONE)
        for _ in range(200):
            if self.driver.gate.finished:
                return
            if self.driver.audits:
                self.answer(verdict)
            else:
                self.driver.tick(0.6)


def run(rules: Policy, plan: list[tuple[object, ...]], last: str) -> World:
    world = World(Driver(rules, capacity=64, choices=3))
    for step in plan:
        world.step(step)
    world.finish(VERDICTS[last])
    return world


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(["safe", "maybe", "harmful"]))
def test_every_stream_ends(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    assert world.driver.gate.finished
    assert world.driver.gate.held_bytes == 0
    assert not world.driver.gate.take()


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_nothing_unaudited_leaves_in_hold(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    if rules.on_auditor_failure.value == "release":
        return
    for index, phase, content in texts_sent(world):
        settings_of_phase = rules.thinking if phase is Phase.THINKING else rules.answer
        if settings_of_phase.mode.value == "hold":
            assert content in world.judged.get((index, phase), "")


def texts_sent(world: World) -> Iterator[tuple[int, Phase, str]]:
    """The upstream's texts that left: (choice, phase, text without its full stop)."""
    for line in world.driver.sent.decode().splitlines():
        index, where, content, *_ = [*line.split(":"), "", "", ""]
        phase = {"thinking": Phase.THINKING, "reasoning": Phase.THINKING, "answering": Phase.ANSWERING}.get(where)
        if phase is not None:
            yield from ((int(index), phase, text) for text in re.findall(r"<\w+>", content))


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_lag_never_runs_further_ahead_than_its_bound(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    if rules.on_auditor_failure.value == "release":
        return
    lagging = {
        phase
        for phase, own in ((Phase.THINKING, rules.thinking), (Phase.ANSWERING, rules.answer))
        if own.mode.value == "lag"
    }
    world = World(Driver(rules, capacity=64, choices=3))
    for step in plan:
        world.step(step)
        ahead: dict[int, int] = {}
        for index, phase, content in texts_sent(world):
            if phase in lagging and content not in world.judged.get((index, phase), ""):
                ahead[index] = ahead.get(index, 0) + -(-(len(content) + 1) // 4)
        assert all(tokens <= MAX_LAG for tokens in ahead.values())


@settings(max_examples=200, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_thinking_that_nobody_is_to_see_never_leaves(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    left = {phase for _, phase, _ in texts_sent(world)}
    if rules.thinking.mode.value == "withhold" or rules.reasoning_field.value == "strip":
        assert Phase.THINKING not in left
    if rules.reasoning_field.value == "reasoning":
        assert b":thinking:<" not in world.driver.sent


@settings(max_examples=200, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_a_normal_finish_never_leaves_before_the_last_verdict(
    rules: Policy, plan: list[tuple[object, ...]], last: str
) -> None:
    guarded = {"hold", "lag"}
    world = World(Driver(rules, capacity=64, choices=3))
    for step in plan:
        world.step(step)
        finished = {int(line[0]) for line in world.driver.sent.decode().splitlines() if line.endswith(":stop")}
        for asked in world.driver.audits:
            mode = (rules.thinking if asked.phase is Phase.THINKING else rules.answer).mode.value
            assert asked.choice not in finished or mode not in guarded


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_what_left_came_in_and_in_its_order(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    came_in = iter([line for event in world.sent_in for line in event.raw.decode().splitlines()])
    ours = (":cut:", ":note:", "usage:", "DONE", "error:", "[withheld", ":reasoning:")
    for line in world.driver.sent.decode().splitlines():
        if not any(mark in line for mark in ours):
            assert any(line == candidate for candidate in came_in), f"{line} is out of order or never came in"


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_after_a_cut_its_choice_says_nothing_more(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    cut: set[str] = set()
    for line in world.driver.sent.decode().splitlines():
        index = line.split(":")[0]
        assert index not in cut, f"{line} after the cut of choice {index}"
        if ":cut:" in line:
            cut.add(index)
    assert world.driver.sent.count(b"DONE\n") <= 1
    if b"DONE\n" in world.driver.sent:
        assert world.driver.sent.endswith(b"DONE\n")


@settings(max_examples=200, deadline=None)
@given(steps)
def test_a_stream_that_is_judged_safe_is_byte_identical(plan: list[tuple[object, ...]]) -> None:
    safe_plan = [("verdict", "safe") if step[0] == "verdict" else step for step in plan]
    world = run(policy(), safe_plan, "safe")
    assert world.driver.sent == b"".join(event.raw for event in world.sent_in)


@settings(max_examples=200, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_one_audit_in_flight_a_choice_and_all_of_them_are_recorded(
    rules: Policy, plan: list[tuple[object, ...]], last: str
) -> None:
    world = World(Driver(rules, capacity=64, choices=3))
    for step in plan:
        world.step(step)
        in_flight = [audit.choice for audit in world.driver.audits]
        live = [audit for audit in in_flight if world.driver.gate.wants_upstream]
        assert len(live) == len(set(live))
    world.finish(VERDICTS[last])
    decided = [output for output in world.driver.outputs if isinstance(output, Decided)]
    assert all(entry.position >= entry.tokens for entry in decided)


def test_the_world_knows_a_leak_when_it_sees_one() -> None:
    """The oracle itself: a text that no verdict covered must fail the property."""
    world = World(Driver(policy()))
    world.receive(text("<1xx>"))
    world.driver.sent += text("<1xx>").raw
    assert "<1xx>" not in world.judged.get((0, Phase.THINKING), "")
    assert world.sent_in[0].kind is EventKind.CHUNK
