"""The stream contract for the Responses API: random replies, policies and timings, read as a client reads them.

Its frames aren't those of chat completions, so it has promises of its own; what nobody may see is known in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.gate.arguments import Arguments
from guardtrace_proxy.gate.clearance import Modes
from guardtrace_proxy.policy.schema import Action, CutShape, Mode, ReasoningField
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.responses import ResponsesStream
from guardtrace_proxy.wire.responses_client import Client
from guardtrace_proxy.wire.responses_writer import ResponsesWriter
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.properties.alphabet import Alphabet, Mark, betrayed, known
from tests.properties.cases import draw_policy
from tests.properties.dialects import DIALECTS
from tests.properties.dialects import Writing as Texts
from tests.properties.draws import Draw, Seeded, Source
from tests.properties.history import STRICTNESS
from tests.properties.one_choice import (
    LIMIT,
    History,
    a_redaction_of_arguments_cuts,
    asked_for,
    case_of,
    failed,
    may_hide,
    nothing_leaves_without_its_verdict,
    unaltered_events_keep_their_bytes_and_order,
    without_other_fields,
)
from tests.properties.sent import Case
from tests.properties.world import Log, run
from tests.wire.response_events import PARTS, Writing, content_of
from tests.wire.well_formed import check_stream

PLAIN = DIALECTS[0]
THINKING_PARTS = ("reasoning_text", "summary_text")
PART_OF = {"message": "output_text", "refusal": "refusal"}


@dataclass
class Drawn:
    case: Case
    writing: Writing
    thinking: set[str]
    """The characters of the thinking."""
    calls: set[str]
    """Those of calls' names and arguments."""
    inline: bool
    """Whether it stands between tags."""


@dataclass
class Items:
    """Draws items. ``inline``: no reasoning, but tags in messages; ``inside`` says whether one stands open."""

    main: Draw
    writing: Writing
    texts: Texts
    inline: bool
    thinking: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    inside: bool = False

    def add(self) -> None:
        kind = self.main.pick("message", "reasoning", "message", "reasoning", "call", "custom", "refusal")
        if kind in ("call", "custom"):
            arguments = '{"at": "' + self.texts.text(("", " ")) + '"}'
            name, into = "look" + self.texts.char(), "function_call" if kind == "call" else "custom_tool_call"
            self.calls.update(known(name + arguments))
            self.writing.call(name, self._pieces(arguments), into)
            return
        if kind == "reasoning" and self.inline:
            kind = "message"
        parts = []
        for _ in range(self.main.pick(1, 1, 2, 0)):
            name = self.main.pick(*THINKING_PARTS) if kind == "reasoning" else PART_OF[kind]
            parts.append((name, self._pieces(self._text(name))))
        if len({name for name, _ in parts}) > 1:
            parts = parts[:1]  # two lists of parts, each with its own first index
        self.writing.parts("reasoning" if kind == "reasoning" else "message", parts)

    def _text(self, name: str) -> str:
        if self.inline and name == "output_text":
            return "".join(self._block() for _ in range(self.main.number(1, 3)))
        text = self.texts.text()
        if name in THINKING_PARTS:
            self.thinking.update(known(text))
        return text

    def _block(self) -> str:
        """A text with the tags about it; one that stands open does so until a later text closes it."""
        opens = not self.inside and self.main.chance(50)
        self.inside = self.inside or opens
        text = self.texts.text()
        if self.inside:
            self.thinking.update(known(text))
        closes = self.inside and self.main.chance(75)
        self.inside = self.inside and not closes
        return "<think>" * opens + text + "</think>" * closes

    def _pieces(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.texts.pieces(len(text))]


