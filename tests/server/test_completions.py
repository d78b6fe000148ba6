"""Completions over real sockets: the same gate, the dialect's own frames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx
import openai
import pytest

from tests.server.running import Running, proxy
from tests.server.scripted import DONE, SSE_HEAD, Script, http, judging

HEAD = {"id": "cmpl-7", "object": "text_completion", "created": 1_700_000_000, "model": "thinker"}
MESSAGE = "This response was stopped by policy."
ASK: dict[str, Any] = {"model": "thinker", "prompt": "Please help."}


def chunk(text: str, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    return b"data: " + json.dumps({**HEAD, "choices": [choice], **more}).encode() + b"\n\n"


def stream(text: str, index: int = 0) -> list[bytes]:
    return [chunk(word + " ", index) for word in text.split()] + [chunk("", index, "stop")]


def whole(*texts: str) -> bytes:
    choices = [{"index": i, "text": text, "logprobs": None, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    return http(200, json.dumps({**HEAD, "choices": choices, "usage": usage}))


def replay(*data: bytes) -> Script:
    return lambda _: data


def post(running: Running, **more: Any) -> httpx.Response:
    return running.raw({**ASK, **more}, "/completions")


def texts(client: openai.OpenAI, **more: Any) -> list[tuple[str, str | None]]:
    """What openai-python adds up of each choice, and how it finished."""
    found: dict[int, list[Any]] = {}
    for event in client.completions.create(**{**ASK, **more}, stream=True):
        for choice in event.choices:
            each = found.setdefault(choice.index, ["", None])
            each[0] += choice.text
            each[1] = choice.finish_reason or each[1]
    return [(text, finish) for _, (text, finish) in sorted(found.items())]


def test_a_benign_stream_is_byte_identical_and_goes_to_its_own_route() -> None:
    frames = [*stream("<think>Well then.</think> Four it is."), DONE]
    with proxy(replay(SSE_HEAD, *frames)) as running:
        assert post(running, stream=True).content == b"".join(frames)
        assert [path for path, _, _ in running.upstream.requests] == ["/v1/completions"]
        assert running.upstream.bodies == [{**ASK, "stream": True}]
        assert texts(running.client) == [("<think>Well then.</think> Four it is. ", "stop")]


def test_thinking_between_tags_is_audited_as_thinking() -> None:
    asked: list[str] = []

    def level(text: str) -> str:
        asked.append(text)
        return "0"

    with proxy(replay(whole("<think>Hmm.</think>Four.")), judging(level)) as running:
        assert running.client.completions.create(**ASK).choices[0].text == "<think>Hmm.</think>Four."
    assert "Current Task Thinking: Hmm.\nCurrent Task Cleaned Response: Four." in asked[-1]
    assert "<think>" not in asked[-1]


def test_a_cut_closes_the_tag_and_ends_with_the_usage() -> None:
    frames = stream("<think> one two three four five six HARM and so on and on")
    with proxy(replay(SSE_HEAD, *frames)) as running:
        (found,) = texts(running.client)
        assert found[0].startswith("<think> one two")
        assert found[0].endswith("</think>\n\n" + MESSAGE)
        assert found[1] == "content_filter"
        data = post(running, stream=True, stream_options={"include_usage": True}).content
    assert b"HARM" not in data
    usage = json.loads(data.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert usage["usage"]["completion_tokens"] > 0
    assert usage["object"] == "text_completion"
    assert data.endswith(DONE)


def test_each_prompt_is_the_query_of_its_own_choices() -> None:
    """Only the auditor that sees the second prompt cuts, and only its choice ends."""

    def level(text: str) -> str:
        return "1" if "Question two" in text and "Current Task Thinking" in text and "fine" in text else "0"

    frames = [*stream("one is fine", 0), *stream("two is fine", 1), DONE]
    with proxy(replay(SSE_HEAD, *frames), judging(level)) as running:
        found = texts(running.client, prompt=["Question one", "Question two"])
    assert found[0] == ("one is fine ", "stop")
    assert found[1][1] == "content_filter"
    assert found[1][0].endswith(MESSAGE)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, MESSAGE),
        ({"cut_shape": "refusal"}, MESSAGE),
        ({"actions": {"harmful": "redact"}}, "<think>[withheld by policy]</think>Four."),
        ({"reasoning_field": "strip"}, MESSAGE),
        ({"thinking": {"mode": "withhold"}}, "Four."),
        ({"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}}, "<think>HARM</think>Four."),
        ({"reasoning_field": "reasoning", "thresholds": {"harmful": 1.0, "potentially_harmful": 1.0}}, MESSAGE),
    ],
)
def test_a_whole_reply_follows_the_policy(policy: dict[str, Any], expected: str) -> None:
    with proxy(replay(whole("<think>HARM</think>Four.")), policy=policy) as running:
        assert running.client.completions.create(**ASK).choices[0].text == expected


@pytest.mark.parametrize(
    ("hidden", "shown"), [(" some more", "Sure."), (" the HINT", "[withheld by policy]"), (" the HARM", MESSAGE)]
)
def test_tokens_that_a_whole_text_leaves_out_are_audited(hidden: str, shown: str) -> None:
    logprobs = {
        "text_offset": [0, 5],
        "token_logprobs": [-0.1, -0.1],
        "tokens": ["Sure.", hidden],
        "top_logprobs": None,
    }
    choice = {"index": 0, "text": "Sure.", "logprobs": logprobs, "finish_reason": "stop"}
    body = json.dumps({**HEAD, "choices": [choice]})
    with proxy(replay(http(200, body))) as running:
        found = post(running, logprobs=1)
    assert found.json()["choices"][0]["text"] == shown
    assert (hidden in found.text, found.text == body) == (shown == "Sure.", shown == "Sure.")


def test_a_named_reasoning_field_leaves_benign_thinking_where_it_is() -> None:
    with proxy(replay(whole("<think>Hm.</think>Four.")), policy={"reasoning_field": "reasoning"}) as running:
        assert running.client.completions.create(**ASK).choices[0].text == "<think>Hm.</think>Four."


def test_a_cut_with_an_error_is_the_clients_own_exception() -> None:
    with proxy(replay(SSE_HEAD, *stream("HARM is here")), policy={"cut_shape": "error"}) as running:
        with pytest.raises(openai.APIError, match="stopped by policy"):
            texts(running.client)
    with proxy(replay(whole("HARM")), policy={"cut_shape": "error"}) as running:
        with pytest.raises(openai.BadRequestError) as caught:
            running.client.completions.create(**ASK)
        assert caught.value.code == "content_filter"


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    with proxy(replay(SSE_HEAD, *stream("well then")[:-1])) as running, pytest.raises(openai.APIError):
        texts(running.client)


@pytest.mark.parametrize(
    ("more", "param"),
    [({"echo": True}, "echo"), ({"suffix": "x"}, "suffix"), ({"prompt": [1, 2]}, "prompt"), ({"tools": []}, "tools")],
)
def test_refusals_name_the_field_in_openais_shape(more: dict[str, Any], param: str) -> None:
    with proxy(replay(whole("fine"))) as running:
        reply = post(running, **more)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert running.upstream.requests == []


def test_one_of_several_prompts_that_does_not_fit_is_refused_before_anything_is_sent() -> None:
    def upstream(_: Any) -> Iterable[bytes]:
        raise AssertionError("asked")

    with proxy(upstream, config={"auditor": {"max_context": 512}}) as running:
        reply = post(running, prompt=["short", "long " * 20_000])
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "does_not_fit_auditor")
