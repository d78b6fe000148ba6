"""What the scripted upstream writes in each dialect, and how a reply's end is called there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from tests.server.scripted import DONE, completion, http, stream
from tests.wire import message_events
from tests.wire.response_events import reply, words

TEXT = {"id": "cmpl-7", "object": "text_completion", "created": 1_700_000_000, "model": "thinker"}


class Upstream(NamedTuple):
    """``frames`` and ``whole`` make a reply of a thinking and an answer; ``finish`` is how a benign one ends."""

    frames: Callable[[str, str], list[bytes]]
    whole: Callable[[str, str], bytes]
    finish: str


def _choice(text: str, finish: str | None = None) -> dict[str, object]:
    return {**TEXT, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}


def _texts(thinking: str, answer: str) -> list[bytes]:
    pieces = ["<think>", *words(thinking), "</think>", *words(answer)]
    chunks = [*map(_choice, pieces), _choice("", "stop")]
    return [b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks] + [DONE]


def _whole_text(thinking: str, answer: str) -> bytes:
    return http(200, json.dumps(_choice(f"<think>{thinking}</think>{answer}", "stop")))


def _whole_response(thinking: str, answer: str) -> bytes:
    writing = reply(thinking, answer)
    for item, text in zip(writing.output, (thinking, answer), strict=True):
        item["content"][0]["text"] = text
    return http(200, json.dumps(writing.whole()))


def _whole_message(thinking: str, answer: str) -> bytes:
    writing = message_events.Writing().thinking([thinking]).text([answer])
    return http(200, json.dumps(writing.whole(stop_reason="end_turn")))


UPSTREAMS = {
    "chat": Upstream(stream, completion, "stop"),
    "completions": Upstream(_texts, _whole_text, "stop"),
    "messages": Upstream(
        lambda thinking, answer: message_events.reply(thinking, answer).frames, _whole_message, "end_turn"
    ),
    "responses": Upstream(lambda thinking, answer: reply(thinking, answer).frames, _whole_response, "completed"),
}
