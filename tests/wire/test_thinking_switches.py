"""Which requests turn thinking off, and by which of their switches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire import chat_request, messages_request, responses_request
from guardtrace_proxy.wire.chat_fields import REASONING_KEYS, SWITCHES, TEMPLATE_KWARGS, THINKING_KEYS
from guardtrace_proxy.wire.thinking_switches import ALONE, INSIDE, turned_off_by

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("request_fields", "path"),
    [
        ({"enable_thinking": False}, "enable_thinking"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"reasoning_effort": "None"}, "reasoning_effort"),
        ({"thinking_budget": 0}, "thinking_budget"),
        ({"thinking_token_budget": 0}, "thinking_token_budget"),
        ({"thinking": {"type": "disabled"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"reasoning": {"enabled": False}}, "reasoning.enabled"),
        ({"reasoning": {"effort": "none"}}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": 0}}, "reasoning.max_tokens"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": 0}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": "false"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": None}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"thinking": ""}}, "chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"reasoning_effort": "none"}}, "chat_template_kwargs.reasoning_effort"),
        ({"chat_template_kwargs": {"thinking_budget": 0}}, "chat_template_kwargs.thinking_budget"),
        ({}, None),
        ({"enable_thinking": None, "reasoning_effort": None, "thinking": {"type": None}}, None),
        ({"enable_thinking": True, "reasoning_effort": "low", "thinking_budget": 512}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 512, "clear_thinking": False}}, None),
        ({"reasoning": {"effort": "minimal", "exclude": False, "summary": "auto"}}, None),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking": "on"}}, None),
        ({"thinking": None, "reasoning": [], "chat_template_kwargs": {}}, None),
        ({"chat_template_kwargs": {"thinking_budget": None, "reasoning_effort": None}}, None),
    ],
)
def test_a_switch_that_turns_thinking_off_is_named(request_fields: dict[str, Any], path: str | None) -> None:
    assert turned_off_by(request_fields) == path


def test_every_switch_that_passes_is_looked_at() -> None:
    assert set(ALONE) == SWITCHES - {"verbosity"}
    assert set(INSIDE["chat_template_kwargs"]) == TEMPLATE_KWARGS
    assert set(INSIDE["thinking"]) == THINKING_KEYS - {"clear_thinking", "keep"}
    assert set(INSIDE["reasoning"]) == REASONING_KEYS - {"exclude", "summary"}


def test_the_readers_of_requests_say_so() -> None:
    def body(**fields: Any) -> bytes:
        return json.dumps({"model": "m", **fields}).encode()

    chat = chat_request.read_request(body(messages=USER, enable_thinking=False))
    message = messages_request.read_request(body(messages=USER, max_tokens=9, thinking={"type": "disabled"}))
    response = responses_request.read_request(body(input="hi", reasoning={"effort": "none"}))
    paths = [request.turned_off_by for request in (chat, message, response)]
    assert paths == ["enable_thinking", "thinking.type", "reasoning.effort"]
    assert chat_request.read_request(body(messages=USER)).turned_off_by is None
