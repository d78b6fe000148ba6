"""Replies of every shape that a request may ask for, over real sockets: choices, tools, logprobs, usage, schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.running import ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, chunk, completion, http

CUT = "This response was stopped by policy."
SAFE = "one two three four five six seven eight".split()


def frame(delta: dict[str, Any], finish: str | None = None, index: int = 0, usage: Any = None, **more: Any) -> bytes:
    """One event with what stands beside the delta: logprobs, token_ids."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "thinker"}
    return b"data: " + json.dumps({**head, "choices": [choice], "usage": usage}).encode() + b"\n\n"


def token(word: str, field: str = "reasoning", **more: Any) -> bytes:
    """A word with its logprobs and token ids, as vLLM sends them."""
    return frame({field: word + " "}, **marks(word), **more)


def marks(word: str) -> dict[str, Any]:
    tops = [{"token": word, "logprob": -0.1, "bytes": list(word.encode())}, {"token": "other", "logprob": -3.0}]
    found = {"token": word, "logprob": -0.1, "bytes": list(word.encode()), "top_logprobs": tops}
    return {"logprobs": {"content": [found]}, "token_ids": [666 if word in ("HARM", "HINT") else 7]}


def replay(*frames: bytes):
    return lambda _: [SSE_HEAD, *frames]


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]


def calls_of(text: str, index: int = 0) -> dict[int, str]:
    """The arguments of each tool call that arrived."""
    found: dict[int, str] = {}
    for event in chunks(text):
        for choice in event["choices"]:
            for call in choice["delta"].get("tool_calls") or [] if choice["index"] == index else []:
                found[call["index"]] = found.get(call["index"], "") + (call["function"].get("arguments") or "")
    return found


def call(position: int, name: str | None = None, arguments: str | None = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    labels = {"id": f"call_{position}", "type": "function"} if name else {}
    return {"content": None, "tool_calls": [{"index": position, **labels, "function": function}]}


def finishes(text: str) -> dict[int, str]:
    return {
        choice["index"]: choice["finish_reason"]
        for event in chunks(text)
        for choice in event["choices"]
        if choice["finish_reason"]
    }


def test_one_choice_is_cut_and_the_other_goes_on():
    frames = []
    for word in SAFE:
        frames += [token(word), token("HARM", index=1)]
    frames += [token("Done.", "content"), frame({}, "stop"), frame({}, "stop", index=1), DONE]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, n=2, logprobs=True)).text
    assert finishes(reply) == {0: "stop", 1: "content_filter"}
    assert "HARM" not in reply
    assert "666" not in reply
    for word in SAFE:
        assert token(word).decode() in reply
    assert CUT in reply


def test_parallel_tool_calls_pass_byte_for_byte():
    frames = [
        frame({"role": "assistant", "content": ""}),
        *[token(word) for word in SAFE],
        frame(call(0, "look", "")),
        *[frame(call(0, arguments=piece)) for piece in ('{"at": ', '"the map"}')],
        frame(call(1, "look", "")),
        *[frame(call(1, arguments=piece)) for piece in ('{"at": ', '"the sea"}')],
        frame({}, "tool_calls"),
        DONE,
    ]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, tools=[{"type": "function", "function": {"name": "look"}}]))
        asked = running.auditor.bodies[-1]["messages"][-1]["content"]
    assert reply.content == b"".join(frames)
    assert "Response: look" in asked
    assert '"the sea"}' in asked


@pytest.mark.parametrize("action", ["cut", "redact"])
def test_a_harmful_call_is_never_completed_and_a_finished_one_before_it_stays(action):
    frames = [
        frame({"role": "assistant", "content": ""}),
        frame(call(0, "look", '{"at": "the map and the sea around it"}')),
        frame(call(1, "run", "")),
        *[frame(call(1, arguments=piece)) for piece in ('{"command": "', "mix the ", "two of the ", "HARM ", 'now"}')],
        frame({}, "tool_calls"),
        DONE,
    ]
    policy = {"actions": {"harmful": action, "potentially_harmful": action}}
    with proxy(replay(*frames), policy=policy) as running:
        reply = running.raw(ask(stream=True)).text
    arrived = calls_of(reply)
    assert arrived[0] == '{"at": "the map and the sea around it"}'
    assert not arrived.get(1, "").endswith("}")
    assert "HARM" not in reply
    assert finishes(reply) == {0: "content_filter"}


