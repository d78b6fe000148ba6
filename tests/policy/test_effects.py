"""Every setting of a policy changes something, and what `policy check` calls without effect changes nothing.

How to add a setting: `tests/effects.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from guardtrace_proxy.policy.doubts import without_effect
from guardtrace_proxy.policy.errors import PolicyError
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.policy.loading import load_policy
from guardtrace_proxy.policy.schema import Policy
from tests.effects import Effect, Settings, check, missing, nested
from tests.policy.walking import HARM, HINT, SAFE, Seen, by_word, walk
from tests.server.running import ask, proxy
from tests.server.scripted import SSE_HEAD, chunk, judging, stream
from tests.server.scripted import by_word as level_of

Scenario = Callable[[Policy], Seen]
END = [chunk({}, "stop"), b"data: [DONE]\n\n"]
FILLER = "one two three four five six seven eight nine ten"


def frames(*deltas: dict[str, Any], gap: int = 10) -> list[tuple[int, bytes]]:
    """A delta every ``gap`` milliseconds, then the end."""
    return [(number * gap, data) for number, data in enumerate([*map(chunk, deltas), *END])]


def words(thinking: str, answer: str = "", gap: int = 10) -> list[tuple[int, bytes]]:
    deltas = [{"reasoning": f"{word} "} for word in thinking.split()]
    return frames(*deltas, *({"content": f"{word} "} for word in answer.split()), gap=gap)


def whole(thinking: str, answer: str) -> list[tuple[int, bytes]]:
    message = {"role": "assistant", "content": answer, "reasoning": thinking}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return [(0, json.dumps({**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())]


def streamed(sent: Sequence[tuple[int, bytes]], judge: Any = by_word) -> Scenario:
    return lambda policy: walk(policy, sent, judge)


def completed(thinking: str, answer: str) -> Scenario:
    return lambda policy: walk(policy, whole(thinking, answer), whole=True)


def sure_of_half(trace: str, now: int) -> Verdict:
    """P(0.5) + P(1) is 0.5 where the trace says HINT, P(1) is 0.5 where it says HARM."""
    if "HARM" in trace:
        return Verdict(Level.HARMFUL, Probabilities(0.5, 0.0, 0.5))
    return Verdict(Level.SAFE, Probabilities(0.5, 0.4, 0.1)) if "HINT" in trace else SAFE


def failing_until(milliseconds: int) -> Any:
    return lambda trace, now: None if now < milliseconds else by_word(trace, now)


def hit_once(trace: str, now: int) -> Verdict:
    """A hit that the next verdict takes back."""
    return HINT if "twice" in trace and "later" not in trace else SAFE


def harm_once(trace: str, now: int) -> Verdict:
    return HARM if hit_once(trace, now) is HINT else SAFE


hint_in_thinking = streamed(words(f"{FILLER * 3} HINT {FILLER * 4}", "fine so far and done"))
hint_in_answer = streamed(words("well then", f"{FILLER * 3} HINT {FILLER * 4}"))
harm_in_thinking = streamed(words(f"{FILLER * 2} HARM {FILLER}", "fine"))
harm_in_answer = streamed(words("well then", f"{FILLER * 2} HARM {FILLER}"))
long_and_fine = streamed(words(FILLER * 8, FILLER * 2))
slow_and_fine = streamed(words(f"{FILLER}. {FILLER}. {FILLER}.", "Yes. It is.", gap=80))
inline = streamed(frames({"content": "<think>so so</think>fine"}, {"content": " and well"}))
field = streamed(frames({"reasoning_content": "so so"}, {"reasoning": "and so"}, {"content": "fine"}))
unsure = streamed(words("well HINT then", "fine"), sure_of_half)
unsure_harm = streamed(words("well HARM then", "fine"), sure_of_half)
fails_at_first = streamed(words("well then", "fine"), failing_until(100))
fails_for_two_seconds = streamed(words("well then", "fine"), failing_until(2000))
taken_back = streamed(words(f"one two three four five six seven twice {FILLER} later {FILLER}", "fine"), hit_once)
sentences = streamed(frames({"content": "This is fine. This is a HINT. This is fine as well, and so is the rest."}))
arguments = streamed(
    frames({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a": "HINT"}'}}]})
)
thought_sentences = streamed(
    frames({"reasoning": "This is fine. This is a HINT. This is fine as well, and so is the rest."}, {"content": "ok"})
)
harm_taken_back = streamed(words("", f"one two three four five six seven twice {FILLER} later {FILLER}"), harm_once)
fails_for_long = streamed(words("well then", "fine"), failing_until(20_000))
whole_harm = completed("well", "so HARM")
whole_hint = completed("well HINT", "fine")


def headers(policy: Policy) -> list[str]:
    """Over sockets, since they are the server's."""
    with proxy(
        lambda _: [SSE_HEAD, *stream("fine", "fine")], judging(level_of), policy=policy.model_dump(mode="json")
    ) as running:
        return sorted(name for name in running.raw(ask(stream=True)).headers if name.startswith("x-guardtrace"))


ACTIONS = ("pass", "flag", "redact", "cut")