def draw(source: Source) -> Drawn:
    main = Draw(source)
    policy = without_other_fields(draw_policy(main.section("policy")), lags=True)
    texts = Texts(main.section("texts"), PLAIN, Alphabet(), main.pick(4, 0, 2, 10))
    writing = Writing(final_ids=not main.chance(30)).begin()
    items = Items(main, writing, texts, inline=main.chance(30))
    for _ in range(main.number(0, 4)):
        items.add()
    writing.end(main.pick("completed", "completed", "incomplete"))
    if main.chance(10):
        # Not between the pieces of a tag: what another text breaks is none.
        places = [at for at in range(1, len(writing.events)) if not (items.inline and "delta" in writing.events[at])]
        note = {"type": "response.vendor.note", "note": texts.text(("",)), "sequence_number": 0}
        writing.events.insert(main.pick(*places), note)
        for number, event in enumerate(writing.events):
            event["sequence_number"] = number
    whole = json.dumps(writing.whole()).encode() if main.chance(10) else None
    case = case_of(
        main,
        policy,
        writing.frames,
        whole,
        lambda: ResponsesStream(case.style, max_event_bytes=LIMIT, model="asked-for"),
    )
    case.style = ThinkingStyle(main.pick("auto", "inline") if items.inline else "field")
    return Drawn(case, writing, items.thinking, items.calls, items.inline)


# The promises


class Watched(History):
    """Thinking between tags is guarded by the stricter of both modes, since it stands where the answer stands."""

    drawn: Drawn

    def mode(self, phase: Phase) -> Mode:
        mode, answer = super().mode(phase), self.policy.answer.mode
        if phase is Phase.ANSWERING or mode is Mode.WITHHOLD or not self.drawn.inline:
            return mode
        return max(mode, answer, key=STRICTNESS.index)

    def decided(self, phase: Phase, mark: Mark) -> Action:
        """Of thinking between tags that stays there the more severe action counts."""
        own, of_answer = super().decided(phase, mark), super().decided(Phase.ANSWERING, mark)
        if not self.drawn.inline or self.policy.thinking_goes is not ReasoningField.AS_IS:
            return own
        return max(own, of_answer, key=lambda action: action.severity)


def broken_promises(drawn: Drawn, log: Log) -> Iterator[str]:
    if log.raised is not None:
        yield f"raised {log.raised!r}"
        return
    if not log.finished or log.held_at_end:
        yield f"the stream never ended, {log.held_at_end} bytes are held"
    yield from lag_keeps_its_bound_and_stops_at_a_hit(Watched(drawn, log))
    history = Watched(drawn, log)
    yield from nothing_leaves_without_its_verdict(history)
    yield from a_redaction_of_arguments_cuts(history)
    if drawn.case.whole is None:
        yield from streams_are_well_formed(history)
        yield from unaltered_events_keep_their_bytes_and_order(history)
    elif not history.hits and log.sent != drawn.case.whole and not may_hide(history) and not failed(log):
        yield "a whole reply was altered for nothing"


def lag_keeps_its_bound_and_stops_at_a_hit(history: Watched) -> Iterator[str]:
    """At most ``max_lag`` tokens of a phase are ahead of their verdict, at any time, and none after a hit."""
    left: set[str] = set()
    for entry in history.log.entries:
        if entry.what == "asked":
            history.asked[entry.value.id] = entry.value
        elif entry.what == "answered":
            history.hear(entry.value.id, entry.value.mark)
        elif entry.what == "sent" and history.case.whole is None:
            new = set(betrayed(content_of(entry.value))) - left
            left |= new
            lags = {char for char in left if history.mode(history.phase(char)) is Mode.LAG}
            ahead = lags - history.standing.keys()
            for char in new & lags:
                if history.standing.get(char) == "hit" or (history.hits and char in ahead):
                    yield f"{char!r} left behind a hit, standing {history.standing.get(char)}"
            for phase, most in _most_ahead(history):
                tokens = sum(_tokens(event, ahead, history, phase) for event in history.drawn.writing.events)
                if tokens > most:
                    yield f"{tokens} tokens ran ahead of {most}"


def _most_ahead(history: Watched) -> Iterator[tuple[Phase, int]]:
    """``max_lag`` of each phase; between tags the lesser of both."""
    thinking, answer = history.policy.thinking, history.policy.answer
    both = [each.max_lag for each in (thinking, answer) if each.mode is Mode.LAG]
    yield Phase.THINKING, min(both, default=0) if history.drawn.inline else thinking.max_lag
    yield Phase.ANSWERING, answer.max_lag