def test_a_whole_reply_with_a_harmful_call_holds_none():
    tool_calls = [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": "map"}'}},
        {"id": "b", "type": "function", "function": {"name": "run", "arguments": '{"x": "HARM"}'}},
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": tool_calls}}
    body = {"id": "c", "object": "chat.completion", "choices": [{**choice, "finish_reason": "tool_calls"}]}
    with proxy(lambda _: [http(200, json.dumps(body))]) as running:
        reply = running.raw(ask()).json()["choices"][0]
    assert reply["finish_reason"] == "content_filter"
    assert "tool_calls" not in reply["message"]


def test_logprobs_and_token_ids_pass_with_their_tokens():
    frames = [*[token(word) for word in SAFE], token("Four.", "content"), frame({}, "stop"), DONE]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, logprobs=True, top_logprobs=2, return_token_ids=True))
    assert reply.content == b"".join(frames)


@pytest.mark.parametrize(("word", "action"), [("HARM", "cut"), ("HINT", "redact")])
def test_logprobs_and_token_ids_go_with_their_tokens(word, action):
    frames = [*[token(each) for each in [*SAFE, word]], token("Four.", "content"), frame({}, "stop"), DONE]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, logprobs=True, top_logprobs=2, return_token_ids=True)).text
    assert word not in reply
    assert "666" not in reply
    assert str(list(word.encode())) not in reply
    assert (CUT if action == "cut" else "[withheld by policy]") in reply


@pytest.mark.parametrize(("word", "action"), [("HARM", "cut"), ("HINT", "redact"), ("text", "none")])
@pytest.mark.parametrize("late", [True, False], ids=["said-late", "said-at-once"])
def test_tokens_in_whose_place_a_stream_says_something_else_are_audited(word, action, late):
    dropped, said = frame({}, **marks(word)), frame({"content": "fine "}, **({} if late else marks(word)))
    frames = [*[token(each, "content") for each in SAFE], *([dropped] if late else []), said]
    frames += [*[token(each, "content") for each in SAFE], frame({}, "stop"), DONE]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, logprobs=True, return_token_ids=True)).text
    if action == "none":
        assert reply == b"".join(frames).decode()
        return
    assert word not in reply
    assert "666" not in reply
    assert (CUT if action == "cut" else "[withheld by policy]") in reply


@pytest.mark.parametrize(("word", "shown"), [("HARM", CUT), ("HINT", "[withheld by policy]")])
def test_logprobs_of_a_whole_reply_go_with_an_altered_choice(word, shown):
    def choice(index: int, *words: str) -> dict[str, Any]:
        tokens = [marks(each)["logprobs"]["content"][0] for each in words]
        message = {"role": "assistant", "content": " ".join(words)}
        more = {"logprobs": {"content": tokens}, "token_ids": [666], "finish_reason": "stop"}
        return {"index": index, "message": message, **more}

    benign = choice(1, "It", "is", "four.")
    body = {"id": "c", "object": "chat.completion", "choices": [choice(0, "the", word, "is"), benign]}
    with proxy(lambda _: [http(200, json.dumps(body))]) as running:
        reply = running.raw(ask(n=2, logprobs=True))
    first, second = reply.json()["choices"]
    assert shown in first["message"]["content"]
    assert (first["logprobs"], first.get("token_ids")) == (None, None)
    assert word not in reply.text
    assert second == benign


