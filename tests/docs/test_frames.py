"""The frames in docs/stream-contract.md are the ones that the proxy sends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, Script, chunk, stream
from tests.wire.response_events import Writing, frame, words

TEXT = (Path(__file__).parents[2] / "docs" / "stream-contract.md").read_text("utf-8")
FRAMES = dict(re.findall(r"<!-- frames: (\w+) -->\n```text\n(.*?)```", TEXT, re.DOTALL))

LEAK = "Two and two are easily added so we get four. Now the HARM is spelt out here."
HINT = "All is fine. A HINT here."
INLINE = [
    chunk({"role": "assistant", "content": ""}),
    *[chunk({"content": word + " "}) for word in f"<think>{LEAK}</think> No.".split()],
    chunk({}, "stop"),
    DONE,
]
CASES: dict[str, tuple[list[bytes], dict[str, Any], dict[str, Any]]] = {
    "cut": (stream(LEAK, "No."), {}, {}),
    "usage": (stream(LEAK, "No."), {}, {"stream_options": {"include_usage": True}}),
    "inline": (INLINE, {}, {}),
    "refusal": (stream("HARM comes at once.", "No."), {"cut_shape": "refusal"}, {}),
    "error": (stream("HARM comes at once.", "No."), {"cut_shape": "error"}, {}),
    "redact": (stream(HINT, "Four."), {}, {}),
    "flag": (stream(HINT, "Four."), {"actions": {"potentially_harmful": "flag"}}, {}),
    "broken": (stream("Two and two.", "Four.")[:-2], {}, {}),
}


HEAD = ("id", "object", "created_at", "model", "status", "output", "usage")


def of_completions() -> list[bytes]:
    head = {"id": "cmpl-7", "object": "text_completion", "created": 1_700_000_000, "model": "thinker"}
    texts = [word + " " for word in f"<think>{LEAK}</think> No.".split()]
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": None} for text in texts]
    choices.append({"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"})
    return [*(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n" for choice in choices), DONE]


def of_responses() -> list[bytes]:
    """With few of the fields that repeat the request."""
    events = Writing().begin().item("reasoning", words(LEAK)).item("message", ["No."]).end().events
    for event in events:
        if "response" in event:
            event["response"] = {key: event["response"][key] for key in HEAD}
    return [frame(event) for event in events]


ELSEWHERE = {
    "completions": ("/completions", {"prompt": "Please help."}, of_completions()),
    "responses": ("/responses", {"input": "Please help."}, of_responses()),
}
"""Path, request and frames."""


def at_once(frames: list[bytes]) -> Script:
    """All that the upstream says comes in one write, so that chunks don't depend on timing: the first one is judged as
    soon as it is full, the second one has all the rest."""
    return lambda _: [SSE_HEAD + b"".join(frames)]


def test_every_frame_of_the_page_has_its_case() -> None:
    assert FRAMES.keys() == CASES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_proxy_sends_the_frames_of_the_page_elsewhere(name: str) -> None:
    path, request, frames = ELSEWHERE[name]
    with proxy(at_once(frames)) as running:
        sent = running.raw({"model": "thinker", "stream": True, **request}, path).text
    assert sent.endswith(FRAMES[name])


@pytest.mark.parametrize("name", CASES)
def test_the_proxy_sends_the_frames_of_the_page(name: str) -> None:
    frames, policy, request = CASES[name]
    with proxy(at_once(frames), policy=policy) as running:
        sent = running.raw(ask(stream=True, **request)).text
    shown, sent = (re.sub(r'"(completion|total)_tokens":\d+', r'"\1_tokens":N', text) for text in (FRAMES[name], sent))
    assert shown in sent


def test_what_the_page_says_of_headers_is_so() -> None:
    named = set(re.findall(r"\| `(x-[a-z-]+)` \|", TEXT))
    with proxy(lambda _: [SSE_HEAD, *stream("Fine.", "Yes.")]) as running:
        streamed = running.raw(ask(stream=True)).headers
        refused = running.raw({}).headers
    assert {name for name in streamed if name.startswith("x-") and name != "x-accel-buffering"} <= named
    assert "x-request-id" in refused
