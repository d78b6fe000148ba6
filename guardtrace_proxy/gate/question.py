"""What the auditor is asked: all that leads up to the text in question, as its reader would see it, and that text."""

from __future__ import annotations

from typing import NamedTuple

from guardtrace_proxy.gate.tape import Tape
from guardtrace_proxy.wire.events import Phase

HIDDEN_THINKING = "[thinking not shown to the reader]"
"""What the auditor sees of a thinking that no reader does, when it judges the answer (design: by what its reader
sees)."""


class Question(NamedTuple):
    """A partial trace. ``judged_thinking`` and ``judged_answer`` count the leading characters that earlier verdicts
    cover."""

    thinking: str
    answer: str
    judged_thinking: int
    judged_answer: int


def question(tape: Tape, phase: Phase, asked: str, *, thinking_is_unseen: bool) -> Question:
    """``asked`` is the text in question, which follows what was judged of its phase."""
    thinking, answer = tape.shown(Phase.THINKING), tape.shown(Phase.ANSWERING)
    if phase is Phase.THINKING:
        return Question(thinking + asked, answer, len(thinking), len(answer))
    if thinking and thinking_is_unseen:
        thinking = HIDDEN_THINKING
    return Question(thinking, answer + asked, len(thinking), len(answer))
