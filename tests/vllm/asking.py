"""The thinking model asked at each of the proxy's doors, by the official client."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import openai
from PIL import Image

if TYPE_CHECKING:
    from tests.vllm.checkpoints import Memory

MOST = 3500
"""Tokens that the thinking model may write; on a CPU it takes many seconds for them."""
THINK = ("<think>", "</think>")


def in_base64(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{in_base64(image)}"


@dataclass
class Told:
    thinking: str
    answer: str
    finish: str | None


def ask(model: openai.OpenAI, memory: Memory, on_thinking: Callable[[], None] = lambda: None, **more: Any) -> Told:
    """``on_thinking`` is called each time that some has come."""
    assert memory.image is not None
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(memory.image)}},
        {"type": "text", "text": memory.question},
    ]
    stream = model.chat.completions.create(
        model="thinker",
        messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        stream=True,
        temperature=0,
        max_tokens=MOST,
        extra_body=more,
    )
    told = Told("", "", None)
    for chunk in stream:
        for choice in chunk.choices:
            thought = getattr(choice.delta, "reasoning", None) or ""
            told.thinking += thought
            if thought.strip():
                on_thinking()
            told.answer += choice.delta.content or ""
            told.finish = choice.finish_reason or told.finish
    return told


def complete(model: openai.OpenAI, memory: Memory, **more: Any) -> Told:
    """Completions: the thinking stands between tags."""
    stream = model.completions.create(
        model="thinker", prompt=memory.question, stream=True, temperature=0, max_tokens=MOST, extra_body=more
    )
    text, finish = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.text
            finish = choice.finish_reason or finish
    thinking, closed, answer = text.partition(THINK[1])
    assert thinking.startswith(THINK[0])
    assert closed
    return Told(thinking.removeprefix(THINK[0]), answer, finish)


def respond(model: openai.OpenAI, memory: Memory, **more: Any) -> Told:
    """Responses. What the last event says is what the deltas said."""
    assert memory.image is not None
    parts = [
        {"type": "input_image", "image_url": data_url(memory.image), "detail": "auto"},
        {"type": "input_text", "text": memory.question},
    ]
    stream = model.responses.create(
        model="thinker",
        input=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
        stream=True,
        temperature=0,
        max_output_tokens=MOST,
        extra_body=more,
    )
    told = Told("", "", None)
    for event in stream:
        if event.type == "response.reasoning_text.delta":
            told.thinking += event.delta
        elif event.type == "response.output_text.delta":
            told.answer += event.delta
        elif event.type in ("response.completed", "response.incomplete"):
            response = event.response
            assert response.output_text == told.answer
            details = response.incomplete_details
            told.finish = response.status if details is None else details.reason
    return told


def converse(model: openai.OpenAI, memory: Memory, **more: Any) -> Told:
    """Messages, by Anthropic's client at the same place. What it adds up is what the deltas said."""
    assert memory.image is not None
    image = {"type": "base64", "media_type": "image/png", "data": in_base64(memory.image)}
    blocks = [{"type": "image", "source": image}, {"type": "text", "text": memory.question}]
    url = str(model.base_url).removesuffix("/v1/")
    told = Told("", "", None)
    with (
        anthropic.Anthropic(base_url=url, api_key=model.api_key, max_retries=0, timeout=120) as client,
        client.messages.stream(
            model="thinker",
            messages=[{"role": "user", "content": blocks}],  # type: ignore[typeddict-item]
            max_tokens=MOST,
            extra_body={"temperature": 0, **more},
        ) as stream,
    ):
        for event in stream:
            if event.type == "thinking":
                told.thinking += event.thinking
            elif event.type == "text":
                told.answer += event.text
        message = stream.get_final_message()
    assert "".join(block.thinking for block in message.content if block.type == "thinking") == told.thinking
    assert "".join(block.text for block in message.content if block.type == "text") == told.answer
    told.finish = message.stop_reason
    return told


Door = Callable[..., Told]
