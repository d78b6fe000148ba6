"""Properties over interleavings of events, verdicts, failures and time, checked against the contract's own words."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.events import Event, EventKind, Phase
from tests.gate.plain import DONE, HARMFUL, MAYBE, SAFE, Driver, policy, text

VERDICTS: dict[str, Verdict | None] = {"safe": SAFE, "maybe": MAYBE, "harmful": HARMFUL, "failure": None}

policies = st.builds(
    lambda thinking, answer, shape, failure, first, growth, mild: policy(
        thinking={"mode": thinking},
        answer={"mode": answer},
        cut_shape=shape,
        on_auditor_failure=failure,
        boundary={"first": first, "growth": growth, "max": first * 4},
        actions={"potentially_harmful": mild},
        hold_limit_ms=2000,
    ),
    st.sampled_from(["hold", "hold", "monitor"]),
    st.sampled_from(["hold", "hold", "monitor"]),
    st.sampled_from(["content_filter", "refusal", "error"]),
    st.sampled_from(["cut", "hold", "release"]),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from(["pass", "flag", "redact", "cut"]),
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
            content = f"<{self.serial}{'x' * length}>" if length else ""  # type: ignore[operator]
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
        for index in {part.index for event in self.sent_in for part in event.parts} - self.finished:
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
    for line in world.driver.sent.decode().splitlines():
        index, phase, content, *_ = [*line.split(":"), "", "", ""]
        if phase not in ("thinking", "answering") or not content.startswith("<"):
            continue
        settings_of_phase = rules.thinking if phase == "thinking" else rules.answer
        if settings_of_phase.mode.value == "hold":
            assert content in world.judged.get((int(index), Phase(phase)), "")


@settings(max_examples=300, deadline=None)
@given(policies, steps, st.sampled_from(list(VERDICTS)))
def test_what_left_came_in_and_in_its_order(rules: Policy, plan: list[tuple[object, ...]], last: str) -> None:
    world = run(rules, plan, last)
    came_in = iter([line for event in world.sent_in for line in event.raw.decode().splitlines()])
    ours = (":cut:", ":note:", "usage:", "DONE", "error:", "[withheld")
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
