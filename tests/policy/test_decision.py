"""Ruling 1: from a verdict to an action."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.policy.decision import decide
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.policy.schema import Action, Actions, AnswerSettings, PhaseActions, Policy, Thresholds


def policy(**changes: object) -> Policy:
    return Policy(version=1, **changes)


def judged(safe: float, potentially: float, harmful: float, level: Level = Level.SAFE) -> Verdict:
    return Verdict(level, Probabilities(safe, potentially, harmful))


@pytest.mark.parametrize(
    ("verdict", "level", "action"),
    [
        (judged(0.9, 0.05, 0.05), Level.SAFE, Action.PASS),
        (judged(0.5, 0.2, 0.3), Level.POTENTIALLY_HARMFUL, Action.REDACT),
        (judged(0.1, 0.4, 0.5), Level.HARMFUL, Action.CUT),
        (Verdict(Level.POTENTIALLY_HARMFUL), Level.POTENTIALLY_HARMFUL, Action.REDACT),
        (Verdict(Level.HARMFUL), Level.HARMFUL, Action.CUT),
        (Verdict(Level.SAFE), Level.SAFE, Action.PASS),
    ],
)
def test_the_most_severe_level_that_passes_decides(verdict, level, action):
    assert decide(policy(), "thinking", verdict) == (level, action)


def test_inside_an_inline_block_the_more_severe_action_of_both_phases_counts():
    rules = policy(
        thinking={"actions": {"potentially_harmful": "cut", "harmful": "flag"}},
        answer={"actions": {"potentially_harmful": "flag", "harmful": "redact"}},
    )
    found = {level: decide(rules, "thinking", Verdict(level), inline=True).action for level in Level}
    assert found == {
        Level.SAFE: Action.PASS,
        Level.POTENTIALLY_HARMFUL: Action.CUT,
        Level.HARMFUL: Action.REDACT,
    }
    assert decide(rules, "thinking", Verdict(Level.HARMFUL)).action is Action.FLAG


def test_probabilities_count_more_than_the_level_that_was_written():
    assert decide(policy(), "thinking", judged(0.1, 0.1, 0.8, Level.SAFE)).level is Level.HARMFUL


def test_a_phase_has_its_own_actions():
    own = policy(answer=AnswerSettings(actions=PhaseActions(harmful=Action.FLAG)))
    verdict = Verdict(Level.HARMFUL)
    assert decide(own, "answering", verdict).action is Action.FLAG
    assert decide(own, "thinking", verdict).action is Action.CUT


shares = st.tuples(*[st.floats(0.001, 1)] * 3).map(lambda three: tuple(value / sum(three) for value in three))


@given(shares, st.floats(0.01, 1), st.floats(0.01, 1))
def test_levels_follow_the_thresholds(three, potentially, harmful):
    verdict = judged(*three)
    own = policy(thresholds=Thresholds(potentially_harmful=potentially, harmful=harmful))
    level = decide(own, "thinking", verdict).level
    assert (level is Level.HARMFUL) == (three[2] >= harmful)
    if level is Level.SAFE:
        assert three[1] + three[2] < potentially


@given(shares, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_lower_threshold_never_finds_less(three, first, second):
    verdict = judged(*three)
    low, high = sorted((first, second))
    levels = [
        decide(policy(thresholds=Thresholds(potentially_harmful=t, harmful=t)), "thinking", verdict).level
        for t in (low, high)
    ]
    assert levels[0] >= levels[1]


def test_labels_are_what_the_auditor_writes():
    assert [level.label for level in Level] == ["0", "0.5", "1"]
    assert Verdict(Level.HARMFUL).risk == 1.0
    assert judged(0.2, 0.3, 0.5).risk == pytest.approx(0.8)
    assert policy(actions=Actions()).phase("thinking").actions == Actions()