@pytest.mark.parametrize("word", ["HARM", "HINT", "text"])
def test_tokens_that_a_whole_reply_leaves_out_are_audited(word):
    tokens = ["<tool_call>", '{"name": "look", "arguments": {"at": 1}}', "</tool_call>", f" Now the hidden {word}."]
    calls = [{"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    logprobs = {"content": [marks(each)["logprobs"]["content"][0] for each in tokens]}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "tool_calls"}
    body = json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]})
    with proxy(lambda _: [http(200, body)]) as running:
        reply = running.raw(ask(logprobs=True))
    if word == "text":
        assert reply.text == body
        return
    (found,) = reply.json()["choices"]
    # Arguments can't be redacted, so the choice is cut.
    assert (found["message"]["content"], found["logprobs"]) == (CUT, None)
    assert word not in reply.text
    assert "tool_calls" not in found["message"]


def test_text_with_ids_in_the_place_of_tokens_leaves_with_its_verdict():
    # vLLM's return_tokens_as_token_ids. If it waited for as much text as the ids are long, too much would be held.
    like = marks("token_id:9906")["logprobs"]
    frames = [frame({"content": word + " "}, logprobs=like) for word in SAFE * 100]
    frames += [frame({}, "stop"), DONE]
    with proxy(replay(*frames), config={"server": {"max_stream_bytes": 10_000}}) as running:
        reply = running.raw(ask(stream=True, logprobs=True, return_tokens_as_token_ids=True))
    assert reply.content == b"".join(frames)


@pytest.mark.parametrize("beside", ["logprobs", "token_ids"])
def test_logprobs_that_come_before_their_text_wait_for_its_verdict(beside):
    # vLLM's parsers keep text back (a tag, a tool call) while the tokens' logprobs and ids leave with an empty delta.
    early = frame({}, **{beside: marks("HARM")[beside]})
    frames = [*[token(word) for word in SAFE], early, frame({"content": "The HARM "}), frame({}, "stop"), DONE]
    with proxy(replay(*frames)) as running:
        reply = running.raw(ask(stream=True, logprobs=True, return_token_ids=True)).text
    assert CUT in reply
    assert "HARM" not in reply
    assert "666" not in reply


def test_running_usage_counts_after_a_cut():
    words = [*SAFE, "HARM", *SAFE]
    running_usage = [{"prompt_tokens": 5, "completion_tokens": n, "total_tokens": 5 + n} for n in range(1, 18)]
    frames = [token(word, usage=usage) for word, usage in zip(words, running_usage, strict=True)]
    options = {"include_usage": True, "continuous_usage_stats": True}
    with proxy(replay(*frames, frame({}, "stop"), DONE)) as running:
        reply = running.raw(ask(stream=True, stream_options=options)).text
    *_, cut, last = chunks(reply)
    assert cut["choices"][0]["finish_reason"] == "content_filter"
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 5
    assert 9 <= last["usage"]["completion_tokens"] <= 17
    assert "guardtrace" not in last


def test_structured_output_passes_byte_for_byte_and_a_cut_one_says_so():
    schema = {"type": "json_schema", "json_schema": {"name": "steps", "schema": {"type": "object"}}}
    pieces = ['{"steps": ["', "take a ", "pan and ", "some oil", '"]}']
    frames = [chunk({"role": "assistant", "content": ""}), *[chunk({"content": each}) for each in pieces]]
    with proxy(replay(*frames, chunk({}, "stop"), DONE)) as running:
        reply = running.raw(ask(stream=True, response_format=schema))
        assert reply.content == b"".join([*frames, chunk({}, "stop"), DONE])
        assert running.upstream.bodies[0]["response_format"] == schema
    harmful = [chunk({"content": each}) for each in [*pieces[:3], "the HARM ", *pieces[3:]]]
    with proxy(replay(*harmful, chunk({}, "stop"), DONE)) as running:
        reply = running.raw(ask(stream=True, response_format=schema)).text
    assert finishes(reply) == {0: "content_filter"}
    assert "HARM" not in reply


NAMED = ("id", "object", "model", "system_fingerprint", "service_tier", "created", "finish_reason")


