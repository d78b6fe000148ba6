"""Responses over real sockets: streams stay well-formed whatever is taken out of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.server.dialects import PNG
from tests.server.running import Running, proxy
from tests.server.scripted import HEAD, SSE_HEAD, Script, http, paced
from tests.wire.response_events import Writing, content_of, reply, words
from tests.wire.well_formed import check_stream

MESSAGE = "This response was stopped by policy."
ASK: dict[str, Any] = {"model": "thinker", "input": "Please help."}
LEAK = "one two three four five six seven eight HARM and so on and on and on"


def streaming(writing: Writing) -> Script:
    return lambda _: [SSE_HEAD, *writing.frames]


def whole(writing: Writing, **more: Any) -> Script:
    return lambda _: [http(200, json.dumps(writing.whole(**more)))]


def post(running: Running, **more: Any) -> httpx.Response:
    return running.raw({**ASK, **more}, "/responses")


def received(running: Running, **more: Any) -> list[dict[str, Any]]:
    found = content_of(post(running, stream=True, **more).content)
    check_stream(found)
    return found


def test_a_benign_stream_is_byte_identical_and_nothing_is_stored() -> None:
    writing = reply("well then", "four it is")
    with proxy(streaming(writing)) as running:
        assert post(running, stream=True).content == writing.stream
        assert [path for path, _, _ in running.upstream.requests] == ["/v1/responses"]
        assert running.upstream.bodies == [{**ASK, "stream": True, "store": False}]


def test_the_helper_reads_a_benign_stream_to_its_end() -> None:
    with proxy(streaming(reply("well then", "four it is"))) as running:
        with running.client.responses.stream(**ASK) as events:
            kinds = [event.type for event in events]
            final = events.get_final_response()
    assert final.output_text == "four it is "
    assert kinds[-1] == "response.completed"


def test_a_cut_in_the_thinking_ends_with_the_message_as_an_item_of_its_own() -> None:
    with proxy(paced(reply(LEAK, "fine").frames[:-1])) as running:
        found = received(running)
    assert "HARM" not in json.dumps(found)
    last = found[-1]["response"]
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert [(item["type"], item["status"]) for item in last["output"]] == [
        ("reasoning", "incomplete"),
        ("message", "completed"),
    ]
    reasoning, message = last["output"]
    assert LEAK.startswith(reasoning["content"][0]["text"].strip())
    assert message["content"][0]["text"] == MESSAGE
    assert last["id"] == "resp_1"
    assert last["usage"]["output_tokens"] > 0
    assert found[-1]["guardtrace"] == {"action": "cut", "phase": "thinking", "level": 1.0, "usage_estimated": True}
    assert Response.model_validate(last).output_text == MESSAGE


def test_the_helper_reads_a_cut_stream_to_its_end() -> None:
    with proxy(streaming(reply("well then", LEAK))) as running:
        with running.client.responses.stream(**ASK) as events:
            seen = list(events)
    assert seen[-1].type == "response.incomplete"
    assert seen[-1].response.incomplete_details.reason == "content_filter"
    assert seen[-1].response.output_text.endswith(MESSAGE)
    assert "HARM" not in repr(seen)


def test_arguments_in_codes_of_characters_are_judged_as_what_they_say() -> None:
    codes = "".join(f"\\u{ord(char):04x}" for char in "HARM")
    writing = Writing().begin().call("run", ['{"cmd": "', codes[:9], codes[9:], '"}']).end()
    with proxy(streaming(writing)) as running:
        assert received(running)[-1]["response"]["status"] == "incomplete"


MEDIA = {
    "call": {"type": "image_generation_call", "id": "ig_0", "status": "completed", "result": "SEEN"},
    "part": {
        "type": "message",
        "id": "msg_0",
        "role": "assistant",
        "content": [{"type": "output_image", "image_url": "data:image/png;base64,SEEN"}],
    },
    "speech": {"type": "message", "id": "msg_0", "content": [{"type": "output_audio", "data": "SEEN"}]},
    "file": {"type": "vendor_item", "id": "v_0", "blob": PNG + "SEEN"},
}


@pytest.mark.parametrize("name", MEDIA)
def test_images_and_speech_never_leave(name: str) -> None:
    begun = Writing().begin().item("message", ["fine"])
    begun.add("response.output_item.done", output_index=1, item=MEDIA[name])
    with proxy(streaming(begun.end())) as running:
        found = received(running)
    assert "SEEN" not in json.dumps(found)
    assert (found[-1]["type"], "with an image or audio" in found[-1]["message"]) == ("error", True)
    begun.output.append(MEDIA[name])
    with proxy(whole(begun)) as running:
        answer = post(running)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreadable")
    assert "with an image or audio" in answer.text


@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("response.image_generation_call.partial_image", {"item_id": "ig_0", "partial_image_b64": "SEEN"}),
        ("response.output_audio.delta", {"item_id": "msg_0", "delta": "SEEN"}),
    ],
)
def test_neither_do_pieces_of_such(type: str, fields: dict[str, str]) -> None:
    begun = Writing().begin().item("message", ["fine"])
    begun.add(type, output_index=1, **fields)
    with proxy(streaming(begun.end())) as running:
        found = received(running)
    assert "SEEN" not in json.dumps(found)
    assert (found[-1]["type"], "with an image or audio" in found[-1]["message"]) == ("error", True)


def test_pieces_that_were_judged_are_judged_again_as_they_are_put_together() -> None:
    writing = Writing().begin()
    for piece in "MRAH HARM":
        writing.add("response.mcp_call_arguments.delta", item_id="mcp_0", output_index=0, delta=piece)
    with proxy(streaming(writing.item("message", ["fine"]).end())) as running:
        found = content_of(post(running, stream=True).content)
    assert "HARM" not in "".join(event.get("delta", "") for event in found)


def test_a_cut_at_the_last_verdict_keeps_the_upstreams_usage() -> None:
    with proxy(streaming(reply("", "HARM")), policy={"boundary": {"first": 400, "max": 400}}) as running:
        found = received(running)
    assert found[-1]["response"]["usage"]["input_tokens"] == 9
    assert "usage_estimated" not in found[-1]["guardtrace"]


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call"])
def test_an_open_call_is_never_completed(kind: str) -> None:
    writing = Writing().begin().item("message", words("let me see")).call("run", words(LEAK), kind).end()
    with proxy(paced(writing.frames[:-1])) as running:
        found = received(running)
    call = [event for event in found if event.get("output_index") == 1]
    assert [event["type"].rpartition(".")[2] for event in call[:2]] == ["added", "delta"]
    assert not [event for event in call if event["type"].endswith("done")]
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["message", "message"]


def test_a_call_that_was_done_before_the_cut_stays() -> None:
    writing = Writing().begin().call("run", ['{"a": 1}']).item("message", words(LEAK)).end()
    with proxy(streaming(writing)) as running:
        found = received(running)
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["function_call", "message", "message"]


@pytest.mark.parametrize("part", ["reasoning_text", "summary_text"])
def test_snapshots_share_the_fate_of_their_deltas(part: str) -> None:
    writing = Writing(final_ids=False).begin()
    writing.item("reasoning", words("one two three four HINT five six seven"), part).item(
        "message", words("fine")
    ).end()
    with proxy(streaming(writing), policy={"actions": {"potentially_harmful": "redact"}}) as running:
        found = received(running)
    text = json.dumps(found)
    assert "HINT" not in text
    assert found[-1]["type"] == "response.completed"
    said = "".join(
        event["delta"] for event in found if event["type"].endswith("text.delta") and event["output_index"] == 0
    )
    assert "[withheld by policy]" in said
    # The text's own event, its part, its item, and the response.
    assert text.count(json.dumps(said)[1:-1]) == 4
    assert found[-1]["response"]["usage"] == writing.events[-1]["response"]["usage"]


def test_withheld_thinking_leaves_its_empty_frame() -> None:
    with proxy(streaming(reply("a secret plan", "fine")), policy={"thinking": {"mode": "withhold"}}) as running:
        found = received(running)
    assert "secret" not in json.dumps(found)
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["reasoning", "message"]
    assert found[-1]["response"]["output"][1]["content"][0]["text"] == "fine "


def test_thinking_between_tags_is_closed_before_the_message() -> None:
    writing = Writing().begin().item("message", ["<think>", *words(LEAK)]).end()
    with proxy(streaming(writing)) as running:
        found = received(running)
    cut, message = found[-1]["response"]["output"]
    assert cut["content"][0]["text"].endswith("</think>")
    assert message["content"][0]["text"] == MESSAGE


def test_a_refusal_says_the_message_as_one() -> None:
    with proxy(streaming(reply(LEAK, "fine")), policy={"cut_shape": "refusal"}) as running:
        found = received(running)
    assert found[-1]["response"]["output"][-1]["content"] == [{"type": "refusal", "refusal": MESSAGE}]


def test_a_cut_with_an_error_is_the_clients_own_exception() -> None:
    with proxy(streaming(reply(LEAK, "fine")), policy={"cut_shape": "error"}) as running:
        with pytest.raises(openai.APIError, match="stopped by policy"):
            list(running.client.responses.create(**ASK, stream=True))
        found = content_of(post(running, stream=True).content)
    assert (found[-1]["type"], found[-1]["code"]) == ("error", "content_filter")
    with proxy(whole(reply(LEAK, "fine")), policy={"cut_shape": "error"}) as running:
        with pytest.raises(openai.BadRequestError, match="stopped by policy"):
            running.client.responses.create(**ASK)


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    writing = reply("well then", "four it is")
    with proxy(lambda _: [SSE_HEAD, *writing.frames[:-2]]) as running:
        with pytest.raises(openai.APIError, match="broke off"):
            list(running.client.responses.create(**ASK, stream=True))


def test_flags_are_marked_on_the_last_event() -> None:
    policy = {"actions": {"potentially_harmful": "flag"}}
    with proxy(streaming(reply("one HINT two", "fine")), policy=policy) as running:
        found = received(running)
    assert found[-1]["guardtrace"] == {"action": "flag", "phase": "thinking", "level": 0.5}
    assert [event for event in found if "guardtrace" in event] == [found[-1]]


def test_a_whole_reply_is_byte_identical_or_cut() -> None:
    with proxy(whole(reply("well then", "four it is"))) as running:
        assert post(running).content == json.dumps(reply("well then", "four it is").whole()).encode()
    with proxy(whole(reply(LEAK, "fine"))) as running:
        found = running.client.responses.create(**ASK)
        headers = post(running).headers
    assert (found.status, found.output_text) == ("incomplete", MESSAGE)
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "content_filter"
    assert len(found.output) == 1
    assert headers["x-guardtrace-action"] == "cut"


def test_a_whole_reply_is_redacted_and_stripped() -> None:
    writing = reply("one HINT two", "fine")
    with proxy(whole(writing), policy={"actions": {"potentially_harmful": "redact"}}) as running:
        output = post(running).json()["output"]
    assert output[0]["content"][0]["text"] == "[withheld by policy]"
    assert output[1]["content"][0]["text"] == "fine "
    with proxy(whole(reply("a plan", "fine")), policy={"reasoning_field": "strip"}) as running:
        output = post(running).json()["output"]
    assert output[0]["content"][0]["text"] == ""


def test_strings_that_nobody_knows_are_audited_and_go_with_a_cut() -> None:
    writing = Writing().begin()
    writing.add("response.vendor.note", note="HARM")
    with proxy(streaming(writing.item("message", ["fine"]).end())) as running:
        found = received(running)
    assert "HARM" not in json.dumps(found)
    assert found[-1]["type"] == "response.incomplete"


def encrypted() -> str:
    return "gAAAAABo" + "Zx9Kq3VbT7mLw2Rc" * 8


def reply_with_secret() -> Writing:
    writing = reply("well then", "fine")
    for event in writing.events:
        for item in (event.get("item"), *(event.get("response") or {}).get("output", ())):
            if item and item["type"] == "reasoning":
                item["encrypted_content"] = encrypted()
    return writing


def test_encrypted_reasoning_is_neither_asked_for_nor_passed_unless_the_operator_allows_it() -> None:
    include = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    with proxy(streaming(reply_with_secret())) as running:
        data = post(running, stream=True, include=include).content
        assert running.upstream.bodies[0]["include"] == ["message.output_text.logprobs"]
        refused = post(running, input=[{"type": "reasoning", "summary": [], "encrypted_content": encrypted()}])
    assert encrypted().encode() not in data
    assert refused.json()["error"]["param"] == "input[0].encrypted_content"
    check_stream(content_of(data))
    allowed = {"upstreams": {"default": {"allow_encrypted_reasoning": True}}}
    with proxy(streaming(reply_with_secret())) as running:
        config = {"upstreams": {"default": {"base_url": running.upstream.url, **allowed["upstreams"]["default"]}}}
        with proxy(streaming(reply_with_secret()), config=config) as open_one:
            assert post(open_one, stream=True, include=include).content == reply_with_secret().stream
            assert running.upstream.bodies[-1]["include"] == include


def test_encrypted_reasoning_is_taken_out_of_a_whole_reply_that_is_benign_otherwise() -> None:
    writing = reply_with_secret()
    with proxy(whole(writing)) as running:
        found = post(running).json()
    assert [item["type"] for item in found["output"]] == ["reasoning", "message"]
    assert encrypted() not in json.dumps(found)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": "conv_0"}, "conversation"),
        ({"prompt": {"id": "pmpt_0"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].type"),
    ],
)
def test_refusals_name_the_field(more: dict[str, Any], param: str) -> None:
    with proxy(whole(reply("", "fine"))) as running:
        answer = post(running, **more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert running.upstream.requests == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/resp_1"), ("DELETE", "/resp_1"), ("POST", "/resp_1/cancel")])
def test_what_the_provider_keeps_is_not_served(method: str, path: str) -> None:
    with proxy(whole(reply("", "fine"))) as running, httpx.Client(trust_env=False) as client:
        answer = client.request(method, running.url + "/v1/responses" + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
        assert running.upstream.requests == []


def test_an_upstream_that_refuses_late_says_so_in_the_stream() -> None:
    def script(_: Any) -> Iterator[bytes]:
        time.sleep(0.2)
        yield http(429, json.dumps({"error": {"message": "slow down", "type": "x", "code": "rate"}}))

    with proxy(script, config={"server": {"keepalive_ms": 20}}) as running:
        (found,) = content_of(post(running, stream=True).content)
    assert (found["type"], found["code"], found["message"]) == ("error", "rate", "slow down")


def test_a_reply_without_names_of_events_passes_as_it_is() -> None:
    data = reply("well then", "fine").stream.replace(b"event: ", b": ")
    plain = b"".join(line + b"\n" for line in data.split(b"\n")[:-1] if not line.startswith(b": "))
    with proxy(lambda _: [HEAD + b"Content-Type: text/event-stream\r\n\r\n", plain]) as running:
        assert post(running, stream=True).content == plain
