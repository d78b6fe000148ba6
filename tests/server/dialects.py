"""One exchange in each dialect: how it is asked for, and how a model server streams it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.server import scripted
from tests.server.scripted import DONE, SSE_HEAD, Script, http
from tests.server.test_completions import stream as completion_stream
from tests.server.test_completions import whole as completion_whole
from tests.wire import message_events, response_events

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGM4AQAAygDJmcpdfgAAAABJRU5ErkJggg=="
IMAGE = f"data:image/png;base64,{PNG}"


@dataclass(frozen=True)
class Case:
    """``body`` takes a question and an image's URL, ``frames`` and ``whole`` a thinking and an answer. ``whole`` has its
    HTTP head."""

    name: str
    path: str
    body: Callable[[str, str], dict[str, Any]]
    frames: Callable[[str, str], list[bytes]]
    whole: Callable[[str, str], bytes]
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, question: str = "Please help.", image: str = IMAGE, **more: Any) -> dict[str, Any]:
        return {"model": "thinker", **self.body(question, image), "stream": True, **more}

    def script(self, thinking: str, answer: str) -> Script:
        return lambda _: [SSE_HEAD, *self.frames(thinking, answer)]


def _chat(question: str, image: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": image}}]
    return {"messages": [{"role": "user", "content": parts}]}


def _messages(question: str, image: str) -> dict[str, Any]:
    base64 = {"type": "base64", "media_type": "image/png", "data": image.rpartition(",")[2]}
    source = base64 if image.startswith("data:") else {"type": "url", "url": image}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": question}]
    return {"max_tokens": 900, "messages": [{"role": "user", "content": parts}]}


def _responses(question: str, image: str) -> dict[str, Any]:
    parts = [{"type": "input_text", "text": question}, {"type": "input_image", "image_url": image}]
    return {"input": [{"role": "user", "content": parts}]}


CASES = [
    Case("chat", "/chat/completions", _chat, scripted.stream, scripted.completion),
    Case(
        "completions",
        "/completions",
        lambda question, _: {"prompt": question},
        lambda thinking, answer: [*completion_stream(f"<think>{thinking}</think>{answer}"), DONE],
        lambda thinking, answer: completion_whole(f"<think>{thinking}</think>{answer}"),
    ),
    Case(
        "responses",
        "/responses",
        _responses,
        lambda thinking, answer: response_events.reply(thinking, answer).frames,
        lambda thinking, answer: http(200, json.dumps(response_events.reply(thinking, answer).whole())),
    ),
    Case(
        "messages",
        "/messages",
        _messages,
        lambda thinking, answer: message_events.reply(thinking, answer).frames,
        lambda thinking, answer: http(200, json.dumps(message_events.reply(thinking, answer).whole())),
        {"anthropic-version": "2023-06-01"},
    ),
]