EFFECTS = {
    "version": Effect((1,), hint_in_thinking, refused=(0, 2, "1")),
    "extends": Effect(("balanced", "strict", "monitor"), hint_in_thinking),
    "thinking.mode": Effect(("hold", "lag", "withhold", "monitor"), hint_in_thinking),
    "thinking.max_lag": Effect((8, 40), long_and_fine, beside={"thinking.mode": "lag"}),
    "thinking.actions.potentially_harmful": Effect(
        (*ACTIONS, None), hint_in_thinking, beside={"actions.potentially_harmful": "flag"}, same_as={None: "flag"}
    ),
    "thinking.actions.harmful": Effect(
        (*ACTIONS, None), harm_in_thinking, beside={"actions.harmful": "redact"}, same_as={None: "redact"}
    ),
    "answer.mode": Effect(("hold", "lag", "monitor"), hint_in_answer, refused=("withhold",)),
    "answer.max_lag": Effect(
        (8, 40), long_and_fine, beside={"answer.mode": "lag", "thinking.mode": "lag", "thinking.max_lag": 16}
    ),
    "answer.actions.potentially_harmful": Effect(
        (*ACTIONS, None), hint_in_answer, beside={"actions.potentially_harmful": "flag"}, same_as={None: "flag"}
    ),
    "answer.actions.harmful": Effect(
        (*ACTIONS, None), harm_in_answer, beside={"actions.harmful": "redact"}, same_as={None: "redact"}
    ),
    "boundary.unit": Effect(("tokens", "sentences"), slow_and_fine, beside={"boundary.first": 2}),
    "boundary.first": Effect((4, 16), long_and_fine),
    "boundary.growth": Effect((1.0, 2.0), long_and_fine),
    "boundary.max": Effect((16, 128), long_and_fine),
    "boundary.max_hold_ms": Effect((100, 500), slow_and_fine),
    "thresholds.potentially_harmful": Effect((0.4, 0.6), unsure),
    "thresholds.harmful": Effect((0.4, 0.6), unsure_harm),
    "actions.potentially_harmful": Effect(ACTIONS, hint_in_thinking),
    "actions.harmful": Effect(ACTIONS, harm_in_answer),
    "messages.cut": Effect(("Stopped.", "Ended."), harm_in_thinking),
    "messages.auditor_failure": Effect(("Failed.", "Unchecked."), fails_for_long),
    "messages.redaction": Effect(("[gone]", "[…]"), hint_in_thinking),
    "cut_shape": Effect(("content_filter", "refusal", "error"), harm_in_thinking),
    "reasoning_field": Effect(("as_is", "reasoning", "reasoning_content", "strip"), inline),
    "on_auditor_failure": Effect(("cut", "hold", "release"), fails_at_first),
    "hold_limit_ms": Effect((1000, 9000), fails_for_two_seconds, beside={"on_auditor_failure": "hold"}),
    "decision.confirmations": Effect((1, 2), taken_back),
    "redaction.localize": Effect((False, True), sentences),
    "expose.object": Effect((False, True), hint_in_thinking, beside={"actions.potentially_harmful": "flag"}),
    "expose.headers": Effect((False, True), headers),
}
SCENARIOS: list[Scenario] = [
    hint_in_thinking, hint_in_answer, harm_in_thinking, harm_in_answer, long_and_fine, slow_and_fine, inline, field,
    unsure, unsure_harm, fails_at_first, fails_for_two_seconds, taken_back, sentences, arguments, whole_harm, whole_hint,
    thought_sentences, harm_taken_back, fails_for_long,
]  # fmt: skip


def load(folder: Path, content: Settings) -> Policy:
    path = folder / "any.yaml"
    path.write_text(yaml.safe_dump({"version": 1, **content}), "utf-8")
    return load_policy(path).policy


def test_every_setting_and_every_value_of_an_enum_is_in_the_table() -> None:
    assert missing(Policy, EFFECTS) == []


@pytest.mark.parametrize("key", EFFECTS)
def test_every_value_shows(tmp_path: Path, key: str) -> None:
    effect = EFFECTS[key]
    check(effect, lambda value: effect.scenario(load(tmp_path, effect.settings(key, value))), again=True)
    for value in effect.refused:
        with pytest.raises(PolicyError, match=key):
            load(tmp_path, effect.settings(key, value))


KEYS = [key for key in EFFECTS if key not in ("version", "extends", "expose.headers")]
OWN = st.sampled_from([None, None, *ACTIONS])
policies = st.fixed_dictionaries(
    {key: OWN if ".actions." in key else st.sampled_from(EFFECTS[key].values) for key in KEYS}
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(policies, st.data())
def test_what_is_said_to_be_without_effect_changes_nothing_that_is_seen(content: Settings, data: st.DataObject) -> None:
    assume(content["boundary.first"] <= content["boundary.max"])
    policy = Policy.model_validate({"version": 1, **nested(content)})
    idle = dict(without_effect(policy, KEYS))
    assume(idle)
    key = data.draw(st.sampled_from(sorted(idle)))
    value = data.draw(st.sampled_from([value for value in EFFECTS[key].values if value != content[key]]))
    assume(key != "boundary.max" or value >= content["boundary.first"])
    other = Policy.model_validate({"version": 1, **nested({**content, key: value})})
    for scenario in SCENARIOS:
        assert scenario(policy).outside == scenario(other).outside, f"{key}: {idle[key]}"


class Grown(str, Enum):
    OLD = "old"
    NEW = "new"


class Section(BaseModel):
    grown: Grown = Grown.OLD
    added: int = 1


class Schema(BaseModel):
    section: Section = Section()


def test_the_table_is_told_what_it_lacks() -> None:
    table = {"section.grown": Effect(("old",), str, refused=("odd",)), "gone": Effect((1, 2), str)}
    assert missing(Schema, table) == [
        "gone: no such setting",
        "section.added: no effect in the table",
        "section.grown: 'new' isn't in the table",
    ]


def test_a_value_that_shows_nothing_fails() -> None:
    check(Effect((1, 2), str), str, again=True)
    with pytest.raises(AssertionError, match="1 and 2 give the same outcome"):
        check(Effect((1, 2), str), lambda _: "same")
    with pytest.raises(AssertionError, match="the same value gave another"):
        check(Effect((1, 2), str), lambda _: object(), again=True)
