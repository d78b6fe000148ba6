"""The stream contract for the Messages API: random replies, policies and timings, read as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.gate.arguments import Arguments
from guardtrace_proxy.gate.queue import HeldPart
from guardtrace_proxy.policy.schema import CutShape
from guardtrace_proxy.wire.messages import MessagesStream
from guardtrace_proxy.wire.messages_blocks import Terms
from guardtrace_proxy.wire.messages_writer import MessagesWriter
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.properties.alphabet import Alphabet, known
from tests.properties.cases import draw_policy
from tests.properties.dialects import DIALECTS
from tests.properties.dialects import Writing as Texts
from tests.properties.draws import Draw, Seeded, Source
from tests.properties.one_choice import (
    LIMIT,
    History,
    a_redaction_of_arguments_cuts,
    asked_for,
    case_of,
    may_hide,
    nothing_leaves_without_its_verdict,
    without_other_fields,
)
from tests.properties.sent import Case
from tests.properties.world import Log, run
from tests.wire.message_events import Writing
from tests.wire.response_events import content_of
from tests.wire.well_formed_messages import check_stream


@dataclass
class Drawn:
    case: Case
    writing: Writing
    thinking: set[str]
    calls: set[str]
    keeps: bool
    """Whether encrypted thinking passes."""


def draw(source: Source) -> Drawn:
    main = Draw(source)
    policy = without_other_fields(draw_policy(main.section("policy")), lags=True)
    texts = Texts(main.section("texts"), DIALECTS[0], Alphabet(), main.pick(4, 0, 2, 10))
    keeps, thinking, calls = main.chance(30), set[str](), set[str]()
    writing = Writing().begin()
    for _ in range(main.number(0, 5)):
        _add_block(main, writing, texts, thinking, calls)
    writing.end(main.pick("end_turn", "end_turn", "max_tokens", "tool_use"))
    if main.chance(10):
        note = {"type": "vendor_note", "note": texts.text(("",))}
        writing.events.insert(main.number(2, len(writing.events) - 2), note)
    if main.chance(15):
        writing.events.insert(main.number(1, len(writing.events) - 1), {"type": "ping"})
    whole = json.dumps(writing.whole()).encode() if main.chance(10) else None
    case = case_of(
        main,
        policy,
        writing.frames,
        whole,
        lambda: MessagesStream(ThinkingStyle("field"), max_event_bytes=LIMIT, model="asked-for", terms=Terms(keeps)),
    )
    return Drawn(case, writing, thinking, calls, keeps)


def _add_block(main: Draw, writing: Writing, texts: Texts, thinking: set[str], calls: set[str]) -> None:
    kind = main.pick("text", "thinking", "text", "thinking", "call", "redacted", "vendor", "empty")
    number = len(writing.blocks)
    if kind == "call":
        arguments = '{"at": "' + texts.text(("", " ")) + '"}'
        pieces = [arguments[start:end] for start, end in texts.pieces(len(arguments))]
        name, has_arguments = "look" + texts.char(), main.chance(80)
        calls.update(known(name + arguments * has_arguments))
        writing.call(name, pieces if has_arguments else [])
    elif kind == "redacted":
        writing.redacted(secret(number))
    elif kind == "vendor":
        writing.other({"type": "vendor_result", "content": texts.text(("",))})
    elif kind == "empty":
        writing.thinking([], secret(number)) if main.chance(50) else writing.text([])
    else:
        text = texts.text()
        pieces = [text[start:end] for start, end in texts.pieces(len(text))]
        if kind == "text":
            writing.text(pieces)
        else:
            thinking.update(known(text))
            writing.thinking(pieces, secret(number) if main.chance(80) else None)


def secret(number: int) -> str:
    """A signature, or encrypted thinking, of each block's own."""
    return f"EqQBCkYIBxgCKkD{number}" + "zX3vQm8Lr2Kp7TbY" * 6


# The promises


def broken_promises(drawn: Drawn, log: Log) -> Iterator[str]:
    if log.raised is not None:
        yield f"raised {log.raised!r}"
        return
    if not log.finished or log.held_at_end:
        yield f"the stream never ended, {log.held_at_end} bytes are held"
    yield from signatures_follow_the_verdicts_on_their_blocks(drawn, log)
    history = History(drawn, log)
    yield from nothing_leaves_without_its_verdict(history)
    yield from a_redaction_of_arguments_cuts(history)
    if drawn.case.whole is None:
        yield from streams_are_well_formed(drawn, history)
        yield from benign_streams_are_the_same_bytes(drawn, history)
    elif not _gives_reasons(drawn, history) and log.sent != drawn.case.whole:
        yield "a whole reply was altered for nothing"


