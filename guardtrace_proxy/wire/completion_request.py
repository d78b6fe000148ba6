"""The request of a completion (``POST /v1/completions``): prompts as text, each of them a query of its own.

What becomes of each field stands in docs/completions.md. Sources: OpenAI's API reference, the protocols of vLLM 0.33
and SGLang, llama.cpp's server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guardtrace_proxy.wire import chat_fields
from guardtrace_proxy.wire.request import (
    MAX_CHOICES,
    Allowed,
    Request,
    Turns,
    check_known,
    read_boolean,
    read_count,
    read_include_usage,
    read_model,
    read_object,
    refuse,
)

UNFOLLOWED = {
    **{field: why for field, why in chat_fields.UNFOLLOWED.items() if field != "prompt"},
    "suffix": "the auditor can't judge a text that is written to stand before another one",
    "input_extra": "the model would read something else than the auditor",
}
"""Request fields that are refused, and why."""
TEXTS = frozenset(chat_fields.TEXTS) - {"tools", "functions", "tool_choice", "function_call"}
FLAGS = frozenset({"add_special_tokens"})
SHAPES = frozenset({"model", "prompt", "n", "stream", "stream_options"})
ONLY_CHAT = frozenset({"max_completion_tokens", "moderation", "parallel_tool_calls", "prediction", "top_logprobs"})
PASSED = chat_fields.PASSED - ONLY_CHAT
KNOWN = frozenset(UNFOLLOWED) | TEXTS | FLAGS | SHAPES | PASSED
"""Every field that an operator needs no setting for."""


@dataclass(frozen=True, slots=True)
class CompletionRequest(Request):
    """``prompts`` are the model's, in order; ``turns`` stand before each of them."""

    include_usage: bool
    prompts: tuple[str, ...]

    @property
    def queries(self) -> tuple[Turns, ...]:
        """A query for each prompt."""
        return tuple((*self.turns, ("user", prompt)) for prompt in self.prompts)


def read_request(body: bytes, allowed: Allowed = Allowed()) -> CompletionRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text."""
    request = read_object(body)
    check_known(request, KNOWN, UNFOLLOWED, allowed.fields)
    chat_fields.check_flags(request)
    stream = read_boolean(request, "stream")
    n, prompts = read_count(request), _prompts(request)
    if n * len(prompts) > MAX_CHOICES:
        refuse("prompt", f"expected at most {MAX_CHOICES} choices, which are n for each prompt")
    return CompletionRequest(
        model=read_model(request),
        stream=stream,
        n=n,
        turns=tuple(chat_fields.texts_beside({key: request.get(key) for key in TEXTS})),
        images=(),
        prefill=None,
        include_usage=read_include_usage(request, stream),
        prompts=prompts,
    )


def body_for_upstream(body: bytes, request: CompletionRequest, urls: Sequence[str] | None = None) -> bytes:
    """The body as it came: nothing in it can keep thinking from the audit, and it has no images."""
    return body


def _prompts(request: Mapping[str, Any]) -> tuple[str, ...]:
    prompt = request.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        refuse("prompt", "expected a string, or a list of strings")
    for each in prompt:
        if isinstance(each, (int, float, list)):
            refuse("prompt", "token ids can't be audited, since only the model knows their text: send text")
        if not isinstance(each, str):
            refuse("prompt", "expected a string, or a list of strings")
    return tuple(prompt)
