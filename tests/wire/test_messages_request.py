"""Requests to the Messages API: blocks make the query, what can't be followed is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire.messages_request import MessagesRequest, body_for_upstream, read_request
from guardtrace_proxy.wire.request import Allowed, Prefill, RequestError
from tests.wire.message_events import SIGNATURE

USER = {"role": "user", "content": "hi"}
BASE64 = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
REMOTE = {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}


def body(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 9, "messages": list(messages) or [USER], **fields}).encode()


def read(*messages: Any, allowed: Allowed = Allowed(), **fields: Any) -> MessagesRequest:
    return read_request(body(*messages, **fields), allowed)


def refused(*messages: Any, **fields: Any) -> str | None:
    with pytest.raises(RequestError) as caught:
        read(*messages, **fields)
    assert str(caught.value.param) in caught.value.message
    return caught.value.param


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_messages_are_turns_behind_tools_schemas_and_system() -> None:
    request = read(
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
                {"type": "text", "text": "well"},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "sea"}},
            ],
        },
        user(
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "found"}, BASE64]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "none", "is_error": True},
            {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}},
        ),
        system=[{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}],
        tools=[{"name": "look", "input_schema": {"type": "object"}}],
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"title": "some words"}}},
        metadata={"user_id": "u"},
    )
    tools, form, *turns = request.turns
    assert (tools[0], form[0]) == ("tools", "output_config.format")
    assert turns == [
        ("system", "be brief\nbe kind"),
        ("user", "hi"),
        ("assistant", 'hm\nwell\nlook\n{"at": "sea"}'),
        ("user", "found\nnone\nand?"),
    ]
    assert request.images == (("data:image/png;base64,iVBORw0KGgo=", "messages[2].content[0].content[1].source"),)
    assert request.choices == 1


def test_a_signature_that_could_be_text_is_text() -> None:
    block = {"type": "thinking", "thinking": "hm", "signature": "how to do it"}
    assert read({"role": "assistant", "content": [block]}, USER).turns[0] == ("assistant", "hm\nhow to do it")


def test_the_assistants_last_message_begins_the_reply() -> None:
    last = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "It is"}]}
    request = read(USER, last)
    assert request.prefill == Prefill("messages[1]", "It is", "hm")
    assert request.turns == (("user", "hi"),)


@pytest.mark.parametrize(
    ("block", "where"),
    [
        ({"type": "document", "source": {"type": "text", "data": "x"}}, "type"),
        ({"type": "search_result", "content": []}, "type"),
        ({"type": "server_tool_use", "name": "web_search"}, "type"),
        ({"type": "web_search_tool_result"}, "type"),
        ({"type": "mcp_tool_use"}, "type"),
        ({"type": "container_upload", "file_id": "f"}, "type"),
        ({"type": "redacted_thinking", "data": SIGNATURE}, "data"),
        ({"type": "text"}, "text"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
        ({"type": "image", "source": {**BASE64["source"], "url": "https://a"}}, "source.url"),
        ({"type": "image", "source": {"type": "base64", "data": "x"}}, "source.media_type"),
        ({**BASE64, "transformations": {"oversized_image": "error"}}, "transformations"),
        ({"type": "tool_result", "content": [{"type": "document"}]}, "content[0].type"),
        ("words", "type"),
    ],
)
def test_blocks_that_arent_audited_are_refused(block: Any, where: str) -> None:
    assert refused(user(block)) == f"messages[0].content[0].{where}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"name": "a"}]}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        ({"thinking": {"type": "enabled", "secret": 1}}, "thinking.secret"),
        ({"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs.documents"),
        ({"system": [BASE64]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"betas": ["a"]}, "betas"),
        ({"max_tokens": 9, "messages": []}, "messages"),
    ],
)
def test_fields_that_cant_be_followed_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields) == param


def test_encrypted_thinking_passes_where_it_is_allowed_and_is_what_it_says() -> None:
    allowed = Allowed(encrypted_reasoning=True)
    message = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": SIGNATURE}]}
    assert read(message, USER, allowed=allowed).keeps_encrypted
    message["content"] = [{"type": "redacted_thinking", "data": "how to do it"}]
    assert refused(message, USER, allowed=allowed) == "messages[0].content[0].data"


@pytest.mark.parametrize(
    ("asked", "stops"), [(["END", "\n"], {"END", "\n"}), (["END", 1, ["x"]], {"END"}), ("END", set())]
)
def test_a_reply_may_stop_at_the_requests_own_sequences(asked: Any, stops: set[str]) -> None:
    assert read(stop_sequences=asked).stops == stops


# What is sent on


def test_a_body_keeps_its_bytes() -> None:
    sent = body(user(BASE64, {"type": "text", "text": "was ist’s?"}), temperature=0.10)
    assert body_for_upstream(sent, read_request(sent)) == sent


@pytest.mark.parametrize("display", ["omitted", "updates"])
def test_thinking_is_asked_for_where_it_was_to_be_omitted(display: str) -> None:
    sent = body(thinking={"type": "enabled", "budget_tokens": 1024, "display": display})
    request = read_request(sent)
    assert request.hides_reasoning
    shown = json.loads(body_for_upstream(sent, request))
    assert shown == {
        **json.loads(sent),
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    }


@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}, {"type": "adaptive", "display": "summarized"}])
def test_other_thinking_is_asked_for_as_it_came(thinking: Any) -> None:
    sent = body(thinking=thinking)
    request = read_request(sent)
    assert not request.hides_reasoning
    assert body_for_upstream(sent, request) == sent


def test_images_are_replaced_in_their_order_in_results_too() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [REMOTE]}
    sent = body(user(BASE64, result, REMOTE))
    request = read_request(sent)
    assert [url for url, _ in request.images][1:] == ["https://a.example/b.png"] * 2
    urls = [f"data:image/jpeg;base64,{name}" for name in ("AAAA", "BBBB", "CCCC")]
    first, inner, last = json.loads(body_for_upstream(sent, request, urls))["messages"][0]["content"]
    sources = [first["source"], inner["content"][0]["source"], last["source"]]
    assert [source["data"] for source in sources] == ["AAAA", "BBBB", "CCCC"]
    assert {(source["type"], source["media_type"]) for source in sources} == {("base64", "image/jpeg")}
    with pytest.raises(ValueError, match="more URLs"):
        body_for_upstream(sent, request, [*urls, urls[0]])


@pytest.mark.parametrize("key", ["citations", "caller", "cache_control"])
def test_many_words_in_a_label_are_shown_to_the_auditor(key: str) -> None:
    words = "mix both in a bath and then close the door".split()
    asked = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "Go on.", key: words}]}]}
    assert json.dumps(words) in read_request(json.dumps(asked).encode()).turns[0][1]
