"""What leaves after a cut or a redaction, read by the official client; and that nothing redacted is left in it."""

from __future__ import annotations

from itertools import count
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from guardtrace_proxy.wire.events import EventKind, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from tests.wire.replies import HEAD, chunk, dialect, sse

MESSAGE = "Stopped by policy."


def received(stream: bytes) -> list[ChatCompletionChunk]:
    """The chunks that the official client hands out when a server sends these bytes."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=stream))
    with openai.OpenAI(
        api_key="none", base_url="http://upstream", http_client=httpx.Client(transport=transport)
    ) as client:
        return list(client.chat.completions.create(model="m", messages=[], stream=True))


@pytest.mark.parametrize("shape", ["content_filter", "refusal"])
def test_the_client_shows_a_cut_as_a_filtered_reply(shape: Any) -> None:
    stream = dialect()
    (event,) = stream.feed(sse(chunk({"role": "assistant", "reasoning": "hm"})))
    cut = stream.cut(0, Cut(MESSAGE, shape, role=False, note={"action": "cut"}))
    chunks = received(event.raw + cut + stream.usage(None, 3, expose=True) + stream.done())
    said = [
        each.choices[0].delta.content if shape == "content_filter" else each.choices[0].delta.refusal
        for each in chunks[:3]
    ]
    assert said == [None, MESSAGE, None]
    assert [each.choices[0].finish_reason for each in chunks[:3]] == [None, None, "content_filter"]
    assert {(each.id, each.model, each.created) for each in chunks} == {(HEAD["id"], HEAD["model"], HEAD["created"])}
    assert chunks[2].model_extra == {"guardtrace": {"action": "cut"}}
    assert chunks[3].usage is not None
    assert (chunks[3].usage.completion_tokens, chunks[3].choices, len(chunks)) == (3, [], 4)


def test_the_client_raises_an_error_frame() -> None:
    stream = dialect()
    (event,) = stream.feed(sse(chunk({"content": "a"})))
    frames = stream.cut(0, Cut(MESSAGE, "error")) + stream.done()
    with pytest.raises(openai.APIError, match=MESSAGE) as caught:
        received(event.raw + frames)
    assert (caught.value.type, caught.value.code) == ("content_filter", "content_filter")


def test_the_client_raises_an_upstreams_own_error() -> None:
    (event,) = dialect().feed(sse({"error": {"message": "overloaded", "code": 503}}))
    assert event.kind is EventKind.ERROR
    with pytest.raises(openai.APIError, match="overloaded"):
        received(event.raw)


def test_the_client_reads_a_rewritten_chunk() -> None:
    stream = dialect()
    (event,) = stream.feed(sse(chunk({"role": "assistant", "reasoning": "bad", "content": "good"}, vendor="v")))
    (left,) = received(stream.rewrite(event, {0: Kept(["[withheld]", "good", ""])}) + stream.done())
    assert left.choices[0].delta.content == "good"
    assert left.choices[0].delta.model_extra == {"reasoning": "[withheld]"}
    assert left.model_extra == {}


KEYS = "content text summary type id index format vendor function name arguments role".split()
keys = st.sampled_from(KEYS)
kinds = st.sampled_from(["word", "word", "two words", "long", 7, None])
shapes = st.recursive(
    kinds,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
parts = st.lists(st.dictionaries(st.sampled_from("text summary type id index data".split()), shapes), max_size=2)
deltas = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["reasoning", "reasoning_content", "thinking", "refusal", "role"], kinds | shapes),
        **dict.fromkeys(["content", "reasoning_details"], kinds | parts | shapes),
        **dict.fromkeys(["tool_calls", "function_call", "vendor"], shapes),
    },
)


def with_texts_of_their_own(value: Any, numbers: count[int]) -> Any:
    """Every string and number made unlike all others, so that it is known again wherever it turns up."""
    if isinstance(value, int):
        return 990_000 + next(numbers)
    if isinstance(value, str):
        return {"word": "w{}w", "two words": "two w{}w", "long": "w{}w" + "x" * 70}[value].format(next(numbers))
    if isinstance(value, list):
        return [with_texts_of_their_own(inner, numbers) for inner in value]
    if isinstance(value, dict):
        return {key: with_texts_of_their_own(inner, numbers) for key, inner in value.items()}
    return value


@settings(max_examples=300, deadline=None)
@given(deltas, st.dictionaries(keys, shapes, max_size=1), st.data())
def test_what_is_redacted_is_nowhere_in_the_rewritten_event(delta: Any, beside: Any, data: st.DataObject) -> None:
    numbers = count()
    delta, beside = with_texts_of_their_own(delta, numbers), with_texts_of_their_own(beside, numbers)
    content = {
        **HEAD,
        "choices": [{**beside, "index": 0, "delta": delta}],
        "vendor": with_texts_of_their_own("word", numbers),
    }
    stream = dialect()
    (event,) = stream.feed(sse(content))
    if event.kind is not EventKind.CHUNK:
        return
    (part,) = event.parts
    gone = data.draw(st.lists(st.booleans(), min_size=len(part.spans), max_size=len(part.spans)))
    texts = ["[withheld]" if redacted else span.text for span, redacted in zip(part.spans, gone, strict=True)]
    left = stream.rewrite(event, {0: Kept(texts)}).decode()
    arguments_gone = any(span.kind is SpanKind.ARGUMENTS and gone[at] for at, span in enumerate(part.spans))
    for span, redacted in zip(part.spans, gone, strict=True):
        if span.text in KEYS:
            continue  # a key of a call's own arguments, and the name of a field elsewhere
        drops = redacted or span.kind is SpanKind.OTHER or (span.kind is SpanKind.ARGUMENTS and arguments_gone)
        assert (span.text in left) is not drops
