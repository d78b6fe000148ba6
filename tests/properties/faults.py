"""Faults to plant in the gate and the writer, each with the promise that it breaks: the oracle must see them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from guardtrace_proxy.gate import choice, choices, notes, stream, whole
from guardtrace_proxy.gate.clearance import Clearance
from guardtrace_proxy.gate.ending import Ending
from guardtrace_proxy.gate.overlay import Overlay
from guardtrace_proxy.gate.queue import HeldEvent, HeldPart, HoldQueue
from guardtrace_proxy.gate.tape import Chunk, Tape
from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.levels import Level
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.fates import Cut
from tests.properties.alphabet import ANALYSIS


class Fault(NamedTuple):
    """``plant`` puts it in the place of ``where.what``; ``breaks`` is the promise that must be found broken."""

    name: str
    breaks: str
    where: Any
    what: str
    fault: Callable[[Any], Any]
    """From what stands there to what stands there instead."""

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(self.where, self.what, self.fault(getattr(self.where, self.what)))


def instead(replacement: Any) -> Callable[[Any], Any]:
    return lambda original: replacement


def cut_without(**changes: Any) -> Callable[[Any], Any]:
    def fault(original: Any) -> Any:
        def cut(self: ChatStream, index: int, fate: Cut) -> Any:
            fields = {name: getattr(fate, name) for name in ("message", "shape", "role", "close", "note")}
            return original(self, index, Cut(**{**fields, **changes}))

        return cut

    return fault


def leaks_one_character(original: Any) -> Any:
    def redacted(self: Overlay, text: str, start: int) -> Iterator[str]:
        pieces = list(original(self, text, start))
        yield from pieces
        if "".join(pieces) != text:
            yield text[-1:]

    return redacted


def keeps_logprobs(original: Any) -> Any:
    def rebuild(self: ChatStream, sent: dict[str, Any], *rest: Any) -> Any:
        rebuilt = original(self, sent, *rest)
        return rebuilt and {**rebuilt, "logprobs": sent.get("logprobs")}

    return rebuild


def clears_all(self: Clearance, tape: Tape) -> None:
    self.clear = self.settled = tape.end


def writes_anew(original: Any) -> Any:
    return lambda self, held: original(self, held).replace(b"data: {", b"data:{", 1)


def swaps(original: Any) -> Any:
    def push(self: HoldQueue, held: HeldEvent) -> None:
        original(self, held)
        if len(self._items) > 1:
            self._items[-1], self._items[-2] = self._items[-2], self._items[-1]

    return push


def completes_a_call(original: Any) -> Any:
    def cut(self: ChatStream, index: int, fate: Cut) -> Any:
        call = {"index": 0, "function": {"arguments": '"}'}}
        frame = self._chunk([{"index": index, "delta": {"tool_calls": [call]}, "finish_reason": None}])
        return frame + original(self, index, fate)

    return cut


def forgets_arguments_that_left(original: Any) -> Any:
    def act(self: choice.Choice, chunk: Chunk, decision: Decision) -> Any:
        lie_in = self.arguments.lie_in
        self.arguments.lie_in = lambda start, end: lie_in(max(start, self.released), end)  # type: ignore[method-assign]
        return original(self, chunk, decision)

    return act


def forgets_bytes(original: Any) -> Any:
    def push(self: HoldQueue, held: HeldEvent) -> None:
        original(self, held)
        self.held_bytes += 1

    return push


def displaces_nothing(original: Any) -> Any:
    return lambda self, placeholder, *, displaces: original(self, placeholder, displaces=False)


def raises(*_: Any) -> None:
    raise RuntimeError("planted")


FAULTS = [
    Fault(
        "text leaves before its verdict",
        "nothing_leaves_without_its_verdict",
        Clearance,
        "advance",
        instead(clears_all),
    ),
    Fault(
        "a redaction leaks one character",
        "nothing_leaves_without_its_verdict",
        Overlay,
        "_redacted",
        leaks_one_character,
    ),
    Fault(
        "a rewritten event keeps its logprobs",
        "nothing_leaves_without_its_verdict",
        ChatStream,
        "_rebuild",
        keeps_logprobs,
    ),
    Fault(
        "verdicts are ignored",
        "nothing_leaves_without_its_verdict",
        choice,
        "decide",
        instead(lambda *_, **__: Decision(Level.SAFE, Action.PASS)),
    ),
    Fault(
        "tokens leave before their text",
        "nothing_leaves_without_its_verdict",
        HeldPart,
        "is_clear",
        lambda original: lambda self: original(self._replace(part=msgspec.structs.replace(self.part, unsaid=0))),
    ),
    Fault("hidden thinking is shown", "hidden_thinking_stays_hidden", Overlay, "__init__", displaces_nothing),
    Fault("lag has no bound", "lag_keeps_its_bound", Clearance, "_may_run_ahead", instead(lambda *_: True)),
    Fault("thinking stays in its field", "text_stands_where_it_may", Overlay, "__init__", displaces_nothing),
    Fault(
        "text behind a placeholder is lost",
        "what_a_client_adds_up_is_what_was_said",
        Overlay,
        "_redacted",
        lambda original: lambda *given: list(original(*given))[:1],
    ),
    Fault("each chunk has a placeholder", "one_placeholder_a_run", Overlay, "continues", instead(lambda *_: False)),
    Fault("the auditor sees the new text alone", "audits_show_the_whole_reply", Tape, "shown", instead(lambda *_: "")),
    Fault(
        "the answer is judged by hidden thinking",
        "audits_show_the_whole_reply",
        Policy,
        "thinking_is_unseen",
        instead(property(lambda self: False)),
    ),
    Fault(
        "an audit takes what doesn't fit",
        "audits_fit_and_come_one_by_one",
        Tape,
        "next_chunk",
        lambda original: lambda self, capacity, reach: original(self, capacity * 10, reach),
    ),
    Fault("flags are silent", "flags_and_failures_are_announced", stream.StreamGate, "_mark", instead(lambda *_: None)),
    Fault("a cut completes a call", "tool_calls_are_never_completed_by_a_cut", ChatStream, "cut", completes_a_call),
    Fault(
        "arguments are forgotten once they have left",
        "a_redaction_of_arguments_cuts",
        choice.Choice,
        "_act",
        forgets_arguments_that_left,
    ),
    Fault("bytes are held for ever", "every_stream_ends", HoldQueue, "push", forgets_bytes),
    Fault(
        "what has left isn't counted",
        "what_waits_is_bounded",
        Tape,
        "waiting_bytes",
        instead(lambda self, offset: 0),
    ),
    Fault("events are written anew", "unaltered_events_keep_their_bytes_and_order", HoldQueue, "_write", writes_anew),
    Fault("events change places", "unaltered_events_keep_their_bytes_and_order", HoldQueue, "push", swaps),
    Fault("frames have another id", "frames_are_the_streams_own", ChatStream, "_learn_head", instead(lambda *_: None)),
    Fault(
        "the analysis is told",
        "frames_are_the_streams_own",
        notes,
        "_note_of",
        lambda original: lambda *given: {**original(*given), "analysis": ANALYSIS},
    ),
    Fault(
        "a finish doesn't wait",
        "finishes_wait_for_the_last_verdict",
        HeldPart,
        "is_clear",
        instead(lambda self: self.end <= self.choice.leave.clear),
    ),
    Fault("the role is forgotten", "cuts_have_their_frames", ChatStream, "cut", cut_without(role=False)),
    Fault(
        "a cut doesn't finish its choice",
        "cuts_have_their_frames",
        ChatStream,
        "cut",
        lambda original: lambda *given: original(*given).partition(b"\n\n")[0] + b"\n\n",
    ),
    Fault("tags stay open", "messages_stand_outside_thinking", ChatStream, "cut", cut_without(close=None)),
    Fault(
        "cuts are ignored",
        "cuts_have_their_reasons",
        choice.Choice,
        "_cut",
        instead(lambda self, decision, phase: decision),
    ),
    Fault("[DONE] is lost", "streams_end_as_they_should", ChatStream, "done", instead(lambda self: b"")),
    Fault("a broken stream is quiet", "streams_end_as_they_should", ChatStream, "error", instead(lambda *_: b"")),
    Fault(
        "what broke off counts as whole",
        "an_end_is_told_as_it_is_seen",
        Ending,
        "error",
        instead(lambda self, why: self._writer.error(why, "upstream_error", "upstream_error")),
    ),
    Fault(
        "a note is no chunk",
        "every_frame_can_be_read",
        ChatStream,
        "note",
        instead(lambda self, index, note: b"data: " + json.dumps({"guardtrace": note}).encode() + b"\n\n"),
    ),
    Fault("the usage is lost", "usage_is_counted_after_a_cut", ChatStream, "usage", instead(lambda *_, **__: b"")),
    Fault("whole replies are rewritten", "whole_replies_are_whole", whole, "is_altered", instead(lambda _: True)),
    Fault("an end that raises", "nothing_raises", choices.Choices, "end", instead(raises)),
]