def _tokens(event: dict[str, Any], ahead: set[str], history: Watched, phase: Phase) -> int:
    """How many tokens of a delta are surely ahead and of this phase."""
    text = event.get("delta", "")
    chars = known(text)
    if not chars or not ahead.issuperset(chars) or {history.phase(char) for char in chars} != {phase}:
        return 0
    tokens = -(-len(text.encode()) // 4)
    # What lies beside the characters may be a tag, which is of no phase.
    return tokens if len(chars) == len(text) else max(0, tokens * len(chars) // len(text) - 1)


def streams_are_well_formed(history: Watched) -> Iterator[str]:
    """All of it, so a snapshot says what the deltas said, whatever became of them; after a cut come closing frames."""
    found = content_of(history.log.sent)
    last = found[-1] if found else {"type": "nothing"}
    cut = last["type"] == "response.incomplete" and last["response"]["incomplete_details"]
    numbers = [event["sequence_number"] for event in found]
    if numbers != sorted(set(numbers)):
        yield f"numbers {numbers}, the last is {last['type']}"
    try:
        if last["type"] != "error" and found:
            check_stream([event for event in found if event["type"] != "response.vendor.note"])
    except AssertionError as error:
        yield f"not well-formed: {error}"
    if cut and cut["reason"] == "content_filter":
        message = last["response"]["output"][-1]["content"][0]
        if not any(ending in message.values() for ending in history.case.endings):
            yield f"the last item of a cut is {message}"
        if bool(last.get("guardtrace")) is not history.policy.expose.object:
            yield "the mark"
        if history.log.raised is None and not asked_for(history):
            yield "cut for nothing"
    complete = len(history.case.events) == len(history.drawn.writing.events)
    if complete and last["type"] not in ("response.completed", "response.incomplete", "error"):
        yield f"ends with {last['type']}"
    if not complete and not cut and last["type"] != "error":
        yield f"a broken stream ends with {last['type']}"
    if last["type"] == "error" and complete and history.policy.cut_shape is not CutShape.ERROR:
        yield "an error for nothing"


def check(source: Source) -> None:
    drawn = draw(source)
    log = run(drawn.case)
    assert list(broken_promises(drawn, log)) == []


def test_every_promise_is_kept(request: pytest.FixtureRequest) -> None:
    for seed in range(request.config.getoption("--cases") // 4):
        try:
            check(Seeded(seed))
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}")


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_every_promise_is_kept_where_hypothesis_looks(data: st.DataObject) -> None:
    check(lambda section, low, high: data.draw(st.integers(low, high)))


gate_ends = StreamGate.end


def ends_as_its_connection_does(gate: StreamGate, now: float, broken: str | None = None) -> None:
    gate._ending.saw_last = False
    gate_ends(gate, now, broken)


FAULTS = [
    ("snapshots pass", ResponsesWriter, "_repeats_altered", lambda self, event: False),
    ("items stay open", Client, "close", lambda self, tag: []),
    ("numbers begin anew", Client, "_event", lambda self, name, **more: {"type": name, "sequence_number": 0, **more}),
    ("a broken stream is quiet", ResponsesWriter, "error", lambda *_, **__: b""),
    ("tags are text", ThinkingStyle, "tag_reader", lambda self: None),
    ("the last event isn't the end", StreamGate, "end", ends_as_its_connection_does),
    ("arguments are redacted", Arguments, "lie_in", lambda self, start, end: False),
    ("lag has no bound", Modes, "max_lag", lambda self, segment: 1 << 20),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found(fault: tuple[str, Any, str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*fault[1:])
    for seed in range(500):
        drawn = draw(Seeded(seed))
        if list(broken_promises(drawn, run(drawn.case))):
            return
    pytest.fail("nobody noticed")


def test_every_kind_of_part_is_drawn() -> None:
    drawn = [draw(Seeded(seed)).writing.stream for seed in range(200)]
    for name in (*PARTS, "function_call", "custom_tool_call", "response.vendor.note", "<think>"):
        assert any(name.encode() in stream for stream in drawn), name
