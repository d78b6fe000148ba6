"""Replies with very many strings or values: refused before each of them is looked at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.completion import CompletionStream
from guardtrace_proxy.wire.counts import MAX_REPLY_VALUES, MAX_STRINGS
from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.messages import MessagesStream
from guardtrace_proxy.wire.reply import Reply
from guardtrace_proxy.wire.responses import ResponsesStream
from guardtrace_proxy.wire.tags import ThinkingStyle

LIMIT = 8_388_608
STYLE = ThinkingStyle()
READERS: dict[str, Callable[[], Reply]] = {
    "chat": lambda: ChatStream(STYLE, include_usage=False, max_event_bytes=LIMIT, model="m"),
    "completions": lambda: CompletionStream([STYLE], 1, include_usage=False, max_event_bytes=LIMIT, model="m"),
    "responses": lambda: ResponsesStream(STYLE, max_event_bytes=LIMIT, model="m"),
    "messages": lambda: MessagesStream(STYLE, max_event_bytes=LIMIT, model="m"),
}
CHOICE = {"index": 0, "finish_reason": "stop"}
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "chat": lambda many: {"choices": [CHOICE | {"message": {"content": "hi"}, "zz": many}]},
    "completions": lambda many: {"choices": [CHOICE | {"text": "hi", "zz": many}]},
    "responses": lambda many: {"type": "response.odd", "output": [], "zz": many},
    "messages": lambda many: {"type": "odd", "content": [], "zz": many},
}
BESIDE = {"chat beside choices": ("chat", lambda many: {"choices": [], "zz": many})}
CASES = {name: (name, at) for name, at in PLACES.items()} | BESIDE


def read(name: str, many: Any, *, streamed: bool) -> tuple[Event, float]:
    reader, at = CASES[name]
    reply, body = READERS[reader](), json.dumps(at(many), separators=(",", ":")).encode()
    started = time.process_time()
    if streamed:
        [event] = [each for each in reply.feed(b"data: " + body + b"\n\n") if isinstance(each, Event)]
    else:
        event = reply.completion(body)
    return event, time.process_time() - started


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("many", [["spam"] * (MAX_STRINGS + 1), ["spam"] * 500_000, [0] * (MAX_REPLY_VALUES + 1)])
@pytest.mark.parametrize("name", CASES)
def test_very_many_strings_or_values_cant_be_read(name: str, many: list[Any], streamed: bool) -> None:
    event, took = read(name, many, streamed=streamed)
    assert event.kind is EventKind.MALFORMED
    assert "1,048,576 values, or 32,768 strings" in event.detail
    assert took < 4


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_many_can_and_text_may_hold_any_number_of_their_signs(name: str, streamed: bool) -> None:
    for many in (["spam"] * (MAX_STRINGS - 9), '{[,\\"' * MAX_REPLY_VALUES, [0] * 10_000):
        event, _ = read(name, many, streamed=streamed)
        assert event.kind is (EventKind.CHUNK if streamed else EventKind.COMPLETION)


@pytest.mark.parametrize("streamed", [True, False])
def test_strings_of_all_choices_count(streamed: bool) -> None:
    some = ["spam"] * (MAX_STRINGS // 4)
    body = {"choices": [{"index": index, "text": "hi", "zz": some} for index in range(5)]}
    raw, reply = json.dumps(body).encode(), READERS["completions"]()
    event = reply.feed(b"data: " + raw + b"\n\n")[-1] if streamed else reply.completion(raw)
    assert event.kind is EventKind.MALFORMED
