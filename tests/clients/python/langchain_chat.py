"""LangChain's ``ChatOpenAI``: ``stream`` and ``invoke``, or their asynchronous twins, as the argument says."""

from __future__ import annotations

import sys
from typing import Any

from langchain_openai import ChatOpenAI
from lines import KEY, MODEL, PROMPT, Seen, serve


def model(url: str) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=url, api_key=KEY)


def read(message: Any, seen: Seen) -> None:
    seen.got(message)
    # Every kind of content block is looked at: reasoning would be one, if the model class read it.
    for block in message.content_blocks:
        seen.thinking += block.get("reasoning") or ""
        seen.text += block.get("text") or ""
    seen.finish = message.response_metadata.get("finish_reason") or seen.finish


def stream(url: str, seen: Seen) -> None:
    for message in model(url).stream(PROMPT):
        read(message, seen)


def whole(url: str, seen: Seen) -> None:
    read(model(url).invoke(PROMPT), seen)


def leave(url: str, seen: Seen) -> None:
    messages = model(url).stream(PROMPT)
    for message in messages:
        read(message, seen)
        if seen.text:
            break
    messages.close()
    seen.left_by = "`generator.close()`"


async def stream_async(url: str, seen: Seen) -> None:
    async for message in model(url).astream(PROMPT):
        read(message, seen)


async def whole_async(url: str, seen: Seen) -> None:
    read(await model(url).ainvoke(PROMPT), seen)


async def leave_async(url: str, seen: Seen) -> None:
    messages = model(url).astream(PROMPT)
    async for message in messages:
        read(message, seen)
        if seen.text:
            break
    await messages.aclose()
    seen.left_by = "`await generator.aclose()`"


CASES = {"sync": (stream, whole, leave), "async": (stream_async, whole_async, leave_async)}
serve("langchain-openai", *CASES[sys.argv[1]])
