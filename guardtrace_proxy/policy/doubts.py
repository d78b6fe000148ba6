"""What ``guardtrace policy check`` warns of: policies that do less than they seem to, and settings that do nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from guardtrace_proxy.policy.schema import Action, CutShape, Mode, OnAuditorFailure, Policy

STRICTNESS = [Mode.MONITOR, Mode.LAG, Mode.HOLD, Mode.WITHHOLD]
PHASES = {"thinking": "thinking", "answer": "answering"}
"""The phases by their section of a policy."""
LEVELS = ("potentially_harmful", "harmful")


def doubts(policy: Policy) -> Iterator[str]:
    """Combinations that guard less than they seem to."""
    if STRICTNESS.index(policy.thinking.mode) < STRICTNESS.index(policy.answer.mode):
        yield (
            "thinking is guarded less than the answer: harmful reasoning reaches clients, and inline thinking that "
            "never closes is held like the answer"
        )
    for name, phase in PHASES.items():
        rules = policy.phase(phase)
        actions = rules.actions
        if actions.harmful.severity < actions.potentially_harmful.severity:
            yield f"{name}: the action for harmful text is milder than the one for potentially harmful text"
        if rules.mode is Mode.MONITOR and {Action.REDACT, Action.CUT} & {actions.harmful, actions.potentially_harmful}:
            yield f"{name}: mode is monitor, so redact and cut are only recorded"
        if rules.mode is Mode.LAG and Action.REDACT in (actions.harmful, actions.potentially_harmful):
            yield f"{name}: mode is lag, so redact can't take back what has left before its verdict"


def outvoted(policy: Policy, distances: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """Actions of a file that a phase doesn't follow, since a file that it extends says another one for that phase: the
    section, the key that decides and the one that doesn't. ``distances``: how far down the chain each key was set."""
    for name, phase in PHASES.items():
        if policy.phase(phase).mode is Mode.WITHHOLD:
            continue
        for level in LEVELS:
            own, general = f"{name}.actions.{level}", f"actions.{level}"
            differs = getattr(policy.phase(phase).actions, level) is not getattr(policy.actions, level)
            if differs and general in distances and distances[general] < distances[own]:
                yield name, own, general


def without_effect(policy: Policy, written: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of the keys that somebody wrote, those that do nothing beside the others, each with why: "beside what".

    An action of a monitored phase has its effect on the record.
    """
    for key, why in (*_of_modes(policy), *_of_boundary(policy), *_of_actions(policy), *_of_failures(policy)):
        if key in written:
            yield key, why


def acting(policy: Policy) -> list[str]:
    """The sections whose verdicts are acted on. Monitored thinking is among them where an inline block of it is guarded
    like the answer."""
    guarded = (Mode.HOLD, Mode.LAG)
    answer_acts = policy.answer.mode in guarded
    thinking_acts = policy.thinking.mode in guarded or (policy.thinking.mode is Mode.MONITOR and answer_acts)
    return [name for name, acts in (("thinking", thinking_acts), ("answer", answer_acts)) if acts]


def _of_modes(policy: Policy) -> Iterator[tuple[str, str]]:
    for name, settings in (("thinking", policy.thinking), ("answer", policy.answer)):
        if settings.mode is not Mode.LAG:
            yield f"{name}.max_lag", f"in mode {settings.mode.value}"
    if policy.thinking.mode is Mode.WITHHOLD:
        for level in LEVELS:
            yield f"thinking.actions.{level}", "in mode withhold: verdicts on what nobody sees are only recorded"
        yield "reasoning_field", "where thinking is withheld"


def _of_boundary(policy: Policy) -> Iterator[tuple[str, str]]:
    boundary = policy.boundary
    # `growth: 1` beside `first` = `max` says the same thing twice: nothing is lost.
    if boundary.first == boundary.max and boundary.growth != 1:
        yield "boundary.growth", "where boundary.first and boundary.max are the same"
    if boundary.growth == 1 and boundary.first != boundary.max:
        yield "boundary.max", "where boundary.growth is 1"


def _of_actions(policy: Policy) -> Iterator[tuple[str, str]]:
    counting = [policy.thinking, policy.answer] if policy.thinking.mode is not Mode.WITHHOLD else [policy.answer]
    for level in LEVELS:
        if all(getattr(settings.actions, level) is not None for settings in counting):
            yield f"actions.{level}", "where the phases have their own"
    actions = _actions(policy, acting(policy))
    if Action.REDACT not in actions:
        yield "messages.redaction", "where nothing is redacted"
        yield "redaction.localize", "where nothing is redacted"
    if not actions - {Action.PASS}:
        yield "decision.confirmations", "where no verdict is acted on"
    if not _actions(policy, PHASES) - {Action.PASS}:
        yield "thresholds.harmful", "where both levels pass"
    if not _verdicts_cut(policy):
        yield "messages.cut", "where no verdict cuts"
    if not _can_cut(policy):
        yield "cut_shape", "where nothing is cut"


def _of_failures(policy: Policy) -> Iterator[tuple[str, str]]:
    acts = bool(acting(policy))
    if not acts:
        yield "on_auditor_failure", "where no verdict is acted on"
    if not _failures_cut(policy):
        yield "messages.auditor_failure", "where no failure of the auditor cuts"
    if not _has_notes(policy):
        yield "expose.object", "where nothing is flagged or released unaudited, and no cut has a chunk to carry it"
    if policy.on_auditor_failure is not OnAuditorFailure.HOLD or not acts:
        yield "hold_limit_ms", "without on_auditor_failure: hold" if acts else "where no verdict is acted on"


def _has_notes(policy: Policy) -> bool:
    acts = acting(policy)
    released = bool(acts) and policy.on_auditor_failure is OnAuditorFailure.RELEASE
    # An error frame has no room for the object.
    told_of_cuts = policy.cut_shape is not CutShape.ERROR and _can_cut(policy)
    return released or told_of_cuts or Action.FLAG in _actions(policy, acts)


def _can_cut(policy: Policy) -> bool:
    return _verdicts_cut(policy) or _failures_cut(policy)


def _verdicts_cut(policy: Policy) -> bool:
    acts = acting(policy)
    # Tool-call arguments have no placeholder.
    in_arguments = Action.REDACT in _actions(policy, [name for name in acts if name == "answer"])
    return in_arguments or Action.CUT in _actions(policy, acts)


def _failures_cut(policy: Policy) -> bool:
    acts = acting(policy)
    if not acts or policy.on_auditor_failure is not OnAuditorFailure.RELEASE:
        return bool(acts)
    # What was flagged isn't released when the auditor fails later.
    actions = _actions(policy, acts)
    in_search = policy.redaction.localize and Action.REDACT in actions
    return in_search or (policy.decision.confirmations > 1 and bool(actions - {Action.PASS}))


def _actions(policy: Policy, sections: Collection[str]) -> set[Action]:
    return {action for name in sections for _, action in policy.phase(PHASES[name]).actions}
