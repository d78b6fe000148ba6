"""Requests: what the auditor must know of them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.wire.chat_request import MAX_MESSAGES, MEDIA, ChatRequest, read_request
from guardtrace_proxy.wire.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Dialect
from guardtrace_proxy.wire.request import MAX_CHOICES, MAX_DEPTH, Allowed, Prefill, RequestError

USER = {"role": "user", "content": "hi"}
SECRET = "gAAAAABo" + "Zx9Kq3VbT7mLw2Rc" * 8
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def read(*messages: Any, **fields: Any) -> ChatRequest:
    return read_request(json.dumps({"model": "m", "messages": messages or [USER], **fields}).encode())


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_request(body)
    return caught.value


def refused(**fields: Any) -> str | None:
    """The field that a request is refused for."""
    error = refusal(json.dumps({"model": "m", "messages": [USER], **fields}).encode())
    assert error.code == "invalid_value"
    assert error.message.startswith(f"{error.param}: ")
    assert error.message.endswith(".")
    return error.param


def test_the_smallest_request() -> None:
    assert read() == ChatRequest("m", False, 1, (("user", "hi"),), (), None)


def test_streaming_and_its_options() -> None:
    assert read(stream=True, stream_options={"include_usage": True}).include_usage
    assert not read(stream=True, stream_options={"include_usage": False}).include_usage
    assert not read(stream=True, stream_options=None).include_usage
    assert not read(stream=False, stream_options={"include_usage": True}).include_usage
    assert read(stream=None).stream is False
    assert read(n=3, stream=True).n == 3
    assert read(n=None).n == 1


def test_what_it_does_not_read_it_lets_pass() -> None:
    read(temperature=0.5, response_format={"type": "json_object"}, seed=7, user="u", tool_choice="none", store=False)
    read(include_reasoning=True, separate_reasoning=True, reasoning={"effort": "low", "exclude": False})
    read(chat_template_kwargs={"enable_thinking": False, "thinking_budget": 9}, modalities=["text"])
    read(echo=False, documents=[], audio=None, chat_template=None, continue_final_message=True, unheard_of=None)
    assert read(top_k=5, logit_bias={"7": -100}, best_of=3, use_beam_search=True).n == 1


def test_turns_are_in_order_with_all_their_text() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": "Zürich"}'}}
    request = read(
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "hm"},
        {"role": "developer", "content": ""},
    )
    assert request.turns == (
        ("system", "be kind"),
        ("user", "a\nb\nann"),
        ("assistant", "hm\n" + json.dumps([call], ensure_ascii=False)),
        ("tool", "sunny"),
        ("assistant", "no\nhm"),
        ("developer", ""),
    )


def test_images_are_in_order_with_the_fields_they_stand_in() -> None:
    request = read(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]},
        {"role": "assistant", "content": "a pixel"},
        {"role": "user", "content": [{"type": "text", "text": "and?"}, {"type": "image_url", "image_url": "x"}]},
    )
    assert request.images == (
        (PIXEL, "messages[0].content[0].image_url.url"),
        ("x", "messages[2].content[1].image_url.url"),
    )
    assert request.turns == (("user", ""), ("assistant", "a pixel"), ("user", "and?"))


def test_the_beginning_of_an_answer_is_no_turn() -> None:
    request = read(USER, {"role": "assistant", "content": "Well,"})
    assert (request.turns, request.prefill) == ((("user", "hi"),), Prefill("messages[1]", "Well,"))
    assert read(USER, {"role": "assistant", "content": "a"}, USER).prefill is None
    alone = read({"role": "assistant", "content": "Well,"})
    assert (alone.turns, alone.prefill) == ((), Prefill("messages[0]", "Well,"))


def test_the_beginning_has_its_thinking_apart() -> None:
    details = [{"type": "reasoning.text", "text": "so"}, {"type": "reasoning.encrypted", "data": SECRET}]
    message = {"role": "assistant", "reasoning": "hm", "reasoning_content": "hm", "reasoning_details": details}
    call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]
    prefill = read(USER, {**message, "content": [{"type": "text", "text": "Well,"}], "tool_calls": call}).prefill
    assert prefill == Prefill("messages[1]", "Well,\n" + json.dumps(call), "hm\nso")


@pytest.mark.parametrize("marked", [{"prefix": True}, {"partial": True}, {}])
def test_whether_the_model_writes_on(marked: dict[str, Any]) -> None:
    prefill = read(USER, {"role": "assistant", "content": "Well,", **marked}).prefill
    assert prefill is not None
    assert prefill.continues == bool(marked)
    prefill = read(USER, {"role": "assistant", "content": "Well,"}, continue_final_message=True).prefill
    assert prefill is not None
    assert prefill.continues


WORDS = ("pipe", "caps", "powder", "where_to_buy_it", "assembly")
SCHEMA = {"type": "object", "properties": {word: {"type": "string"} for word in WORDS}}


@pytest.mark.parametrize(
    ("dialect", "asked", "form"),
    [
        (CHAT, {"messages": [USER]}, {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        (CHAT, {"messages": [USER]}, {"guided_choice": [*WORDS, *WORDS]}),
        (COMPLETIONS, {"prompt": "hi"}, {"guided_json": SCHEMA}),
        (RESPONSES, {"input": "hi"}, {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
        (MESSAGES, {"messages": [USER]}, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    ],
)
def test_a_schema_of_single_words_is_shown(dialect: Dialect[Any], asked: dict[str, Any], form: Any) -> None:
    (turns,) = dialect.read_request(json.dumps({"model": "m", **asked, **form}).encode(), Allowed()).queries
    assert all(word in turns[0][1] for word in WORDS)


def test_tools_and_schemas_come_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "How to do it"}}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": "how to do that"}}}
    request = read(tools=tools, response_format=schema, guided_regex="(yes|no) and more", tool_choice="auto")
    assert request.turns == (
        ("tools", json.dumps(tools)),
        ("response_format", json.dumps(schema)),
        ("guided_regex", "(yes|no) and more"),
        ("user", "hi"),
    )
    assert read(functions=[{"name": "f"}], tool_choice={"type": "function"}).turns[0] == (
        "functions",
        '[{"name": "f"}]',
    )


def test_whatever_a_message_says_is_read() -> None:
    request = read(
        {"role": "developer", "content": "a", "tools": [{"x": "how to"}], "task": "b c", "priority": 3, "flag": True},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "d", "title": "e"}]},
        {"role": "tool", "tool_call_id": "not an id", "content": "f", "id": "i" * 99},
        {"role": "user", "content": [{"type": "text", "text": "g", "cache_control": {"type": "ephemeral"}}]},
    )
    assert [text for _, text in request.turns] == [
        'a\n[{"x": "how to"}]\nb c',
        "d\ne",
        "f\nnot an id\n" + "i" * 99,
        "g",
    ]


@pytest.mark.parametrize("key", sorted(MEDIA))
def test_media_stand_in_parts(key: str) -> None:
    assert refused(messages=[{"role": "user", "content": "a", key: [{"x": 1}]}]) == f"messages[0].{key}"
    part = {"type": "text", "text": "a", key: {"url": PIXEL}}
    assert refused(messages=[{"role": "user", "content": [part]}]) == f"messages[0].content[0].{key}"
    read({"role": "user", "content": "a", key: None})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER, {"content": "hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": [], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": {}, "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": {}}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": True, "tools": 1}}, "chat_template_kwargs.tools"),
        ({"chat_template_kwargs": {"k" * 99: 1}}, "chat_template_kwargs." + "k" * 64),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"modalities": "text"}, "modalities"),
        ({"reasoning": True}, "reasoning"),
        ({"reasoning": {"unheard_of": 1}}, "reasoning.unheard_of"),
        ({"continue_final_message": "no"}, "continue_final_message"),
        ({"add_generation_prompt": None}, "add_generation_prompt"),
        ({"add_special_tokens": 0}, "add_special_tokens"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields) == param


def test_pixels_that_the_auditor_would_not_see_are_refused() -> None:
    # vLLM decodes images by the first and takes them from its cache by the second:
    # https://docs.vllm.ai/en/v0.13.0/features/multimodal_inputs/
    assert refused(media_io_kwargs={"image": {"rgba_background_color": [0, 0, 0]}}) == "media_io_kwargs"
    part = {"type": "image_url", "image_url": {"url": PIXEL}}
    where = "messages[0].content[0].uuid"
    assert refused(messages=[{"role": "user", "content": [{**part, "uuid": "of another image"}]}]) == where
    assert len(read({"role": "user", "content": [{**part, "uuid": None}]}).images) == 1
    # SGLang takes images from its cache by the first and tiles them by the second.
    for key in ("content_hash", "max_dynamic_patch"):
        other = {"type": "image_url", "image_url": {"url": PIXEL, key: "9"}}
        where = f"messages[0].content[0].image_url.{key}"
        assert refused(messages=[{"role": "user", "content": [other]}]) == where
    assert refused(messages=[{"role": "user", "content": [{**part, "crop": 1}]}]) == "messages[0].content[0].crop"
    kept = {**part, "cache_control": {"type": "ephemeral"}, "image_url": {"url": PIXEL, "detail": "high"}}
    assert len(read({"role": "user", "content": [kept]}).images) == 1


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("hi", ""),
        ({"text": "hi"}, ".type"),
        ({"type": "input_audio", "input_audio": {}}, ".type"),
        ({"type": ["text"], "text": "hi"}, ".type"),
        ({"type": "text"}, ".text"),
        ({"type": "text", "text": ["hi"]}, ".text"),
        ({"type": "refusal", "text": "hi"}, ".refusal"),
        ({"type": "image_url"}, ".image_url.url"),
        ({"type": "image_url", "image_url": {}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": {}}}, ".image_url.url"),
        ({"type": "image_url", "image_url": None, "uuid": "x"}, ".image_url.url"),
    ],
)
def test_parts_are_text_or_images(part: Any, where: str) -> None:
    content = [{"type": "text", "text": "first"}, part]
    assert refused(messages=[USER, {"role": "user", "content": content}]) == f"messages[1].content[1]{where}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "isn't JSON"),
        (b'"a\nb"', "isn't JSON: Invalid control character at line 1, column 3."),
        (b"{", "isn't JSON: Expecting property name enclosed in double quotes at line 1, column 2."),
        (b"\xef\xbb\xbf{}", "isn't JSON"),
        (b'{"model": "\xff"}', "isn't UTF-8: byte 11"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"temperature": NaN}', "holds NaN"),
        (b'{"temperature": -Infinity}', "holds -Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "holds a number"),
        (b'{"user": "\\ud83d"}', "surrogate"),
        (b'{"\\ude00": 1}', "surrogate"),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"deeper than {MAX_DEPTH} levels"),
        (b'{"a": ' + b"[" * 100_000, f"deeper than {MAX_DEPTH} levels"),
    ],
    ids=range(14),
)
def test_a_body_that_cannot_be_read(body: bytes, message: str) -> None:
    error = refusal(body)
    assert message in error.message
    assert (error.param, error.code) == (None, None)


def test_nesting_and_pairs_up_to_the_limit_are_read() -> None:
    read(logit_bias=json.loads("[" * (MAX_DEPTH - 2) + "1" + "]" * (MAX_DEPTH - 2)))
    assert read({"role": "user", "content": "😀"}).turns == (("user", "😀"),)


def test_a_key_that_occurs_twice_is_read_differently_by_different_servers() -> None:
    error = refusal(b'{"model": "m", "messages": [{"role": "user", "content": "a", "content": "b"}]}')
    assert (error.param, error.code) == ("content", "invalid_value")
    error = refusal(b'{"\\ud83d": 1, "\\ud83d": 2}')
    assert error.message.encode() == b"?: the key occurs twice in one object."


keys = st.sampled_from(
    "model messages role content type text image_url url uuid stream stream_options include_usage n reasoning exclude "
    "chat_template_kwargs enable_thinking modalities include_reasoning tool_calls function_call name echo".split()
)
leaves = st.sampled_from(["zzzz", "user", "assistant", "text", "image_url", "", 0, 1, 2.5, True, False, None, "\ud800"])
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
image = {"type": "image_url", "image_url": {"url": "zzzz"}}
parts = st.sampled_from([{"type": "text", "text": "zzzz"}, image]) | values
contents = st.text(max_size=3) | st.lists(parts, max_size=2) | values
roles = st.sampled_from(["user", "assistant", "system", "tool"])
messages = st.fixed_dictionaries(
    {"role": roles | values, "content": contents}, optional={"name": values, "refusal": values}
)
often_right = st.fixed_dictionaries({"model": st.just("m"), "messages": st.lists(messages, min_size=1, max_size=3)})
requests = often_right | st.fixed_dictionaries(
    {"model": st.just("m") | values, "messages": st.lists(messages, max_size=3) | values},
    optional=dict.fromkeys(("stream", "stream_options", "n", "reasoning", "modalities", "metadata"), values),
)


@settings(max_examples=400, deadline=None)
@given(requests.map(json.dumps).map(str.encode) | values.map(json.dumps).map(str.encode) | st.binary(max_size=40))
def test_nothing_raises_but_the_refusal(body: bytes) -> None:
    try:
        request = read_request(body)
    except RequestError as error:
        assert error.message
        assert "zzzz" not in error.message, "a refusal quotes what was asked"
        assert error.param is None or error.message.startswith(f"{error.param}: ")
        error.message.encode()
        return
    assert request.turns or request.prefill
    assert 1 <= request.n <= MAX_CHOICES
    "".join(text for _, text in request.turns).encode()
