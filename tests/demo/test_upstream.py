"""The replaying upstream: the official client reads a trace back as it was written."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.demo.traces import tokens_in
from guardtrace_proxy.demo.upstream import ReplayUpstream
from tests.demo.scripted import a_trace

PLAIN = a_trace("Zwei  und\nzwei.\n\n", " Vier. 👍", name="plain")
RAW = a_trace("Hm.", "Four.", name="raw", raw="<think>\nHm.\n</think>\n\nFour.")
ASKED = {"messages": [{"role": "user", "content": "How?"}]}


@pytest.fixture(scope="module")
def url():
    with served(ReplayUpstream([PLAIN, RAW], 0)) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.mark.parametrize("trace", [PLAIN, RAW], ids=lambda trace: trace.name)
def test_a_stream_is_the_trace_again(client, trace):
    chunks = list(client.chat.completions.create(model=trace.name, stream=True, **ASKED))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    reasoning = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    content = "".join(delta.content or "" for delta in deltas)
    assert (reasoning, content) == (("", trace.raw) if trace.raw else (trace.thinking, trace.answer))
    assert deltas[0].role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]


@pytest.mark.parametrize("trace", [PLAIN, RAW], ids=lambda trace: trace.name)
def test_a_whole_reply_is_the_trace_again(client, trace):
    reply = client.chat.completions.create(model=trace.name, **ASKED)
    message = reply.choices[0].message
    assert message.content == (trace.raw or trace.answer)
    assert getattr(message, "reasoning", None) == (None if trace.raw else trace.thinking)
    assert reply.choices[0].finish_reason == "stop"


def test_models_are_the_traces_and_others_are_refused(client):
    assert [model.id for model in client.models.list()] == ["plain", "raw"]
    for streamed in (True, False):
        with pytest.raises(openai.NotFoundError, match="No such trace"):
            client.chat.completions.create(model="other", stream=streamed, **ASKED)


@pytest.mark.parametrize("body", [b"", b"{nope", b"[]", b'{"model": ["plain"]}', b'{"model": null}'])
def test_bad_requests_are_refused(url, body):
    reply = httpx.post(url + "/v1/chat/completions", content=body, trust_env=False)
    assert reply.status_code in (400, 404)
    assert "message" in reply.json()["error"]


def test_the_pace_is_kept():
    trace = a_trace("one two three four five six seven eight nine ten", "")
    with served(ReplayUpstream([trace], 50)) as url, openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
        began = time.monotonic()
        list(client.chat.completions.create(model="t", stream=True, **ASKED))
        assert time.monotonic() - began >= tokens_in(trace.thinking) / 50


def test_a_client_that_leaves_is_noticed():
    upstream = ReplayUpstream([a_trace("word " * 500)], 20)
    with served(upstream) as url, openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
        with client.chat.completions.create(model="t", stream=True, **ASKED) as stream:
            next(stream)
        deadline = time.monotonic() + 10
        while not upstream.connections_closed and time.monotonic() < deadline:
            time.sleep(0.02)
        assert upstream.connections_closed == 1


def test_a_client_that_stays_is_not_counted():
    upstream = ReplayUpstream([a_trace()], 0)
    with served(upstream) as url, openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
        for _ in range(3):
            list(client.chat.completions.create(model="t", stream=True, **ASKED))
    assert upstream.connections_closed == 0
