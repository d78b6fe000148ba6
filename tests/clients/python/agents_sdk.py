"""OpenAI's Agents SDK over its model for responses or for chat completions: ``run_streamed`` and ``run``."""

from __future__ import annotations

import sys
from typing import Any

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, set_tracing_disabled
from lines import KEY, MODEL, PROMPT, Seen, serve
from openai import AsyncOpenAI

set_tracing_disabled(True)
THINKING = ("response.reasoning_text.delta", "response.reasoning_summary_text.delta")
MODELS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}


def agent(url: str) -> Agent:
    client = AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
    return Agent(name="helper", model=MODELS[sys.argv[1]](MODEL, client))


def read(event: Any, seen: Seen) -> None:
    seen.got(event)
    if event.type != "raw_response_event":
        return
    data = event.data
    if data.type in THINKING:
        seen.thinking += data.delta
    elif data.type == "response.output_text.delta":
        seen.text += data.delta
    elif data.type in ("response.completed", "response.incomplete"):
        details = data.response.incomplete_details
        seen.finish = (details and details.reason) or data.response.status


async def stream(url: str, seen: Seen) -> None:
    async for event in Runner.run_streamed(agent(url), PROMPT).stream_events():
        read(event, seen)


async def whole(url: str, seen: Seen) -> None:
    result = await Runner.run(agent(url), PROMPT)
    seen.got(result)
    seen.text = result.final_output
    for item in result.new_items:
        if item.type == "reasoning_item":
            seen.thinking += "".join(part.text for part in item.raw_item.content or item.raw_item.summary)


async def leave(url: str, seen: Seen) -> None:
    result = Runner.run_streamed(agent(url), PROMPT)
    async for event in result.stream_events():
        read(event, seen)
        if seen.thinking:
            break
    result.cancel()
    seen.left_by = "`result.cancel()`"


serve("openai-agents", stream, whole, leave)
