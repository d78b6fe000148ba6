"""JSON in which a key occurs twice: two readers of it may read two different texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.keys import has_key_twice
from guardtrace_proxy.wire.reply import Reply
from tests.wire.replies import completion, dialect, message, response

DEEP = b'{"a":' * 900 + b'{"b":1,"b":2}' + b"}" * 900

keys = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\\""', '"\\u0022"', '""', '"c"'])
scalars = st.sampled_from(['"a"', '"\\""', '"\\u0022"', '"\\\\u0022"', '""', "1", "1.5e3", "null", "9" * 40])


def objects(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    fields = st.lists(st.tuples(keys, st.sampled_from([":", " : "]), inner).map("".join), max_size=3)
    return fields.map(lambda each: "{" + ",".join(each) + "}") | st.lists(inner, max_size=3).map(
        lambda each: "[" + ",".join(each) + "]"
    )


@given(st.recursive(scalars, objects, max_leaves=12))
def test_it_is_found_wherever_it_is_and_however_it_is_written(text: str) -> None:
    is_twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_twice
        is_twice = is_twice or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    assert has_key_twice(text.encode()) is is_twice


@pytest.mark.parametrize("data", [b"", b"[DONE]", b'{"a":1,"a":', b'{"a":1,"a":"\xff"}', b"[" * 100_000])
def test_what_is_no_json_has_none(data: bytes) -> None:
    assert not has_key_twice(data)


def test_what_is_nested_too_deeply_to_look_at_is_told_or_no_json() -> None:
    assert has_key_twice(DEEP) or dialect().feed(b"data: " + DEEP + b"\n\n")[0].kind is EventKind.MALFORMED


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        (dialect(), b'{"choices":[{"index":0,"delta":{"content":"one","content":"two"}}]}'),
        (dialect(), b'{"choices":[{"index":0,"delta":{"content":"one"}}],"vendor":{"a":"two","\\u0061":"three"}}'),
        (dialect(), b'{"choices":[],"choices":[{"index":0,"delta":{"content":"one"}}]}'),
        (completion(), b'{"choices":[{"index":0,"text":"one","text":"two"}]}'),
        (response(), b'{"type":"response.output_text.delta","delta":"one","delta":"two"}'),
        (response(), b'{"type":"response.created","response":{"id":"a","output":[{"x":"one"}],"output":[]}}'),
        (message(), b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a","text":"b"}}'),
        (message(), b'{"type":"ping","vendor":"one","vendor":null}'),
    ],
)
def test_an_event_with_a_key_twice_ends_the_stream(reply: Reply, data: bytes) -> None:
    (event,) = reply.feed(b"data: " + data + b"\n\n")
    assert event.kind is EventKind.MALFORMED
    assert event.detail == "The upstream sent an event with a key twice in one object."


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (dialect(), b'{"choices":[{"index":0,"message":{"content":"one","content":"two"}}]}'),
        (completion(), b'{"choices":[{"index":0,"text":"one","text":"two"}]}'),
        (response(), b'{"output":[{"type":"message","content":[{"type":"output_text","text":"a","text":"b"}]}]}'),
        (message(), b'{"content":[{"type":"text","text":"one","text":"two"}]}'),
    ],
)
def test_a_whole_reply_with_a_key_twice_cant_be_read(reply: Reply, body: bytes) -> None:
    event = reply.completion(body)
    assert (event.kind, event.detail) == (EventKind.MALFORMED, "a reply with a key twice in one object")
