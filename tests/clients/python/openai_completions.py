"""openai-python on completions: ``create``. The reader of thinking tags is the client's user."""

from __future__ import annotations

from typing import Any

from lines import KEY, MODEL, PROMPT, Seen, serve
from openai import OpenAI

ASK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT}


def read(chunk: Any, seen: Seen) -> None:
    """A chunk of a stream, or a whole reply."""
    seen.got(chunk)
    for choice in chunk.choices:
        said = seen.thinking + choice.text if not seen.text else choice.text
        if seen.text or not said.startswith("<think>"):
            seen.text = (seen.text + choice.text).lstrip("\n")
        else:
            seen.thinking, _, text = said.partition("</think>")
            seen.text = text.lstrip("\n")
        seen.finish = choice.finish_reason or seen.finish


def ended(seen: Seen) -> None:
    seen.thinking = seen.thinking.removeprefix("<think>")


def stream(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        try:
            for chunk in client.completions.create(**ASK, stream=True):
                read(chunk, seen)
        finally:
            ended(seen)


def whole(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        read(client.completions.create(**ASK), seen)
        ended(seen)


def leave(url: str, seen: Seen) -> None:
    chunks = OpenAI(base_url=url, api_key=KEY).completions.create(**ASK, stream=True)
    for chunk in chunks:
        read(chunk, seen)
        if seen.thinking:
            break
    chunks.close()
    seen.left_by = "`stream.close()`"


serve("openai", stream, whole, leave)
