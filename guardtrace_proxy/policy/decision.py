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
    level = _level(policy, verdict)
    if level is Level.SAFE:
        return Decision(level, Action.PASS)
    actions = policy.phase(phase).actions
    return Decision(level, actions.harmful if level is Level.HARMFUL else actions.potentially_harmful)


def _level(policy: Policy, verdict: Verdict) -> Level:
    probabilities = verdict.probabilities
    if probabilities is None:
        return verdict.level
    if probabilities.harmful >= policy.thresholds.harmful:
        return Level.HARMFUL
    if probabilities.risk >= policy.thresholds.potentially_harmful:
        return Level.POTENTIALLY_HARMFUL
    return Level.SAFE
