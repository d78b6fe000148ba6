"""The official client as the measure: reasoning and answer are what it hands to its user, on every recording."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from guardtrace_proxy.wire.events import Event, Phase
from guardtrace_proxy.wire.tags import KNOWN_PAIRS, TagPair, ThinkingStyle
from tests.wire.recordings import Recording, chat_recordings
from tests.wire.replies import dialect, read, text_of
from tests.wire.test_tags import by_one_pattern

REAL = Path(__file__).parents[3] / "shared" / "data"
"""Real transcripts and outputs, which aren't part of the repository."""
REASONING = ("reasoning", "reasoning_content", "thinking")


@dataclass
class Said:
    """What the client says of one choice."""

    reasoning: str = ""
    content: str = ""
    rest: str = ""
    """Refusals, and calls as name and arguments, in the order of arrival."""
    finishes: list[str] = field(default_factory=list)

    def take(self, message: Any, finish: str | None) -> None:
        """Take a delta or a whole message."""
        extra = message.model_extra or {}
        found = {text for name in REASONING for text in [getattr(message, name, None) or extra.get(name)] if text}
        details = "".join(
            part.get("text") or part.get("summary") or "" for part in extra.get("reasoning_details") or []
        )
        # A client shows one of the fields that say the same.
        self.reasoning += "".join(sorted(found | ({details} - {""})))
        self.content += message.content or ""
        self.rest += message.refusal or ""
        if message.function_call is not None:
            self.rest += (message.function_call.name or "") + (message.function_call.arguments or "")
        for call in message.tool_calls or []:
            if call.function is not None:
                self.rest += (call.function.name or "") + (call.function.arguments or "")
        self.finishes += [finish] if finish else []


def read_by_client(data: bytes, is_stream: bool) -> dict[int, Said]:
    """By choice, what the official client hands out when a server sends these bytes."""
    headers = {"content-type": "text/event-stream" if is_stream else "application/json"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=data))
    said: dict[int, Said] = {}
    with openai.OpenAI(api_key="none", base_url="http://x", http_client=httpx.Client(transport=transport)) as client:
        if is_stream:
            for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
                for choice in chunk.choices:
                    taken = said.setdefault(choice.index, Said())
                    # Azure's asynchronous filter sends choices that have no delta.
                    if getattr(choice, "delta", None) is not None:
                        taken.take(choice.delta, choice.finish_reason)
        else:
            for choice in client.chat.completions.create(model="m", messages=[]).choices:
                said.setdefault(choice.index, Said()).take(choice.message, choice.finish_reason)
    return said


def expected(said: Said, style: ThinkingStyle) -> tuple[str, str]:
    """Thinking and answer, of what the client said. Tags are found in the whole content by one pattern."""
    if said.reasoning:
        return said.reasoning, said.content + said.rest
    pairs = (TagPair(style.open, style.close),) if style.close is not None else KNOWN_PAIRS
    runs = [run for run in by_one_pattern(said.content, pairs, style.starts_open) if not run[2]]
    texts = {phase: "".join(text for each, text, _ in runs if each is phase) for phase in Phase}
    return texts[Phase.THINKING], texts[Phase.ANSWERING] + said.rest


def assert_alike(events: list[Event], said: dict[int, Said], style: ThinkingStyle) -> None:
    assert {part.index for event in events for part in event.parts} == set(said)
    for index, each in said.items():
        ours = text_of(events, Phase.THINKING, index), text_of(events, Phase.ANSWERING, index)
        assert ours == expected(each, style)
        parts = [part for event in events for part in event.parts if part.index == index]
        assert [part.finish_reason for part in parts if part.finish_reason] == each.finishes


@chat_recordings
def test_we_read_what_the_official_client_reads(recording: Recording) -> None:
    said = read_by_client(recording.data, recording.is_stream)
    assert_alike(recording.events(), said, recording.style)


# Real servers and real models, where they are at hand


def transcripts() -> Iterator[tuple[str, str]]:
    """What a real vLLM sent, by the name of the request."""
    for path in sorted(REAL.glob("recordings/*.txt")):
        for found in re.split(r"^===== ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            name, _, rest = found.partition("\n")
            yield name, rest


TRANSCRIPTS = list(transcripts())
needs_transcripts = pytest.mark.skipif(not TRANSCRIPTS, reason="no transcripts of a real vLLM at hand")
needs_outputs = pytest.mark.skipif(
    not (REAL / "photo-vlm" / "traces.jsonl").exists(), reason="no outputs of real vision models at hand"
)


@needs_transcripts
@pytest.mark.parametrize(("name", "text"), TRANSCRIPTS, ids=[name for name, _ in TRANSCRIPTS])
def test_a_real_vllm_is_read_as_the_official_client_reads_it(name: str, text: str) -> None:
    if "\ndata: " in text:
        stream = text[text.index("data: ") :].rstrip("\n").encode() + b"\n\n"
        events = read(stream)
        assert b"".join(event.raw for event in events) == stream
        assert read(*(stream[at : at + 7] for at in range(0, len(stream), 7))) == events
        assert_alike(events, read_by_client(stream, True), ThinkingStyle())
        return
    body = next(line for line in text.splitlines() if line.startswith("{")).encode()
    if b'"error"' in body[:9]:
        # Before the stream vLLM's errors are plain JSON: no completion.
        assert dialect().completion(body).detail
        return
    assert_alike([dialect().completion(body)], read_by_client(body, False), ThinkingStyle())


def outputs() -> Iterator[dict[str, Any]]:
    with open(REAL / "photo-vlm" / "traces.jsonl", encoding="utf-8") as file:
        yield from map(json.loads, file)


def style_of(model: str) -> ThinkingStyle:
    """How the model's own template and tags would be configured."""
    if "Apriel" in model:
        return ThinkingStyle("custom", starts_open=True, close="[BEGIN FINAL RESPONSE]")
    return ThinkingStyle(starts_open="Qwen3-VL" in model or "ERNIE" in model)


def squeezed(text: str) -> str:
    """Without white space at the ends of lines and texts, which the data's makers have cut."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@needs_outputs
def test_real_vision_models_are_read_as_their_makers_meant() -> None:
    for row in outputs():
        style = style_of(row["model"])
        words = [word for _, run in groupby(row["raw"], key=str.isspace) for word in ["".join(run)]]
        stream = b"".join(
            b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}).encode() + b"\n\n"
            for word in words
        )
        events = read(stream, style=style)
        assert_alike(events, read_by_client(stream, True), style)
        thinking, answer = text_of(events, Phase.THINKING), text_of(events, Phase.ANSWERING)
        assert squeezed(thinking) == squeezed(row["thinking"]), row["id"]
        assert bool(answer.strip()) is row["closed"], row["id"]
