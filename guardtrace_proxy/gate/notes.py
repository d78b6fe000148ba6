"""What a client is told of a decision: marks before text that leaves, and what stands in a cut's place.

Pure, like all of the gate: what is held and decided comes in, what a writer is to say goes out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from guardtrace_proxy.gate.choice import Choice
from guardtrace_proxy.gate.outputs import Decided
from guardtrace_proxy.gate.queue import HoldQueue
from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.fates import Cut


class Marks:
    """What clients are told before text that leaves, each kind once a choice."""

    def __init__(self) -> None:
        self._told: set[tuple[int, str]] = set()

    def due(self, choice: Choice, decided: Decided) -> dict[str, Any] | None:
        """The note to write now; None where nothing is to be said, or was said before."""
        mark = _mark_of(choice, decided)
        if mark is None or (choice.index, mark.kind) in self._told:
            return None
        self._told.add((choice.index, mark.kind))
        return mark.note


class Mark(NamedTuple):
    kind: str
    note: dict[str, Any]


def _mark_of(choice: Choice, decided: Decided) -> Mark | None:
    """Text was flagged, or went out unaudited."""
    if decided.failure is not None and choice.unaudited:
        return Mark("unaudited", {"action": "release", "reason": "auditor_failure"})
    if decided.decision is not None and decided.decision.action is Action.FLAG:
        return Mark("flag", _note_of(decided.decision, decided.phase))
    return None


def cut_of(choice: Choice, queue: HoldQueue, policy: Policy) -> Cut:
    """The end of a choice that was cut, behind what of it has left or is clear to leave."""
    assert choice.cut_by is not None
    unjudged = choice.cut_by.level is None
    kept = [part for part in queue.parts_of(choice) if part.is_clear()]
    released = max([choice.released, *(part.end for part in kept)])
    return Cut(
        message=policy.messages.auditor_failure if unjudged else policy.messages.cut,
        shape=policy.cut_shape.value,
        role=not (choice.role_sent or any(part.part.role for part in kept)),
        close=choice.tape.open_block(released),
        note=_note_of(choice.cut_by, choice.cut_phase) if policy.expose.object else None,
        unjudged=unjudged,
    )


def _note_of(decision: Decision, phase: Phase | None) -> dict[str, Any]:
    note: dict[str, Any] = {"action": decision.action.value, "phase": phase and phase.value}
    if decision.level is None:
        return note | {"reason": "auditor_failure"}
    return note | {"level": decision.level.value}
