"""Requests of completions: prompts are queries, and what can't be followed is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire.completion_request import CompletionRequest, body_for_upstream, read_request
from guardtrace_proxy.wire.request import MAX_CHOICES, Allowed, RequestError


def read(prompt: Any = "Once", **fields: Any) -> CompletionRequest:
    return read_request(json.dumps({"model": "m", "prompt": prompt, **fields}).encode())


def test_a_prompt_is_the_query() -> None:
    request = read()
    assert request == CompletionRequest("m", False, 1, (), (), None, False, ("Once",))
    assert (request.queries, request.choices) == (((("user", "Once"),),), 1)


def test_each_of_several_prompts_has_its_choices() -> None:
    request = read(["Once", "Twice"], n=2, stream=True, stream_options={"include_usage": True})
    assert request.queries == ((("user", "Once"),), (("user", "Twice"),))
    assert (request.choices, request.stream, request.include_usage) == (4, True, True)


def test_schemas_stand_before_each_prompt() -> None:
    request = read(["a", "b"], guided_json={"const": "some text"}, response_format={"type": "text"})
    schema = ("guided_json", '{"const": "some text"}')
    assert request.queries == ((schema, ("user", "a")), (schema, ("user", "b")))


def test_the_body_passes_as_it_came() -> None:
    body = b'{"model":"m", "prompt":"a", "temperature": 1e0}'
    assert body_for_upstream(body, read_request(body)) is body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": "b"}}, "prompt"),
        ({"prompt": ["a", None]}, "prompt"),
        ({"prompt": ["a"] * (MAX_CHOICES + 1)}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"n": 0}, "n"),
        ({"model": ""}, "model"),
        ({"echo": True}, "echo"),
        ({"suffix": "the end"}, "suffix"),
        ({"prompt_embeds": "AA=="}, "prompt_embeds"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"add_special_tokens": "no"}, "add_special_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
    ],
)
def test_what_can_not_be_followed_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=param) as caught:
        read(**{"prompt": "Once", **fields})
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]], ["a", [1]], ["a", 1]])
def test_token_ids_are_refused_with_the_reason(prompt: Any) -> None:
    with pytest.raises(RequestError, match="token ids can't be audited"):
        read(prompt)


@pytest.mark.parametrize("fields", [{"echo": False}, {"suffix": ""}, {"suffix": None}])
def test_what_is_off_is_not_there(fields: dict[str, Any]) -> None:
    assert read(**fields) == read()


def test_an_operators_own_field_passes() -> None:
    read_request(b'{"model": "m", "prompt": "a", "unheard_of": 1}', Allowed(["unheard_of"]))
