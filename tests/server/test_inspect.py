"""`check upstream` finds out how a model server writes its thinking, from one reply of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
import yaml

from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.inspect import MAX_TOKENS, Finding, inspect_upstream
from guardtrace_proxy.server.settings import ThinkingSettings, UpstreamSettings
from tests.server.scripted import DONE, SSE_HEAD, Server, chunk, http, model_server
from tests.tls import private_authority

USAGE = {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27}


def run(frames: Iterable[bytes], model: str | None = "thinker") -> tuple[Finding, Server]:
    sent = [SSE_HEAD, *frames]
    with model_server(lambda _: sent) as server:
        return inspect(server, model), server


def inspect(server: Server, model: str | None = None, max_tokens: int = MAX_TOKENS, **settings: Any) -> Finding:
    upstream = UpstreamSettings(base_url=server.url, **settings)
    return anyio.run(inspect_upstream, "default", upstream, {"UP": "up-key"}, model, max_tokens)


def words(text: str, field: str = "content") -> list[bytes]:
    return [chunk({field: word}) for word in text.split("|")]


END = [chunk({}, "stop"), DONE]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_a_reasoning_field(field):
    finding, server = run([*words("Let me |count.", field), *words("3"), *END])
    assert (finding.where, finding.config) == (f"field {field}", "{style: field}")
    assert (finding.starts_open, finding.finish_reason, finding.done) == (False, "stop", True)
    assert finding.events == 5
    assert finding.notes == []
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["stream"], body["stream_options"]) == ("thinker", True, {"include_usage": True})


@pytest.mark.parametrize(
    ("text", "where", "config"),
    [
        ("<thi|nk>Let me count.</th|ink>3", "inline, <think> … </think>", "{style: inline}"),
        ("Let me count.</th|ink>3", "inline, <think> … </think>", "{style: inline, starts_open: true}"),
        ("◁think▷Let me| count.◁/think▷3", "inline, ◁think▷ … ◁/think▷", "{style: inline}"),
        ("Let me| count.◁/think▷3", "inline, ◁think▷ … ◁/think▷", "{style: inline, starts_open: true}"),
        ("<think>It never closes", "inline, <think> … </think>", "{style: inline}"),
        (
            "One.</think> Later it writes <think> again.",
            "inline, <think> … </think>",
            "{style: inline, starts_open: true}",
        ),
    ],
)
def test_inline_tags_and_whether_they_start_open(text, where, config):
    finding, _ = run([*words(text), *END])
    assert (finding.where, finding.config) == (where, config)
    assert finding.starts_open is ("starts_open" in config)


@pytest.mark.parametrize(
    ("field", "text", "config"),
    [
        ("reasoning", "Let me", "{style: field}"),
        ("content", "<think>Let me", "{style: inline}"),
        ("content", "Let me.</think>It", "{style: inline, starts_open: true}"),
    ],
)
@pytest.mark.parametrize("end", [[chunk({}, "length"), DONE], []])
def test_what_was_seen_counts_however_the_reply_ended(field, text, config, end):
    finding, _ = run([*words(text, field), *end])
    assert (finding.config, finding.unknown) == (config, None)


@pytest.mark.parametrize("text", ["<think>a</think>b", "a</think>b", "a"])
def test_the_config_line_can_be_written_as_it_is(text):
    finding, _ = run([*words(text), *END])
    ThinkingSettings.model_validate(yaml.safe_load(finding.config))


def test_usage_is_named():
    usage = b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [], "usage": USAGE}).encode() + b"\n\n"  # fmt: skip
    finding, _ = run([*words("x", "reasoning"), chunk({}, "stop"), usage, DONE])
    assert finding.usage == "prompt_tokens 20, completion_tokens 7, total_tokens 27"
    finding, _ = run([*words("x", "reasoning"), *END])
    assert finding.usage == "none"


def test_no_thinking_is_said():
    finding, _ = run([*words("There are 3."), *END])
    assert (finding.where, finding.config, finding.starts_open) == ("none seen", "{style: auto}", False)
    assert finding.unknown is None
    assert "no thinking was seen" in finding.notes[0]


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([*words("Let me count, one"), chunk({}, "length"), DONE], "stopped at its length limit"),
        ([*words("Let me count, one"), chunk({}, "content_filter"), DONE], "finish_reason content_filter"),
        ([*words("Let me count, one"), DONE], "without a finish_reason"),
        ([], "without a finish_reason"),
        (END, "nothing was said in it"),
        ([*words(" \n"), *END], "nothing was said in it"),
        ([*words("3"), b"data: {oops\n\n", *END], "couldn't be read"),
    ],
)
def test_what_couldnt_be_found_out_is_no_line_to_paste(frames, why):
    finding, _ = run(frames)
    assert why in finding.unknown
    assert (finding.where, finding.starts_open, finding.config) == ("none seen", None, None)


def test_the_length_limit_is_what_was_asked_for():
    frames = [SSE_HEAD, *words("Let me count"), chunk({}, "length"), DONE]
    with model_server(lambda _: frames) as server:
        finding = inspect(server, "thinker", 9000)
    assert server.bodies[-1]["max_tokens"] == 9000
    assert "9000 tokens" in finding.unknown


def test_the_first_listed_model_is_asked_with_the_upstreams_own_key():
    def script(body: dict[str, Any]) -> Iterable[bytes]:
        if not body:
            return [http(200, json.dumps({"object": "list", "data": [{"id": "first"}, {"id": "second"}]}))]
        return [SSE_HEAD, *words("x", "reasoning"), *END]

    with model_server(script) as server:
        finding = inspect(server, api_key_env="UP")
    assert finding.model == "first"
    assert [path for path, _, _ in server.requests] == ["/v1/models", "/v1/chat/completions"]
    assert server.bodies[1]["model"] == "first"
    assert all(headers["authorization"] == "Bearer up-key" for _, headers, _ in server.requests)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (http(200, '{"object": "list", "data": []}'), "name one with --model"),
        (http(200, "<html>", "text/html"), "something other than a JSON object"),
        (http(404, '{"error": {"message": "Not here."}}'), "Not here."),
    ],
)
def test_no_list_of_models(reply, said):
    with model_server(lambda _: [reply]) as server, pytest.raises(ApiError, match=said):
        inspect(server)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (http(200, '{"choices": []}'), "didn't stream"),
        (http(401, '{"error": {"message": "Bad key."}}'), "doesn't take the proxy's own key"),
        (http(403, '{"error": {"message": "Not for you."}}'), "Not for you."),
        (b"", "can't be reached"),
    ],
)
def test_an_upstream_that_cant_be_asked(reply, said):
    with model_server(lambda _: [reply]) as server, pytest.raises(ApiError, match=said):
        inspect(server, "thinker")


def test_an_upstream_that_breaks_off():
    head = SSE_HEAD.replace(b"Connection: close", b"Content-Length: 99999")
    with model_server(lambda _: [head, *words("x")]) as server, pytest.raises(ApiError, match="broke off"):
        inspect(server, "thinker")


def test_nobody_listens():
    with model_server(lambda _: []) as server:
        pass
    with pytest.raises(ApiError, match="can't be reached"):
        inspect(server, "thinker")


def test_over_tls_with_a_private_authority(tmp_path):
    ca_file = tmp_path / "ca.pem"
    frames = [SSE_HEAD, *words("3"), *END]
    with model_server(lambda _: frames, private_authority(ca_file)) as server:
        assert inspect(server, "thinker", ca_file=str(ca_file)).done
        with pytest.raises(ApiError, match="isn't trusted"):
            inspect(server, "thinker")
