"""The slow path: every string of a choice, whatever its shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.wire.chat_schema import CHOICE_METADATA
from guardtrace_proxy.wire.chat_spans import spans_beside_choices, spans_of_choice
from guardtrace_proxy.wire.events import Phase, Span, SpanKind
from guardtrace_proxy.wire.strings import MAX_DEPTH, Path, TooDeep

TEXT, ARGUMENTS, OTHER = SpanKind.TEXT, SpanKind.ARGUMENTS, SpanKind.OTHER


def found(delta: Any, **beside: Any) -> list[tuple[str, str, SpanKind]]:
    spans = spans_of_choice({"index": 0, "delta": delta, **beside}, "delta")
    return [(phase.name[0], span.text, span.kind) for phase, span in spans]


def test_the_order_is_reasoning_content_refusal_calls_and_others() -> None:
    delta = {
        "vendor": "g",
        "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "e", "arguments": "f"}}],
        "refusal": "d",
        "content": "c",
        "reasoning_details": [{"type": "reasoning.text", "text": "b"}],
        "reasoning": "a",
        "role": "assistant",
    }
    expected = [("T", "a", TEXT), ("T", "b", TEXT), ("A", "c", TEXT), ("A", "d", TEXT)]
    assert found(delta, more="h") == [
        *expected,
        ("A", "e", ARGUMENTS),
        ("A", "f", ARGUMENTS),
        ("A", "g", OTHER),
        ("A", "h", OTHER),
    ]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_every_name_of_a_thinking_field(field: str) -> None:
    assert found({field: "hm", "content": ""}) == [("T", "hm", TEXT)]
    # A thinking field of another shape holds text that nobody knows.
    assert found({field: {"text": "hm"}}) == [("A", "hm", OTHER)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, []),
        ("", []),
        ("a", [("A", "a", TEXT)]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], [("A", "a", TEXT), ("A", "b", TEXT)]),
        (["a"], [("A", "a", OTHER)]),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}], [("A", "a", OTHER)]),
        ({"text": "a"}, [("A", "a", OTHER)]),
        (7, [("A", "7", OTHER)]),
    ],
)
def test_content_of_other_shapes(content: Any, expected: list[tuple[str, str, SpanKind]]) -> None:
    assert found({"content": content}) == expected


def test_reasoning_details_hold_text_summaries_and_the_rest() -> None:
    details = [
        {"type": "reasoning.summary", "summary": "a", "id": "rs_1", "format": "x-v1", "index": 0},
        {"type": "reasoning.text", "text": "b", "signature": "c"},
        {"type": "reasoning.encrypted", "data": "d"},
    ]
    assert found({"reasoning_details": details}) == [
        ("T", "a", TEXT),
        ("T", "b", TEXT),
        ("A", "c", OTHER),
        ("A", "d", OTHER),
    ]


def test_arguments_are_found_in_whatever_they_stand() -> None:
    assert found({"function_call": {"name": "f", "arguments": "{}"}}) == [("A", "f", ARGUMENTS), ("A", "{}", ARGUMENTS)]
    call = {"function": {"arguments": {"city": "a", "days": ["b", 3]}}}
    # The model has written the keys as well.
    texts = ["city", "a", "days", "b", "3"]
    assert found({"tool_calls": [call]}) == [("A", text, ARGUMENTS) for text in texts]
    assert [text for _, text, _ in found({"tool_calls": [{"function": {"arguments": {"id": {"type": "x"}}}}]})] == [
        "id",
        "type",
        "x",
    ]
    assert found({"tool_calls": "a"}) == [("A", "a", ARGUMENTS)]


@pytest.mark.parametrize("name", ["content", "reasoning", "thinking", "refusal"])
@pytest.mark.parametrize("value", [5551234567, 1.5, True])
def test_what_stands_in_a_texts_place_is_shown_and_so_it_is_text(name: str, value: Any) -> None:
    said = json.dumps(value)
    assert [text for _, text, _ in found({name: value})] == [said]
    assert [text for _, text, _ in found({name: [value, {"type": "text", "text": value, "index": 0}]})] == [said, said]
    assert found({"vendor": value, "index": value}) == []


@pytest.mark.parametrize(("call", "key"), [("function", "arguments"), ("custom", "input")])
def test_numbers_and_labels_in_a_call_are_the_models_words(call: str, key: str) -> None:
    said = {"id": "mix", "steps": [1, {"type": "both"}], "now": True, "then": None}
    words = [text for _, text, _ in found({"tool_calls": [{"index": 0, call: {key: said}}]})]
    assert words == ["id", "mix", "steps", "1", "type", "both", "now", "true", "then"]


@pytest.mark.parametrize("key", ["type", "id", "index", "format"])
def test_only_a_short_word_is_a_label(key: str) -> None:
    assert found({"vendor": [{key: "call_1"}]}) == []
    assert found({"vendor": [{key: "x" * 64}]}) == []
    for text in ("x" * 65, "two words"):
        assert found({"vendor": [{key: text}]}) == [("A", text, OTHER)]
        assert found({"tool_calls": [{key: text}]}) == [("A", text, ARGUMENTS)]
        assert found({"content": [{key: text}]}) == [("A", text, OTHER)]
    assert found({"vendor": {key: {"text": "hidden"}}}) == [("A", "hidden", OTHER)]
    assert found({"content": [{key: ["hidden"]}]}) == [("A", "hidden", OTHER)]


def test_a_role_is_a_word() -> None:
    assert found({"role": "assistant"}) == []
    assert found({"role": "a text of several words"}) == [("A", "a text of several words", OTHER)]
    assert found({"role": {"name": "x"}}) == [("A", "x", OTHER)]


def test_a_body_of_the_other_kind_is_text_that_nobody_knows() -> None:
    # Perplexity's full mode repeats the whole message so far beside every delta.
    message = {"role": "assistant", "content": "a b"}
    assert found({"content": "b"}, message=message) == [
        ("A", "b", TEXT),
        ("A", "assistant", OTHER),
        ("A", "a b", OTHER),
    ]
    whole = spans_of_choice({"index": 0, "message": {"content": "a"}, "delta": {"content": "b"}}, "message")
    assert [(span.text, span.kind) for _, span in whole] == [("a", TEXT), ("b", OTHER)]


@pytest.mark.parametrize("delta", [None, {}, [], {"vendor": 3}])
def test_nothing_is_found_where_nothing_is(delta: Any) -> None:
    assert found(delta) == []


def test_a_body_that_is_no_object_is_text_all_the_same() -> None:
    assert found("a") == [("A", "a", OTHER)]
    assert found(["a", {"content": "b"}]) == [("A", "a", OTHER), ("A", "b", OTHER)]


def test_the_same_reasoning_in_several_fields_is_one_span() -> None:
    details = [{"type": "reasoning.text", "text": "hm"}]
    delta = {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": details, "content": "hm"}
    (thinking, answer) = spans_of_choice({"delta": delta}, "delta")
    copies = (("delta", "reasoning_content"), ("delta", "reasoning_details", 0, "text"))
    assert thinking == (Phase.THINKING, Span(("delta", "reasoning"), "hm", TEXT, copies))
    assert answer == (Phase.ANSWERING, Span(("delta", "content"), "hm"))


def test_what_a_field_says_twice_is_no_copy() -> None:
    assert found({"reasoning_details": [{"text": "no "}, {"text": "no "}]}) == [("T", "no ", TEXT)] * 2
    twice = {"reasoning": "no ", "reasoning_details": [{"text": "no "}, {"text": "no "}]}
    assert found(twice) == [("T", "no ", TEXT)] * 2
    assert found({"reasoning": "no", "reasoning_content": "yes"}) == [("T", "no", TEXT), ("T", "yes", TEXT)]


def test_strings_beside_the_choices() -> None:
    event = {"id": "x", "object": "y", "model": "z", "usage": {"note": "n"}, "choices": [{"delta": {"content": "c"}}]}
    assert spans_beside_choices(event) == []
    (span,) = spans_beside_choices({**event, "citations": [{"url": "u"}]})
    assert span == (Phase.ANSWERING, Span(("..", "citations", 0, "url"), "u", OTHER))


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def test_nothing_is_read_deeper_than_any_reply_is() -> None:
    assert found({"vendor": nested(MAX_DEPTH - 2)}) == [("A", "deep", OTHER)]
    with pytest.raises(TooDeep):
        found({"vendor": nested(MAX_DEPTH - 1)})


NAMES = (
    "content reasoning reasoning_content thinking reasoning_details refusal tool_calls function_call "
    "text summary type id index vendor function arguments"
)
SHOWN = ("content", "reasoning", "reasoning_content", "thinking", "refusal", "text", "summary")
"""Fields for a text."""
keys = st.sampled_from([*NAMES.split(), "a key of words"])
leaves = st.sampled_from(["", "a", "b", "two words", "x" * 70]) | st.none() | st.integers() | st.booleans()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def strings(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    by_model = "arguments" in path[:-1]
    if isinstance(value, str) and value:
        label = path[-1] in ("type", "id", "index", "format") and len(value) <= 64 and " " not in value
        # At the delta's own level these are fields like any other that isn't known.
        if not label or by_model or (path[0] == "delta" and len(path) == 2):
            yield path, value
    elif isinstance(value, (list, dict)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and (" " in key or "arguments" in path):
                yield (*path, key), key
            yield from strings(inner, (*path, key))
    elif value is not None and not isinstance(value, str):
        names = [step for step in path if isinstance(step, str)]
        if "arguments" in names or names[-1] in SHOWN:
            yield path, json.dumps(value)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.dictionaries(st.sampled_from(["message", "vendor"]), values))
def test_every_string_is_found_once(delta: dict[str, Any], beside: dict[str, Any]) -> None:
    choice = {"index": 0, "delta": delta, **beside}
    spans = [span for _, span in spans_of_choice(choice, "delta")]
    places = [(path, span.text) for span in spans for path in (span.path, *span.copies)]
    expected = [(path, text) for path, text in strings(choice) if path[0] not in CHOICE_METADATA]
    assert sorted(places, key=repr) == sorted(expected, key=repr)
    for span in spans:
        fields = [path[:2] for path in (span.path, *span.copies)]
        assert len(fields) == len(set(fields)), "two texts of one field told as one"
