"""openai-python: ``create`` of the two clients, or the helper ``stream()``, as the argument says."""

from __future__ import annotations

import sys
from typing import Any

from lines import KEY, MODEL, PROMPT, Seen, serve
from openai import AsyncOpenAI, OpenAI

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}


def read(chunk: Any, seen: Seen) -> None:
    """A chunk of a stream, or a whole reply: its message has the same fields."""
    seen.got(chunk)
    for choice in chunk.choices:
        part = getattr(choice, "delta", None) or choice.message
        seen.thinking += getattr(part, "reasoning", None) or ""
        seen.text += part.content or ""
        seen.finish = choice.finish_reason or seen.finish


def stream(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        for chunk in client.chat.completions.create(**ASK, stream=True):
            read(chunk, seen)


def whole(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        read(client.chat.completions.create(**ASK), seen)


def leave(url: str, seen: Seen) -> None:
    # Here and below the client stays open: closing the stream alone must do.
    chunks = OpenAI(base_url=url, api_key=KEY).chat.completions.create(**ASK, stream=True)
    for chunk in chunks:
        read(chunk, seen)
        if seen.thinking:
            break
    chunks.close()
    seen.left_by = "`stream.close()`"


async def stream_async(url: str, seen: Seen) -> None:
    async with AsyncOpenAI(base_url=url, api_key=KEY) as client:
        async for chunk in await client.chat.completions.create(**ASK, stream=True):
            read(chunk, seen)


async def whole_async(url: str, seen: Seen) -> None:
    async with AsyncOpenAI(base_url=url, api_key=KEY) as client:
        read(await client.chat.completions.create(**ASK), seen)


async def leave_async(url: str, seen: Seen) -> None:
    chunks = await AsyncOpenAI(base_url=url, api_key=KEY).chat.completions.create(**ASK, stream=True)
    async for chunk in chunks:
        read(chunk, seen)
        if seen.thinking:
            break
    await chunks.close()
    seen.left_by = "`await stream.close()`"


def stream_helper(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client, client.chat.completions.stream(**ASK) as events:
        for event in events:
            if event.type == "chunk":
                read(event.chunk, seen)
        # What the helper is for, and where it raises: the events themselves end normally.
        seen.got(events.get_final_completion())


def whole_helper(url: str, seen: Seen) -> None:
    """The helper's sibling for whole replies, which treats a content filter in the same way."""
    with OpenAI(base_url=url, api_key=KEY) as client:
        read(client.chat.completions.parse(**ASK), seen)


def leave_helper(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY).chat.completions.stream(**ASK) as events:
        for event in events:
            if event.type == "chunk":
                read(event.chunk, seen)
            if seen.thinking:
                break
    seen.left_by = "the end of `with`"


CASES = {
    "sync": (stream, whole, leave),
    "async": (stream_async, whole_async, leave_async),
    "helper": (stream_helper, whole_helper, leave_helper),
}
serve("openai", *CASES[sys.argv[1]])
