"""The thinking model asked at each of the proxy's doors, by the official client."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
from PIL import Image

if TYPE_CHECKING:
    from tests.vllm.checkpoints import Memory

MOST = 3500
"""Tokens that the thinking model may write; on a CPU it takes many seconds for them."""
THINK = ("<think>", "</think>")


def data_url(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


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


Door = Callable[..., Told]
