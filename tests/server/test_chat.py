"""The stream contract (design §3), seen by the official client over real sockets."""

from __future__ import annotations

import base64
import io
import json
import time

import openai
import pytest
from PIL import Image

from tests.server.running import ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, completion, judging, model_server, stream
from tests.waiting import eventually

SAFE = "Two and two are easily added so we get four without any doubt at all."


def replay(frames):
    return lambda _: [SSE_HEAD, *frames]


def read(client: openai.OpenAI, **more):
    """(reasoning, content, finish reasons) of a streamed reply."""
    reasoning, content, finished = [], [], []
    for event in client.chat.completions.create(**ask(stream=True, **more)):
        for choice in event.choices:
            reasoning.append(getattr(choice.delta, "reasoning", None) or "")
            content.append(choice.delta.content or "")
            finished.append(choice.finish_reason)
    return "".join(reasoning), "".join(content), [reason for reason in finished if reason]


def test_a_benign_stream_arrives_byte_for_byte():
    frames = stream(SAFE, "It is four.")
    with proxy(replay(frames)) as running:
        reply = running.raw(ask(stream=True))
    assert reply.status_code == 200
    assert reply.content == b"".join(frames)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-guardtrace-policy"] == "test"


def test_the_upstream_gets_the_request_as_it_was_sent_and_never_the_clients_key():
    body = ask(stream=True, seed=7, logit_bias={"deep": [1, 2]})
    with proxy(replay(stream("Fine.", "Yes."))) as running:
        running.raw(body, headers={"authorization": "Bearer EMPTY", "x-request-id": "abc-1"})
        path, headers, seen = running.upstream.requests[0]
    assert path == "/v1/chat/completions"
    assert seen == body
    assert "authorization" not in headers
    assert headers["x-request-id"].startswith("abc-1-")


def test_the_upstreams_own_key_comes_from_the_environment():
    def upstream(url):
        return {"upstreams": {"default": {"base_url": url, "api_key_env": "UP"}}}

    with model_server(replay(stream("Fine.", "Yes."))) as server:
        with proxy(replay([]), config=upstream(server.url), environ={"UP": "s3cret"}) as running:
            assert running.raw(ask(stream=True), headers={"authorization": "Bearer none"}).status_code == 200
        assert server.requests[0][1]["authorization"] == "Bearer s3cret"


def test_harmful_reasoning_is_cut_and_never_arrives():
    thinking = SAFE + " Now the HARM is spelt out in small steps for everyone to read and follow."
    with proxy(replay(stream(thinking, "I can't help with that."))) as running:
        reasoning, content, finished = read(running.client)
    assert "HARM" not in reasoning
    assert SAFE.startswith(reasoning.strip()[:20])
    assert content == "This response was stopped by policy."
    assert finished == ["content_filter"]


def test_a_harmful_answer_is_cut():
    with proxy(replay(stream(SAFE, "Here is the HARM you asked for, in full."))) as running:
        reasoning, content, finished = read(running.client)
    assert reasoning.split() == SAFE.split()
    assert content == "This response was stopped by policy."
    assert finished == ["content_filter"]


def test_a_cut_closes_the_upstream():
    def endless(_):
        yield SSE_HEAD
        yield chunk({"role": "assistant", "content": ""})
        while True:
            yield chunk({"reasoning": "HARM "})
            time.sleep(0.005)

    with proxy(endless) as running:
        _, _, finished = read(running.client)
        assert finished == ["content_filter"]
        assert running.upstream.left.wait(5)


def test_a_client_that_leaves_closes_the_upstream():
    def endless(_):
        yield SSE_HEAD
        while True:
            yield chunk({"reasoning": "fine "})
            time.sleep(0.005)

    with proxy(endless) as running:
        events = running.client.chat.completions.create(**ask(stream=True))
        next(iter(events))
        events.close()
        assert running.upstream.left.wait(5)


def test_hints_are_redacted_and_the_rest_goes_on():
    thinking = "All is fine here now. A HINT is dropped. "
    with proxy(replay(stream(thinking, "Four.")), policy={"actions": {"potentially_harmful": "redact"}}) as running:
        reasoning, content, finished = read(running.client)
    assert "HINT" not in reasoning + content
    assert "[withheld by policy]" in reasoning
    assert finished == ["stop"]


def test_monitor_changes_nothing_and_holds_nothing():
    frames = stream("A HARM is spelt out in small steps here.", "HARM again.")
    policy = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}, "expose": {"object": False}}
    with proxy(replay(frames), policy=policy) as running:
        assert running.raw(ask(stream=True)).content == b"".join(frames)
        assert eventually(lambda: len(running.auditor.requests) > 1)