@pytest.mark.parametrize("action", ["cut", "redact"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_a_name_that_is_text_leaves_in_no_frame_that_is_written_anew(path, streamed, action):
    """What replies are called stands in every frame of ours, too."""
    harm = "HARM " + "and so on " * 30
    says = {"text": "Four."} if path == "/completions" else {"delta" if streamed else "message": {"content": "Four."}}

    def script(asked: dict[str, Any]) -> list[bytes]:
        choice = {"index": 0, **says, "finish_reason": None if streamed else "stop"}
        event = {"id": "c", "object": "o", "created": 1, "model": "thinker", "choices": [choice]}
        (choice if asked["user"] == "finish_reason" else event)[asked["user"]] = harm
        data = json.dumps(event)
        return [SSE_HEAD, b"data: " + data.encode() + b"\n\n", DONE] if streamed else [http(200, data)]

    policy = {"actions": {"harmful": action, "potentially_harmful": action}}
    with proxy(script, policy=policy) as running:
        asked = {"prompt": "Add."} if path == "/completions" else {"messages": [{"role": "user", "content": "Add."}]}
        for name in NAMED:
            reply = running.raw({"model": "thinker", **asked, "stream": streamed, "user": name}, path)
            assert "HARM" in running.auditor.bodies[-1]["messages"][-1]["content"], name
            assert "HARM" not in reply.text, name


@pytest.mark.parametrize("streamed", [True, False])
def test_a_reply_of_nothing_but_tags_takes_no_audit_for_each(streamed):
    text = "<think>a</think>b" * 500
    upstream = [SSE_HEAD, chunk({"content": text}, "stop"), DONE] if streamed else [completion(None, text)]
    with proxy(lambda _: upstream) as running:
        reply = running.raw(ask(stream=streamed))
        audits = len(running.auditor.requests)
    assert text in reply.text
    assert audits < 100


@pytest.mark.parametrize("ids", [[7], None])
def test_few_token_ids_are_not_few_tokens_where_their_text_is_long(ids):
    """Ids may come before their text, and a text behind them with the last one alone."""
    policy = {name: {"mode": "lag", "max_lag": 8} for name in ("thinking", "answer")}
    frames = [frame({"content": "HARM and more of it " * 10}, token_ids=ids), frame({}, "stop"), DONE]
    with proxy(replay(*frames), policy=policy) as running:
        reply = running.raw(ask(stream=True)).text
    assert "HARM" not in reply
    assert finishes(reply) == {0: "content_filter"}


def test_tokens_whose_text_never_comes_are_counted_where_they_run_ahead_of_their_verdict():
    policy = {name: {"mode": "lag", "max_lag": 8} for name in ("thinking", "answer")}
    tokens = [{"token": f"{word} ", "logprob": -0.1} for word in [*SAFE, "HARM"] * 8]
    frames = [frame({}, logprobs={"content": tokens}), DONE]
    with proxy(replay(*frames), policy=policy) as running:
        reply = running.raw(ask(stream=True, logprobs=True)).text
    assert "HARM" not in reply


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("opened", ["by the request", "by the model"])
def test_an_answer_inside_a_tag_that_never_closes_is_guarded_as_one(opened, streamed):
    """Whoever may write the beginning of the reply could open a tag, and have all of it taken for thinking."""
    text = "one two HARM" if opened == "by the request" else "<think>one two HARM"
    messages = [{"role": "user", "content": "Please help."}, {"role": "assistant", "content": "<think>"}]
    upstream = [SSE_HEAD, chunk({"content": text}, "stop"), DONE] if streamed else [completion(None, text)]
    policy = {"thinking": {"actions": {"potentially_harmful": "flag", "harmful": "flag"}}}
    asked = {"messages": messages} if opened == "by the request" else {}
    with proxy(lambda _: upstream, policy=policy) as running:
        reply = running.raw(ask(stream=streamed, **asked)).text
    assert "HARM" not in reply
    assert "content_filter" in reply
