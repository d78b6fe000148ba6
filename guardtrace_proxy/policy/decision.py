"""From a verdict to an action."""

from __future__ import annotations

from typing import NamedTuple

from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.policy.schema import Action, Policy


class Decision(NamedTuple):
    """The level that counts and what is done about it. ``level`` is None where the auditor's failure decides."""

    level: Level | None
    action: Action


def decide(policy: Policy, phase: str, verdict: Verdict, *, inline: bool = False) -> Decision:
    """The most severe level whose test passes decides, by its own action in this phase; ``inline`` by the more severe
    of both phases, since a thinking block in the content may never end, and then is all the answer there is."""
    level = _level(policy, verdict)
    if level is Level.SAFE:
        return Decision(level, Action.PASS)
    phases = ("thinking", "answering") if inline else (phase,)
    found = [policy.phase(each).actions for each in phases]
    actions = [each.harmful if level is Level.HARMFUL else each.potentially_harmful for each in found]
    return Decision(level, max(actions, key=lambda action: action.severity))


def _level(policy: Policy, verdict: Verdict) -> Level:
    probabilities = verdict.probabilities
    if probabilities is None:
        return verdict.level
    if probabilities.harmful >= policy.thresholds.harmful:
        return Level.HARMFUL
    if probabilities.risk >= policy.thresholds.potentially_harmful:
        return Level.POTENTIALLY_HARMFUL
    return Level.SAFE