def test_nothing_leaves_before_its_verdict():
    def slow(request):
        time.sleep(0.3)
        yield from judging(by_word)(request)

    with proxy(replay(stream(SAFE, "Four.")), slow) as running:
        began = time.monotonic()
        for event in running.client.chat.completions.create(**ask(stream=True)):
            if getattr(event.choices[0].delta, "reasoning", None):
                break
        assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("refusal", {"refusal": "This response was stopped by policy."}),
        ("content_filter", {"content": "This response was stopped by policy."}),
    ],
)
def test_shapes_of_a_cut(shape, expected):
    with proxy(replay(stream("HARM at once and for all.", "No.")), policy={"cut_shape": shape}) as running:
        events = list(running.client.chat.completions.create(**ask(stream=True)))
    deltas = [event.choices[0].delta.model_dump(exclude_none=True) for event in events]
    assert any(expected.items() <= delta.items() for delta in deltas)
    assert events[-1].choices[0].finish_reason == "content_filter"
    assert {event.id for event in events} == {"chatcmpl-7"}


def test_a_cut_may_be_an_error_that_the_client_raises():
    with proxy(replay(stream("HARM at once.", "No.")), policy={"cut_shape": "error"}) as running:
        with pytest.raises(openai.APIError, match="stopped by policy"):
            read(running.client)


def test_usage_follows_a_cut_where_it_was_asked_for():
    with proxy(replay(stream("HARM at once and for all time.", "No."))) as running:
        options = {"include_usage": True}
        events = list(running.client.chat.completions.create(**ask(stream=True, stream_options=options)))
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens > 0
    assert events[-2].choices[0].finish_reason == "content_filter"


def test_inline_thinking_is_closed_before_the_message():
    words = ["<think>\n", *[f"{word} " for word in "All is fine up to here but HARM comes next.".split()]]
    frames = [chunk({"role": "assistant", "content": ""}), *[chunk({"content": word}) for word in words]]
    with proxy(replay([*frames, chunk({"content": "</think>No."}), chunk({}, "stop"), DONE])) as running:
        _, content, finished = read(running.client)
    assert "HARM" not in content
    assert content.count("<think>") == content.count("</think>") == 1
    assert content.endswith("</think>\n\nThis response was stopped by policy.")
    assert finished == ["content_filter"]


def test_choices_are_gated_one_by_one():
    frames = [chunk({"role": "assistant", "content": ""}, index=index) for index in (0, 1)]
    for word in "one two three four five six seven eight".split():
        frames.append(chunk({"reasoning": word + " "}, index=0))
        frames.append(chunk({"reasoning": "HARM "}, index=1))
    frames += [chunk({"content": "Done."}), chunk({}, "stop"), chunk({}, "stop", index=1), DONE]
    with proxy(replay(frames)) as running:
        texts, finished = {0: "", 1: ""}, {}
        for event in running.client.chat.completions.create(**ask(stream=True, n=2)):
            for choice in event.choices:
                texts[choice.index] += (getattr(choice.delta, "reasoning", None) or "") + (choice.delta.content or "")
                finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert texts == {0: "one two three four five six seven eight Done.", 1: "This response was stopped by policy."}
    assert finished == {0: "stop", 1: "content_filter"}


def test_a_whole_reply_passes_as_it_is():
    reply = completion(SAFE, "Four.", vendor={"x": 1})
    with proxy(lambda _: [reply]) as running:
        got = running.raw(ask())
    assert got.content == reply.partition(b"\r\n\r\n")[2]
    assert got.headers["x-guardtrace-action"] == "pass"


def test_a_whole_harmful_reply_is_cut():
    with proxy(lambda _: [completion("The HARM in steps.", "I can't.")]) as running:
        reply = running.client.chat.completions.create(**ask())
    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.choices[0].message.content == "This response was stopped by policy."
    assert "HARM" not in reply.model_dump_json()


def test_images_reach_the_auditor():
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "thinker", "stream": True, "messages": [{"role": "user", "content": parts}]}
    with proxy(replay(stream("A red picture.", "Red."))) as running:
        assert running.raw(body).status_code == 200
        seen = running.auditor.bodies[-1]["messages"][-1]["content"]
        assert running.upstream.bodies[0] == body
    assert any(part["type"] == "image_url" for part in seen)
    assert "What is this?" in json.dumps(seen)


def test_many_streams_at_once_stay_apart():
    from concurrent.futures import ThreadPoolExecutor

    def echo(request):
        name = request["messages"][0]["content"]
        return [SSE_HEAD, *stream(f"{name} thinks slowly about this.", f"{name} answers.")]

    def one(number: int) -> bool:
        name = f"HARM{number}" if number % 3 == 0 else f"nice{number}"
        body = {**ask(stream=True), "messages": [{"role": "user", "content": name}]}
        text = running.raw(body).text
        if number % 3 == 0:
            return "HARM" not in text and "content_filter" in text
        return text.encode() == b"".join(stream(f"{name} thinks slowly about this.", f"{name} answers."))

    with proxy(echo) as running, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(48)))


def test_the_auditor_is_told_which_tenant_asks():
    asked = []
    with proxy(lambda _: [SSE_HEAD, *stream("a b", "c")]) as running:
        auditor = running.app.service.auditor
        opened = auditor.open

        async def open_and_note(query):
            asked.append(query.tenant)
            return await opened(query)

        auditor.open = open_and_note
        assert running.raw(ask(stream=True)).status_code == 200
    assert asked == ["all"]
