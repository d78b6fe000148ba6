"""The LiteLLM SDK: ``completion``, or ``acompletion``, as the argument says."""

from __future__ import annotations

import sys
from typing import Any

import litellm
from lines import KEY, MODEL, PROMPT, Seen, serve

litellm.suppress_debug_info = True
ASK: dict[str, Any] = {"model": f"openai/{MODEL}", "messages": [{"role": "user", "content": PROMPT}], "api_key": KEY}


def read(chunk: Any, seen: Seen) -> None:
    """A chunk of a stream, or a whole reply: its message has the same fields."""
    seen.got(chunk)
    for choice in chunk.choices:
        part = getattr(choice, "delta", None) or choice.message
        seen.thinking += getattr(part, "reasoning_content", None) or ""
        seen.text += part.content or ""
        seen.finish = choice.finish_reason or seen.finish


def stream(url: str, seen: Seen) -> None:
    for chunk in litellm.completion(**ASK, base_url=url, stream=True):
        read(chunk, seen)


def whole(url: str, seen: Seen) -> None:
    read(litellm.completion(**ASK, base_url=url), seen)


def leave(url: str, seen: Seen) -> None:
    chunks = litellm.completion(**ASK, base_url=url, stream=True)
    for chunk in chunks:
        read(chunk, seen)
        if seen.thinking:
            break
    # The wrapper has no close() of its own, and a mere `break` leaves the connection to the garbage collector.
    chunks.completion_stream.close()
    seen.left_by = "`stream.completion_stream.close()`"


async def stream_async(url: str, seen: Seen) -> None:
    async for chunk in await litellm.acompletion(**ASK, base_url=url, stream=True):
        read(chunk, seen)


async def whole_async(url: str, seen: Seen) -> None:
    read(await litellm.acompletion(**ASK, base_url=url), seen)


async def leave_async(url: str, seen: Seen) -> None:
    chunks = await litellm.acompletion(**ASK, base_url=url, stream=True)
    async for chunk in chunks:
        read(chunk, seen)
        if seen.thinking:
            break
    await chunks.aclose()
    seen.left_by = "`await stream.aclose()`"


CASES = {"sync": (stream, whole, leave), "async": (stream_async, whole_async, leave_async)}
serve("litellm", *CASES[sys.argv[1]])