def signatures_follow_the_verdicts_on_their_blocks(drawn: Drawn, log: Log) -> Iterator[str]:
    """A signature leaves behind the last verdict on its text, and only where all of it left."""
    history = History(drawn, log)
    sent = b""
    for entry in log.entries:
        if entry.what == "asked":
            history.asked[entry.value.id] = entry.value
        elif entry.what == "answered":
            history.hear(entry.value.id, entry.value.mark)
        elif entry.what == "sent":
            sent += entry.value
            for number, block in enumerate(drawn.writing.blocks):
                if block["type"] != "thinking" or secret(number).encode() not in entry.value:
                    continue
                chars = known(block["thinking"])
                if history.policy.thinking.mode.value in ("hold", "lag") and set(chars) - history.standing.keys():
                    yield f"the signature of {number} left before its verdict"
                if drawn.case.whole is None and not set(chars) <= set(sent.decode()):
                    yield f"the signature of {number} left without its text"
    if not drawn.keeps and any(secret(number).encode() in log.sent for number in _redacted(drawn)):
        yield "encrypted thinking left"


def _gives_reasons(drawn: Drawn, history: History) -> bool:
    """Whether there is a reason to alter the reply."""
    return may_hide(history) or asked_for(history) or bool(_redacted(drawn) and not drawn.keeps)


def _redacted(drawn: Drawn) -> list[int]:
    return [number for number, block in enumerate(drawn.writing.blocks) if block["type"] == "redacted_thinking"]


def streams_are_well_formed(drawn: Drawn, history: History) -> Iterator[str]:
    found = content_of(history.log.sent)
    last = found[-1] if found else {"type": "nothing"}
    message: dict[str, Any] = {}
    try:
        message = check_stream([event for event in found if event["type"] != "vendor_note"])
    except AssertionError as error:
        yield f"not well-formed: {error}"
    for block in message.get("content", ()):
        if block["type"] == "thinking" and block["signature"] and block not in drawn.writing.blocks:
            yield "a signature over another text"
    if message.get("stop_reason") == "refusal":
        ending = next(event for event in found if event["type"] == "message_delta")
        if history.policy.cut_shape is CutShape.REFUSAL:
            said = message["stop_details"]["explanation"]
        else:
            said = message["content"][-1].get("text")
        if said not in history.case.endings:
            yield f"the message of a cut is {said}"
        if "guardtrace" in ending and not history.policy.expose.object:
            yield "the mark"
        if not asked_for(history):
            yield "cut for nothing"
    complete = len(drawn.case.events) == len(drawn.writing.events)
    if complete and last["type"] not in ("message_stop", "error"):
        yield f"ends with {last['type']}"
    if last["type"] == "error" and complete and history.policy.cut_shape is not CutShape.ERROR:
        yield "an error for nothing"
    begun = any(b"message_delta" in event.raw for event in drawn.case.events)
    if not complete and last["type"] != "error" and message.get("stop_reason") != "refusal" and not begun:
        yield f"a broken stream ends with {last['type']}"


def benign_streams_are_the_same_bytes(drawn: Drawn, history: History) -> Iterator[str]:
    if _gives_reasons(drawn, history):
        return
    came = b"".join(event.raw for event in drawn.case.events)
    sent = history.log.sent
    for block in sent.split(b"\n\n"):
        if b'"ping","guardtrace"' in block:
            sent = sent.replace(block + b"\n\n", b"")
    complete = len(drawn.case.events) == len(drawn.writing.events)
    if complete and sent != came:
        yield "altered for nothing"
    if not complete and not came.startswith(sent.partition(b"event: error")[0].partition(b"event: message_stop")[0]):
        yield "altered for nothing"


def check(source: Source) -> None:
    drawn = draw(source)
    assert list(broken_promises(drawn, run(drawn.case))) == []


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


is_clear = HeldPart.is_clear


def without_waiting(part: HeldPart) -> bool:
    part.part.waits = False
    return is_clear(part)


def keep_numbers(writer: MessagesWriter, block: Any) -> bytes:
    block.is_left_out, block.opening, writer._waiting = True, None, None
    return b""


FAULTS = [
    (
        "blocks keep their numbers",
        MessagesWriter,
        "_leave_out",
        keep_numbers,
    ),
    ("blocks stay open", MessagesWriter, "_closed", lambda self, tag: []),
    ("a broken stream is quiet", MessagesWriter, "error", lambda *_, **__: b""),
    ("arguments are redacted", Arguments, "lie_in", lambda self, start, end: False),
    ("signatures don't wait", HeldPart, "is_clear", without_waiting),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found(fault: tuple[str, Any, str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*fault[1:])
    for seed in range(1000):
        drawn = draw(Seeded(seed))
        if list(broken_promises(drawn, run(drawn.case))):
            return
    pytest.fail("nobody noticed")


def test_every_kind_of_block_is_drawn() -> None:
    drawn = [draw(Seeded(seed)).writing.stream for seed in range(200)]
    for name in (
        "text",
        "thinking",
        "tool_use",
        "redacted_thinking",
        "vendor_result",
        "vendor_note",
        "signature_delta",
    ):
        assert any(f'"{name}"'.encode() in stream for stream in drawn), name
