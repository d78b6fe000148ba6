"""openai-python on completions: ``create``. Thinking tags are read here, since the client reads none."""

from __future__ import annotations

from typing import Any

from lines import KEY, MODEL, PROMPT, Seen, serve
from openai import OpenAI

ASK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT}


def read(chunk: Any, seen: Seen, before: str) -> str:
    """A chunk of a stream, or a whole reply; returns all the text so far."""
    seen.got(chunk)
    for choice in chunk.choices:
        before += choice.text
        thinking, _, text = before.partition("</think>") if before.startswith("<think>") else ("", "", before)
        seen.thinking, seen.text = thinking.removeprefix("<think>"), text.lstrip("\n")
        seen.finish = choice.finish_reason or seen.finish
    return before


def stream(url: str, seen: Seen) -> None:
    text = ""
    with OpenAI(base_url=url, api_key=KEY) as client:
        for chunk in client.completions.create(**ASK, stream=True):
            text = read(chunk, seen, text)


def whole(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        read(client.completions.create(**ASK), seen, "")


def leave(url: str, seen: Seen) -> None:
    chunks = OpenAI(base_url=url, api_key=KEY).completions.create(**ASK, stream=True)
    text = ""
    for chunk in chunks:
        text = read(chunk, seen, text)
        if seen.thinking:
            break
    chunks.close()
    seen.left_by = "`stream.close()`"


serve("openai", stream, whole, leave)
