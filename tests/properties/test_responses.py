"""The stream contract for the Responses API: random replies, policies and timings, read as a client reads them.

Its frames aren't those of chat completions, so it has promises of its own; what nobody may see is known in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.policy.schema import CutShape
from guardtrace_proxy.wire.responses import ResponsesStream
from guardtrace_proxy.wire.responses_client import Client
from guardtrace_proxy.wire.responses_writer import ResponsesWriter
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.properties.alphabet import Alphabet, known
from tests.properties.cases import MESSAGE, draw_policy
from tests.properties.dialects import DIALECTS
from tests.properties.dialects import Writing as Texts
from tests.properties.draws import Draw, Seeded, Source
from tests.properties.one_choice import (
    LIMIT,
    History,
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


@dataclass
class Drawn:
    case: Case
    writing: Writing
    thinking: set[str]
    """The characters of the thinking."""


def draw(source: Source) -> Drawn:
    main = Draw(source)
    policy = without_other_fields(draw_policy(main.section("policy")))
    texts = Texts(main.section("texts"), PLAIN, Alphabet(), main.pick(4, 0, 2, 10))
    thinking: set[str] = set()
    writing = Writing(final_ids=not main.chance(30)).begin()
    for _ in range(main.number(0, 4)):
        _add_item(main, writing, texts, thinking)
    writing.end(main.pick("completed", "completed", "incomplete"))
    if main.chance(10):
        place = main.number(2, len(writing.events))
        note = {"type": "response.vendor.note", "note": texts.text(("",)), "sequence_number": 0}
        writing.events.insert(place - 1, note)
        for number, event in enumerate(writing.events):
            event["sequence_number"] = number
    whole = json.dumps(writing.whole()).encode() if main.chance(10) else None
    case = case_of(
        main,
        policy,
        writing.frames,
        whole,
        lambda: ResponsesStream(ThinkingStyle("field"), max_event_bytes=LIMIT, model="asked-for"),
    )
    return Drawn(case, writing, thinking)


def _add_item(main: Draw, writing: Writing, texts: Texts, thinking: set[str]) -> None:
    kind = main.pick("message", "reasoning", "message", "reasoning", "call", "custom", "refusal")
    if kind in ("call", "custom"):
        arguments = '{"at": "' + texts.text(("", " ")) + '"}'
        pieces = [arguments[start:end] for start, end in texts.pieces(len(arguments))]
        writing.call("look" + texts.char(), pieces, "function_call" if kind == "call" else "custom_tool_call")
        return
    parts = []
    for _ in range(main.pick(1, 1, 2, 0)):
        name = main.pick(*THINKING_PARTS) if kind == "reasoning" else "refusal" if kind == "refusal" else "output_text"
        text = texts.text()
        if kind == "reasoning":
            thinking.update(known(text))
        parts.append((name, [text[start:end] for start, end in texts.pieces(len(text))]))
    if len({name for name, _ in parts}) > 1:
        parts = parts[:1]  # two lists of parts, each with its own first index
    writing.parts("reasoning" if kind == "reasoning" else "message", parts)


# The promises


def broken_promises(drawn: Drawn, log: Log) -> Iterator[str]:
    if log.raised is not None:
        yield f"raised {log.raised!r}"
        return
    if not log.finished or log.held_at_end:
        yield f"the stream never ended, {log.held_at_end} bytes are held"
    history = History(drawn, log)
    yield from nothing_leaves_without_its_verdict(history)
    if drawn.case.whole is None:
        yield from streams_are_well_formed(history)
        yield from unaltered_events_keep_their_bytes_and_order(history)
    elif not history.hits and log.sent != drawn.case.whole and not may_hide(history) and not failed(log):
        yield "a whole reply was altered for nothing"


def streams_are_well_formed(history: History) -> Iterator[str]:
    """All of it, so a snapshot says what the deltas said, whatever became of them; after a cut come closing frames."""
    found = content_of(history.log.sent)
    last = found[-1] if found else {"type": "nothing"}
    cut = last["type"] == "response.incomplete" and last["response"]["incomplete_details"]
    try:
        if last["type"] != "error" and found:
            check_stream([event for event in found if event["type"] != "response.vendor.note"])
    except AssertionError as error:
        yield f"not well-formed: {error}"
    if cut and cut["reason"] == "content_filter":
        message = last["response"]["output"][-1]["content"][0]
        if MESSAGE not in message.values():
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


FAULTS = [
    ("snapshots pass", ResponsesWriter, "_repeats_altered", lambda self, event: False),
    ("items stay open", Client, "close", lambda self, tag: []),
    ("numbers begin anew", Client, "_event", lambda self, name, **more: {"type": name, "sequence_number": 0, **more}),
    ("a broken stream is quiet", ResponsesWriter, "error", lambda *_, **__: b""),
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
    for name in (*PARTS, "function_call", "custom_tool_call", "response.vendor.note"):
        assert any(name.encode() in stream for stream in drawn), name
