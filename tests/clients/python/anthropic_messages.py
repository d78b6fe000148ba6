"""anthropic-python: ``create`` (sync or async), or the helper ``stream()``, as the argument says."""

from __future__ import annotations

import sys
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from lines import KEY, MODEL, PROMPT, Seen, serve

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 900, "messages": [{"role": "user", "content": PROMPT}]}


def at(url: str) -> dict[str, Any]:
    """It adds ``/v1`` itself."""
    return {"base_url": url.removesuffix("/v1"), "api_key": KEY, "max_retries": 0}


def read(event: Any, seen: Seen) -> None:
    seen.got(event)
    if event.type == "content_block_delta" and event.delta.type == "thinking_delta":
        seen.thinking += event.delta.thinking
    elif event.type == "content_block_delta" and event.delta.type == "text_delta":
        seen.text += event.delta.text
    elif event.type == "message_delta":
        seen.finish = event.delta.stop_reason


def read_whole(message: Any, seen: Seen) -> None:
    seen.got(message)
    seen.thinking = "".join(block.thinking for block in message.content if block.type == "thinking")
    seen.text = "".join(block.text for block in message.content if block.type == "text")
    seen.finish = message.stop_reason


def stream(url: str, seen: Seen) -> None:
    with Anthropic(**at(url)) as client:
        for event in client.messages.create(**ASK, stream=True):
            read(event, seen)


def whole(url: str, seen: Seen) -> None:
    with Anthropic(**at(url)) as client:
        read_whole(client.messages.create(**ASK), seen)


def leave(url: str, seen: Seen) -> None:
    events = Anthropic(**at(url)).messages.create(**ASK, stream=True)
    for event in events:
        read(event, seen)
        if seen.thinking:
            break
    events.close()
    seen.left_by = "`stream.close()`"


async def stream_async(url: str, seen: Seen) -> None:
    async with AsyncAnthropic(**at(url)) as client:
        async for event in await client.messages.create(**ASK, stream=True):
            read(event, seen)


async def whole_async(url: str, seen: Seen) -> None:
    async with AsyncAnthropic(**at(url)) as client:
        read_whole(await client.messages.create(**ASK), seen)


async def leave_async(url: str, seen: Seen) -> None:
    events = await AsyncAnthropic(**at(url)).messages.create(**ASK, stream=True)
    async for event in events:
        read(event, seen)
        if seen.thinking:
            break
    await events.close()
    seen.left_by = "`await stream.close()`"


def stream_helper(url: str, seen: Seen) -> None:
    with Anthropic(**at(url)) as client, client.messages.stream(**ASK) as events:
        for event in events:
            read(event, seen)
        added_up = Seen()
        read_whole(events.get_final_message(), added_up)
        if (added_up.thinking, added_up.text, added_up.finish) != (seen.thinking, seen.text, seen.finish):
            raise ValueError("the final message isn't what its events said")


def leave_helper(url: str, seen: Seen) -> None:
    with Anthropic(**at(url)).messages.stream(**ASK) as events:
        for event in events:
            read(event, seen)
            if seen.thinking:
                break
    seen.left_by = "the end of `with`"


CASES = {
    "sync": (stream, whole, leave),
    "async": (stream_async, whole_async, leave_async),
    "helper": (stream_helper, whole, leave_helper),
}
serve("anthropic", *CASES[sys.argv[1]])
