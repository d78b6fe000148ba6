"""The state machine of one choice, as a table.

Rules of this file: everything that decides which state follows which stands in ``TRANSITIONS``, and nothing here
knows what a stream, a clock or an auditor is. The diagram in the docs is drawn from the table
(``python -m guardtrace_proxy.gate.diagram``), so the two can't drift apart.

Theory of operation. Text arrives and *waits* until a boundary: enough tokens, enough time, another phase, or the end.
At a boundary one audit is sent with everything that waits; where chunks are sentences, up to the last whole one.
While it runs more text piles up behind it, and the next audit takes that: a slow auditor makes chunks larger, never a
queue longer. A verdict clears its text, redacts it, or cuts the choice; a policy may want several hits in a row
first, or have a flagged chunk searched for its unsafe sentences. A failed audit is retried, released or cut as the
policy says. The phase of the text (thinking or answering) is a property of the text and not of the state: it picks
the mode and the actions.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    IDLE = "idle"
    """Nothing waits for a verdict."""
    WAITING = "waiting"
    """Text waits for its boundary."""
    AUDITING = "auditing"
    """One audit is in flight; further text piles up."""
    SEARCHING = "searching"
    """The chunk was flagged and is asked about in parts, to redact only its unsafe sentences."""
    RETRYING = "retrying"
    """The auditor failed, the policy says hold: the same text is sent again after a pause."""
    CUT = "cut"
    """Stopped by policy: nothing more of the upstream's leaves."""
    FINISHED = "finished"
    """The upstream ended this choice and everything has its verdict."""

    __hash__ = object.__hash__
    """Members are compared by identity anyway, and Enum's own hash is a Python call, made for every token."""


class Input(Enum):
    TEXT = "text arrives"
    TOKENS = "tokens arrive, their text may follow"
    BOUNDARY = "boundary"
    ALL_JUDGED = "verdict, nothing waits"
    SOME_JUDGED = "verdict, more waits"
    UNCONFIRMED = "hit, not yet confirmed"
    FLAGGED = "flagged, unsafe sentences unknown"
    FAILED = "audit failed, policy holds"
    RETRY = "pause is over"
    CUT = "verdict, failure or the end of another choice cuts"
    END = "upstream ended"

    __hash__ = object.__hash__


class IllegalTransition(Exception):
    """The machine was fed an input that its state doesn't know: a bug of the caller's, never of a stream."""


TRANSITIONS: dict[State, dict[Input, State]] = {
    State.IDLE: {
        Input.TEXT: State.WAITING,
        Input.CUT: State.CUT,
        Input.END: State.FINISHED,
    },
    State.WAITING: {
        Input.TEXT: State.WAITING,
        Input.BOUNDARY: State.AUDITING,
        Input.CUT: State.CUT,
    },
    State.AUDITING: {
        Input.TEXT: State.AUDITING,
        Input.ALL_JUDGED: State.IDLE,
        Input.SOME_JUDGED: State.WAITING,
        Input.UNCONFIRMED: State.WAITING,
        Input.FLAGGED: State.SEARCHING,
        Input.FAILED: State.RETRYING,
        Input.CUT: State.CUT,
    },
    State.SEARCHING: {
        Input.TEXT: State.SEARCHING,
        Input.BOUNDARY: State.AUDITING,
        Input.CUT: State.CUT,
    },
    State.RETRYING: {
        Input.TEXT: State.RETRYING,
        Input.RETRY: State.AUDITING,
        Input.CUT: State.CUT,
    },
    State.CUT: {
        Input.TEXT: State.CUT,
        Input.END: State.CUT,
    },
    State.FINISHED: {
        Input.TEXT: State.WAITING,
        Input.TOKENS: State.IDLE,
        Input.END: State.FINISHED,
    },
}


def follow(state: State, given: Input) -> State:
    """The state that follows ``state`` on ``given``; raises IllegalTransition where the table has no entry."""
    try:
        return TRANSITIONS[state][given]
    except KeyError:
        raise IllegalTransition(f"{state.value!r} doesn't take {given.value!r}") from None
