"""Chat completions from bytes: which text is whose, and what isn't a chunk at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire.choices import MAX_READ_CHOICES
from guardtrace_proxy.wire.events import ChoicePart, Event, EventKind, Span, SpanKind
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_proxy.wire.upstream_error import MAX_ERROR_CHARS
from tests.wire.replies import DONE, HEAD, chunk, dialect, read, segments, shown, sse, tape

FAST: dict[str, Any] = {}
SLOW: dict[str, Any] = {"a_field_that_nobody_knows": None}
both_paths = pytest.mark.parametrize("path", [FAST, SLOW], ids=["fast", "slow"])


def only(*events: Event) -> Event:
    (event,) = events
    return event


def part_of(delta: Any, finish: str | None = None, **beside: Any) -> ChoicePart:
    (part,) = only(*dialect().feed(sse(chunk(delta, finish=finish, **beside)))).parts
    return part


@both_paths
@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({}, ""),
        ({"role": "assistant", "content": ""}, ""),
        ({"content": None, "reasoning": None, "tool_calls": None}, ""),
        ({"content": "yes"}, "A:yes"),
        ({"reasoning": "hm"}, "T:hm"),
        ({"reasoning_content": "hm"}, "T:hm"),
        ({"reasoning": "hm", "reasoning_content": "hm"}, "T:hm"),
        ({"reasoning": "h", "reasoning_content": "m"}, "T:hm"),
        ({"content": "yes", "reasoning": "hm"}, "T:hm A:yes"),
        ({"refusal": "no"}, "A:no"),
        ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]}, "A:f"),
        ({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}], "content": "x"}, "A:x{"),
        ({"tool_calls": [{"index": 0}, {"index": 1, "function": {"arguments": "}"}}]}, "A:}"),
    ],
)
def test_a_delta_is_read_alike_on_both_paths(path: dict[str, Any], delta: dict[str, Any], expected: str) -> None:
    part = part_of(delta, **path)
    assert shown(segments([Event(EventKind.CHUNK, b"", [part])])) == expected
    assert part.role is ("role" in delta)
    assert part.tokens == sum(-(-len(span.text) // 4) for span in part.spans)
    assert part == part_of(delta, **(FAST if path else SLOW))


def with_a_vendors_field(level: str) -> dict[str, Any]:
    content = chunk({"content": "yes", "tool_calls": [{"index": 0, "function": {"name": "f"}}]})
    (choice,) = content["choices"]
    (call,) = choice["delta"]["tool_calls"]
    levels = {"top": content, "choice": choice, "delta": choice["delta"], "call": call, "function": call["function"]}
    levels[level]["vendor"] = ["text"]
    return content


@pytest.mark.parametrize("level", ["top", "choice", "delta", "call", "function"])
def test_text_in_a_field_that_nobody_knows_is_found(level: str) -> None:
    content = with_a_vendors_field(level)
    event = only(*dialect().feed(sse(content)))
    assert sorted(span.text for span in event.parts[0].spans) == ["f", "text", "yes"]
    without_choices = only(*dialect().feed(sse({**HEAD, "choices": [], "vendor": "text"})))
    assert [(part.index, tape([without_choices])) for part in without_choices.parts] == [(0, "text")]


def test_where_a_span_stands_and_what_repeats_it() -> None:
    part = part_of({"reasoning": "hm", "reasoning_content": "hm", "content": "a", "refusal": "b"})
    assert part.spans == [
        Span(("delta", "reasoning"), "hm", SpanKind.TEXT, (("delta", "reasoning_content"),)),
        Span(("delta", "content"), "a"),
        Span(("delta", "refusal"), "b"),
    ]
    part = part_of({"tool_calls": [{"function": {"name": "f"}}, {"function": {"arguments": "{}"}}]})
    assert part.spans == [
        Span(("delta", "tool_calls", 0, "function", "name"), "f", SpanKind.ARGUMENTS),
        Span(("delta", "tool_calls", 1, "function", "arguments"), "{}", SpanKind.ARGUMENTS),
    ]


@both_paths
def test_logprobs_ids_and_stops_are_no_text(path: dict[str, Any]) -> None:
    logprobs = {"content": [{"token": "yes", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
    content = chunk({"content": "yes"}, finish="stop", **path)
    content["choices"][0].update(logprobs=logprobs, token_ids=[7, 8, 9], stop_reason="</s>", matched_stop=2)
    event = only(*dialect().feed(sse(content)))
    (part,) = event.parts
    assert event.raw == sse(content)
    assert (tape([event]), part.tokens, part.finish_reason) == ("yes", 3, "stop")


def sampled(*tokens: str, **more: Any) -> dict[str, Any]:
    found = [{"token": token, "logprob": -0.1, "bytes": list(token.encode()), **more} for token in tokens]
    return {"content": [{**each, "top_logprobs": [each]} for each in found]}


@both_paths
@pytest.mark.parametrize(
    ("delta", "logprobs", "expected"),
    [
        # vLLM sends the tag itself, and the end of the turn, with an empty delta.
        ({}, sampled("</think>"), ""),
        ({}, sampled("<|im_end|>"), ""),
        ({}, sampled("◁/think▷", "\n\n"), ""),
        ({}, sampled("\ufffd"), ""),
        ({"reasoning": "hm"}, sampled("hm"), "hm"),
        ({"reasoning": "hm"}, sampled("hm", id=7), "hm"),
        # A parser that waits for the whole call sends its tokens long before it, or alone.
        ({}, sampled("<tool_call>", '{"name"', ": "), '{"name": '),
        ({"role": "assistant", "content": ""}, {"content": None, "refusal": sampled("no")["content"]}, "no"),
        ({}, {"content": None, "reasoning_content": sampled("hm")["content"]}, "hm"),
        # What isn't shaped like logprobs is no logprobs.
        ({"content": "a"}, {"content": [{"token": "a", "note": "b"}]}, "aab"),
        ({"content": "a"}, {"tokens": ["b"], "token_logprobs": [-0.1]}, "ab"),
        ({"content": "a"}, sampled("x" * 257), "a" + "x" * 257 * 2),
        ({}, {"n": 1}, ""),
    ],
)
@pytest.mark.parametrize("finishes", [True, False])
def test_tokens_whose_text_never_comes_are_text_at_the_end(
    path: dict[str, Any], delta: dict[str, Any], logprobs: dict[str, Any], expected: str, finishes: bool
) -> None:
    content = chunk(delta, **path)
    content["choices"][0]["logprobs"] = logprobs
    stream = dialect()
    event = only(*stream.feed(sse(content)))
    assert event.raw == sse(content)
    rest = stream.feed(sse(chunk({}, finish="stop"))) if finishes else stream.end()
    assert tape([event, *rest]) == expected


@both_paths
def test_tokens_ahead_of_a_tag_leave_it_a_tag(path: dict[str, Any]) -> None:
    stream = dialect()
    events = []
    for piece in ("<th", "ink>", "hm", "</think>", "Four."):
        early, late = chunk({}, **path), chunk({"content": piece}, **path)
        early["choices"][0]["logprobs"] = sampled(piece)
        events += stream.feed(sse(early, late))
    events += stream.feed(sse(chunk({}, finish="stop")))
    assert shown(segments(events)) == "[<think>] T:hm [</think>] A:Four."


@both_paths
@pytest.mark.parametrize(("text", "tokens"), [("a", 1), ("abcd", 1), ("abcde", 2), ("äöü", 2), ("😀", 1), ("", 0)])
def test_without_ids_four_bytes_are_a_token(path: dict[str, Any], text: str, tokens: int) -> None:
    assert part_of({"content": text}, **path).tokens == tokens


@both_paths
def test_usage_stands_beside_any_choices_or_none(path: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert only(*dialect().feed(sse(chunk({}, usage=usage, **path)))).usage == usage
    last = only(*dialect().feed(sse({**HEAD, "choices": [], "usage": usage, **path})))
    assert (last.kind, last.parts, last.usage) == (EventKind.CHUNK, [], usage)


@both_paths
def test_choices_are_told_apart(path: dict[str, Any]) -> None:
    two = {
        **HEAD,
        **path,
        "choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}],
    }
    events = read(sse(two, chunk({"content": "d"}, 1), chunk({"content": "c"}, 0)))
    assert (shown(segments(events, 0)), shown(segments(events, 1))) == ("A:ac", "A:bd")


@both_paths
def test_an_empty_finish_is_none(path: dict[str, Any]) -> None:
    # Ollama and SGLang have sent it with every delta: https://github.com/sgl-project/sglang/issues/3912
    events = read(sse(chunk({"content": "<thi"}, finish="", **path), chunk({"content": "nk>hm"}, finish="", **path)))
    assert shown(segments(events)) == "[<think>] T:hm"
    assert [part.finish_reason for event in events for part in event.parts] == [None, None]
    assert part_of({}, "eos", **path).finish_reason == "eos"


# Where thinking stands


@pytest.mark.parametrize(
    ("style", "deltas", "expected"),
    [
        (ThinkingStyle(), [{"content": "<think>a</think>b"}], "[<think>] T:a [</think>] A:b"),
        (ThinkingStyle(), [{"reasoning": "a"}, {"content": "<think>b</think>"}], "T:a A:<think>b</think>"),
        (ThinkingStyle(), [{"content": "x<th"}, {"reasoning": "a"}, {"content": "ink>"}], "A:x<th T:a A:ink>"),
        (ThinkingStyle(), [{"content": "x<th"}, {"refusal": "no"}], "A:x<thno"),
        (ThinkingStyle("field"), [{"content": "<think>a</think>b"}], "A:<think>a</think>b"),
        (ThinkingStyle("field"), [{"reasoning": "a", "content": "b"}], "T:a A:b"),
        (
            ThinkingStyle("inline"),
            [{"reasoning": "a"}, {"content": "<think>b</think>"}],
            "T:a [<think>] T:b [</think>]",
        ),
        (ThinkingStyle("inline", True), [{"content": "a</think>b"}], "T:a [</think>] A:b"),
        (ThinkingStyle("custom", open="(", close=")"), [{"content": "(a)<think>"}], "[(] T:a [)] A:<think>"),
        (ThinkingStyle("custom", True, None, "[END]"), [{"content": "a[E"}, {"content": "ND]b"}], "T:a [[END]] A:b"),
        (ThinkingStyle("custom", True, "(", ")"), [{"content": "a)b(c"}], "T:a [)] A:b [(] T:c"),
    ],
)
def test_thinking_is_where_the_config_says(style: ThinkingStyle, deltas: list[dict[str, Any]], expected: str) -> None:
    events = read(sse(*map(chunk, deltas)), style=style)
    assert shown(segments(events)) == expected


def test_tags_of_one_choice_are_not_those_of_another() -> None:
    deltas = [chunk({"content": "<think>a"}, 0), chunk({"content": "b"}, 1), chunk({"content": "</think>c"}, 0)]
    events = read(sse(*deltas, chunk({"reasoning": "d"}, 1), chunk({"content": "<think>e"}, 1)))
    assert shown(segments(events, 0)) == "[<think>] T:a [</think>] A:c"
    assert shown(segments(events, 1)) == "A:b T:d A:<think>e"


def test_only_the_content_itself_is_read_for_tags() -> None:
    events = read(sse(chunk({"vendor": {"content": "<think>"}, "content": "a"}), chunk({"content": "b"})))
    assert shown(segments(events)) == "A:a<think>b"
    events = read(sse(chunk({"tool_calls": [{"function": {"arguments": {"content": "<think>"}}}]})))
    assert shown(segments(events)) == "A:content<think>"


@pytest.mark.parametrize("last", [chunk({}, finish="stop"), None], ids=["finish", "nothing"])
@pytest.mark.parametrize("end", [DONE, sse({"error": {"message": "x"}}), b"data: {\n\n", b""])
def test_what_could_have_become_a_tag_is_text_before_the_end(last: Any, end: bytes) -> None:
    events = read(sse(chunk({"content": "1 <"}), *([last] if last else [])) + end)
    assert shown(segments(events)) == "A:1 <"
    ends = [position for position, event in enumerate(events) if event.kind is not EventKind.CHUNK]
    assert ends == ([len(events) - 1] if end else [])


# What isn't a chunk


def test_the_end_of_the_stream() -> None:
    assert read(DONE) == [Event(EventKind.DONE, DONE)]
    assert [event.kind for event in read(b"data:  [DONE] \r\n\r\n")] == [EventKind.DONE]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"{", "isn't JSON"),
        (b"", "isn't JSON"),
        (b"[DONE", "isn't JSON"),
        (b'{"choices": [{"delta": {"content": "\xff"}}]}', "isn't JSON"),
        (b'{"choices": [{"delta": {"content": "\xff"}}], "other": 1}', "isn't JSON"),
        (b'{"choices": []} {"choices": []}', "isn't JSON"),
        pytest.param(b"[" * 100_000, "isn't JSON", id="deep"),
        (b"[]", "isn't a JSON object"),
        (b'"text"', "isn't a JSON object"),
        (b"null", "isn't a JSON object"),
        (b'{"choices": {"0": {}}}', "choices can't be read"),
        (b'{"choices": "text"}', "choices can't be read"),
        (b'{"choices": [null]}', "choices can't be read"),
        (b'{"choices": [{"index": "0"}]}', "choices can't be read"),
        (b'{"choices": [{"index": true, "other": 1}]}', "choices can't be read"),
        (b'{"choices": [{"index": -1, "other": 1}]}', "choices can't be read"),
        (b'{"choices": [{"finish_reason": {}}]}', "choices can't be read"),
        (b'{"choices": [{"index": -1}]}', "too many choices"),
        (b'{"choices": [{"index": 128}]}', "too many choices"),
        (b'{"choices": [{"index": 0}, {"index": 0}]}', "choice twice"),
        (b'{"choices": [{"index": 0}, {"index": 0, "other": 1}]}', "choice twice"),
        (b'{"choices": [{"delta": ' + b"[" * 70 + b'"a"' + b"]" * 70 + b"}]}", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_says_why_without_its_text(data: bytes, detail: str) -> None:
    event = only(*dialect().feed(b"data: " + data + b"\n\n"))
    assert event.kind is EventKind.MALFORMED
    assert event.detail is not None
    assert detail in event.detail
    assert "text" not in event.detail.replace("The upstream sent", "")
    assert event.parts == []


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ({"message": "m", "type": "t", "code": "c"}, {"message": "m", "type": "t", "param": None, "code": "c"}),
        ({"message": "m", "code": 429}, {"message": "m", "type": "upstream_error", "param": None, "code": 429}),
        ("m", {"message": "m", "type": "upstream_error", "param": None, "code": None}),
        (
            {"message": {"text": "generated"}, "type": ["generated"], "code": {}, "failed_generation": "generated"},
            {"message": "The upstream reported an error.", "type": "upstream_error", "param": None, "code": None},
        ),
        (
            {"message": "m" * 501, "type": "t" * 65, "code": "c" * 65},
            {"message": "m" * MAX_ERROR_CHARS, "type": "t" * 64, "param": None, "code": "c" * 64},
        ),
    ],
)
def test_of_an_upstreams_error_only_so_much_passes(error: Any, shown: dict[str, Any]) -> None:
    event = only(*dialect().feed(sse({"error": error, "choices": [{"delta": {"content": "generated"}}]})))
    assert (event.kind, event.parts) == (EventKind.ERROR, [])
    assert event.raw.endswith(b"\n\n")
    assert json.loads(event.raw.removeprefix(b"data: ")) == {"error": shown}


def test_a_stream_goes_on_after_an_error() -> None:
    events = read(sse({"error": "m"}, chunk({"content": "a"})) + DONE)
    assert [event.kind for event in events] == [EventKind.ERROR, EventKind.CHUNK, EventKind.DONE]


@pytest.mark.parametrize("nothing", [None, "", {}])
def test_an_error_that_is_none_is_none(nothing: Any) -> None:
    event = only(*dialect().feed(sse(chunk({"content": "a"}, error=nothing))))
    assert (event.kind, tape([event])) == (EventKind.CHUNK, "a")


def test_an_event_that_is_too_large_ends_the_stream_after_what_came_before() -> None:
    first = sse(chunk({"content": "1 <"}))
    events = dialect(limit=len(first)).feed(first + sse(chunk({"content": "generated" * 20})))
    assert [event.kind for event in events] == [EventKind.CHUNK, EventKind.CHUNK, EventKind.MALFORMED]
    assert shown(segments(events)) == "A:1 <"
    assert events[-1].detail == f"The upstream sent an event larger than {len(first)} bytes."


def test_choices_are_counted() -> None:
    most = [{"index": index, "delta": {}} for index in range(MAX_READ_CHOICES)]
    assert len(only(*dialect().feed(sse({**HEAD, "choices": most}))).parts) == MAX_READ_CHOICES
    for beside in (FAST, SLOW):
        event = only(*dialect().feed(sse({**HEAD, "choices": [*most, {"index": 0}], **beside})))
        assert event.kind is EventKind.MALFORMED


def unsaid(*deltas: tuple[dict[str, Any], list[str] | None, list[int] | None], path: dict[str, Any]) -> list[int]:
    stream = dialect()
    counts = []
    for delta, tokens, ids in deltas:
        content = chunk(delta, **path)
        if tokens is not None:
            logprobs = [{"token": token, "logprob": -0.1, "bytes": None, "top_logprobs": []} for token in tokens]
            content["choices"][0]["logprobs"] = {"content": logprobs}
        content["choices"][0]["token_ids"] = ids
        counts += [part.unsaid for event in stream.feed(sse(content)) for part in event.parts]
    return counts


@both_paths
def test_tokens_that_run_ahead_say_how_much_text_is_still_to_come(path: dict[str, Any]) -> None:
    with_text = ({"content": "abc"}, ["abc"], None)
    assert unsaid(with_text, with_text, path=path) == [0, 0]
    # A parser or a stop string keeps text back, and its tokens leave with what was kept back before them.
    late = [
        ({}, ["abc"], None),
        ({"content": "abc"}, ["de"], None),
        ({"content": "de"}, ["f"], None),
        ({"content": "f"}, [], None),
    ]
    assert unsaid(*late, path=path) == [3, 2, 1, 0]
    assert unsaid(({}, ["</think>"], [7]), with_text, path=path) == [0, 0]
    assert unsaid(({}, None, [7, 8]), ({"content": "abc"}, None, [9]), path=path) == [1, 0]


@both_paths
def test_ids_in_the_place_of_tokens_are_ids(path: dict[str, Any]) -> None:
    # vLLM's return_tokens_as_token_ids.
    with_text = ({"content": "a"}, ["token_id:9906"], None)
    assert unsaid(*[with_text] * 3, path=path) == [0, 0, 0]
    assert unsaid(({}, ["token_id:7", "token_id:8"], None), with_text, ({}, [], None), path=path) == [1, 0, 0]
    content = chunk({"content": "a"}, finish="stop", **path)
    content["choices"][0]["logprobs"] = sampled("token_id:9906")
    assert tape(dialect().feed(sse(content))) == "a"


def test_of_tokens_without_text_it_is_said_at_the_end_that_none_comes() -> None:
    stream = dialect()
    content = chunk({})
    tokens = [{"token": token, "logprob": -0.1} for token in ("<tool_call>", "\n")]
    content["choices"][0]["logprobs"] = {"content": tokens}
    assert only(*stream.feed(sse(content))).parts[0].unsaid == len("<tool_call>\n")
    assert only(*stream.end()) == Event(EventKind.CHUNK, b"", [ChoicePart(0, [], [])])
    assert list(stream.end()) == []
