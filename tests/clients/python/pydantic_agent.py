"""Pydantic AI's ``Agent`` over its model for chat, responses or messages: ``run_stream_events`` and ``run``."""

from __future__ import annotations

import sys
from typing import Any

from anthropic import AsyncAnthropic
from lines import KEY, MODEL, PROMPT, Seen, serve
from pydantic_ai import Agent
from pydantic_ai.messages import (
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.run import AgentRunResultEvent


def agent(url: str) -> Agent:
    if sys.argv[1] == "messages":
        client = AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=KEY, max_retries=0)
        return Agent(AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client)))
    model = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[sys.argv[1]]
    return Agent(model(MODEL, provider=OpenAIProvider(base_url=url, api_key=KEY)))


def read(event: Any, seen: Seen) -> None:
    seen.got(event)
    match event:
        case (
            PartStartEvent(part=ThinkingPart(content=text))
            | PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text))
        ):
            seen.thinking += text or ""
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            seen.text += text
        case AgentRunResultEvent(result=result):
            seen.finish = result.response.finish_reason


async def stream(url: str, seen: Seen) -> None:
    async with agent(url).run_stream_events(PROMPT) as events:
        async for event in events:
            read(event, seen)


async def whole(url: str, seen: Seen) -> None:
    result = await agent(url).run(PROMPT)
    seen.got(result)
    seen.text = result.output
    seen.thinking = result.response.thinking or ""
    seen.finish = result.response.finish_reason


async def leave(url: str, seen: Seen) -> None:
    async with agent(url).run_stream_events(PROMPT) as events:
        async for event in events:
            read(event, seen)
            if seen.thinking or seen.text:
                break
    seen.left_by = "the end of `async with`"


serve("pydantic-ai-slim", stream, whole, leave)
