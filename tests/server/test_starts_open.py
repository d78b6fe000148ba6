"""Upstreams whose template opens the thinking (``thinking.starts_open``), and requests that would turn it off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.server.dialects import CASES
from tests.server.running import Running, ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, Script, chunk, model_server
from tests.server.test_completions import stream as completion_stream

STRIP = {"reasoning_field": "strip"}
USER = {"role": "user", "content": "Please help."}
CLOSE = "[BEGIN FINAL RESPONSE]"
CUSTOM = {"style": "custom", "close": CLOSE}


@contextmanager
def opened(upstream: Script, policy: dict[str, Any] | None = None, **thinking: Any) -> Iterator[Running]:
    """A proxy before an upstream that starts open."""
    with model_server(upstream) as server:
        default = {"base_url": server.url, "thinking": {"starts_open": True, **thinking}}
        with proxy(lambda _: [], policy=policy, config={"upstreams": {"default": default}}) as running:
            yield replace(running, upstream=server)


def saying(*words: str) -> Script:
    frames = [chunk({"content": word}) for word in words]
    return lambda _: [SSE_HEAD, *frames, chunk({}, "stop"), DONE]


def content_of(running: Running, **more: Any) -> str:
    chunks = running.client.chat.completions.create(**ask(stream=True, **more))
    return "".join(choice.delta.content or "" for each in chunks for choice in each.choices)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs.thinking"),
        ({"thinking": {"type": "disabled"}}, "thinking.type"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
    ],
)
@pytest.mark.parametrize(
    "policy", [STRIP, {"thinking": {"mode": "withhold"}}, {"reasoning_field": "reasoning"}], ids=str
)
def test_thinking_that_must_not_stand_with_the_answer_cant_be_turned_off(
    policy: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    with opened(saying("Four. ", "That is all."), policy) as running:
        reply = running.raw(ask(stream=True, **fields))
        error = reply.json()["error"]
        assert (reply.status_code, error["type"], error["param"], error["code"]) == (
            400,
            "invalid_request_error",
            param,
            "invalid_value",
        )
        assert error["message"].startswith(f"{param}: thinking can't be turned off here")
        assert running.upstream.requests == []


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "completions"], ids=lambda case: case.name)
def test_every_api_refuses_in_its_own_words(case: Any) -> None:
    switch = {"chat": {"reasoning_effort": "none"}, "responses": {"reasoning": {"effort": "none"}}}
    more = switch.get(case.name, {"thinking": {"type": "disabled"}})
    with opened(saying(), STRIP) as running:
        reply = running.raw(case.ask(**more), case.path, headers=case.headers)
        assert reply.status_code == 400
        assert "thinking can't be turned off here" in reply.json()["error"]["message"]
        assert running.upstream.requests == []


def test_a_client_that_asks_not_to_see_the_thinking_cant_turn_it_off_either() -> None:
    with opened(saying("Four.")) as running:
        reply = running.raw(ask(stream=True, include_reasoning=False, enable_thinking=False))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "enable_thinking")


def test_thinking_that_leaves_where_it_came_may_be_turned_off() -> None:
    with opened(saying("Four. ", "That is all.")) as running:
        assert content_of(running, extra_body={"enable_thinking": False}) == "Four. That is all."
        assert "Four." in str(running.auditor.bodies[-1])


def test_an_upstream_that_thinks_all_the_same_is_guarded_as_ever() -> None:
    with opened(saying("The ", "HARM ", "is </think>", "Four.")) as running:
        shown = content_of(running, extra_body={"enable_thinking": False})
        assert "HARM" not in shown
        assert "stopped by policy" in shown


def test_without_such_a_switch_the_thinking_is_stripped() -> None:
    with opened(saying("Two and two. ", "</think>", "Four."), STRIP) as running:
        assert content_of(running, extra_body={"enable_thinking": True}) == "Four."


def test_a_continued_answer_has_no_block_to_turn_off() -> None:
    with opened(saying("four."), STRIP) as running:
        messages = [USER, {"role": "assistant", "content": "It is "}]
        more = {"enable_thinking": False, "continue_final_message": True, "add_generation_prompt": False}
        assert content_of(running, messages=messages, extra_body=more) == "four."


@pytest.mark.parametrize("style", [{}, CUSTOM], ids=["known tags", "a closing tag alone"])
@pytest.mark.parametrize("policy", [STRIP, {"thinking": {"mode": "withhold"}}], ids=str)
def test_no_template_stands_before_the_prompt_of_a_completion(policy: dict[str, Any], style: dict[str, Any]) -> None:
    frames = [*completion_stream("Four it is."), DONE]
    with opened(lambda _: [SSE_HEAD, *frames], policy, **style) as running:
        asked = {"model": "thinker", "prompt": "Say four."}
        events = running.client.completions.create(**asked, stream=True)
        assert "".join(choice.text for event in events for choice in event.choices) == "Four it is. "


def test_a_continued_answer_is_none_where_only_a_closing_tag_comes() -> None:
    with opened(saying("four."), STRIP, **CUSTOM) as running:
        messages = [USER, {"role": "assistant", "content": "It is "}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        assert content_of(running, messages=messages, extra_body=more) == "four."


def test_a_new_message_is_thinking_up_to_a_closing_tag_of_the_operators() -> None:
    with opened(saying("Two and two. ", CLOSE, "Four."), STRIP, **CUSTOM) as running:
        assert content_of(running) == "Four."
