"""From a verdict to an action."""

from __future__ import annotations

from typing import NamedTuple

from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.policy.schema import Action, Policy


class Decision(NamedTuple):
    """The level that counts and what is done about it. ``level`` is None where the auditor's failure decides."""

    level: Level | None
    action: Action


def decide(policy: Policy, phase: str, verdict: Verdict) -> Decision:
    """The most severe level whose test passes decides, by its own action in this phase."""
    actions = policy.phase(phase).actions
    level = _level(policy, verdict)
    if level is Level.HARMFUL:
        return Decision(level, actions.harmful)
    if level is Level.POTENTIALLY_HARMFUL:
        return Decision(level, actions.potentially_harmful)
    return Decision(Level.SAFE, Action.PASS)


def _level(policy: Policy, verdict: Verdict) -> Level:
    probabilities = verdict.probabilities
    if probabilities is None:
        return verdict.level
    if probabilities.harmful >= policy.thresholds.harmful:
        return Level.HARMFUL
    if probabilities.risk >= policy.thresholds.potentially_harmful:
        return Level.POTENTIALLY_HARMFUL
    return Level.SAFE
