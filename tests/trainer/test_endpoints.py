"""Models behind endpoints: every dialect, streamed and whole; what is tried again, and what is not."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from guardtrace_trainer import endpoints
from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, message
from guardtrace_trainer.replies import ModelReply
from tests.trainer.scripted import Said, Scripted

THINKING = "Hm, a < b? I think so; “ja”."
ANSWER = "Yes: a < b, as 1 < 2. 🙂"


@contextmanager
def serving(said: Said | Callable[[dict[str, Any], int], Said]) -> Iterator[Scripted]:
    with Scripted(said if callable(said) else lambda body, number: said) as server:
        yield server


def ask(server: Scripted, messages: list[dict[str, Any]] | None = None, **fields: Any) -> ModelReply:
    async def main() -> ModelReply:
        async with Client(Endpoint.model_validate(server.endpoint(**fields))) as client:
            return await client.ask(messages or [message("user", "a < b?")])

    return asyncio.run(main())


def failure(server: Scripted, **fields: Any) -> EndpointFailure:
    with pytest.raises(EndpointFailure) as caught:
        ask(server, **fields)
    return caught.value


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts are noted, and hardly waited for."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(endpoints.asyncio, "sleep", note)
    return pauses


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", ["reasoning", "reasoning_content", "think", "kimi", "glm"])
def test_thinking_and_answer_come_apart_in_every_dialect(dialect, stream):
    with serving(Said(ANSWER, THINKING, dialect)) as server:
        assert ask(server, stream=stream) == ModelReply(THINKING, ANSWER, "stop", 11, 7)


@pytest.mark.parametrize("stream", [True, False])
def test_a_template_that_opens_the_thinking(stream):
    with serving(Said(ANSWER, THINKING, "closed only")) as server:
        reply = ask(server, stream=stream, thinking={"starts_open": True})
    assert (reply.thinking, reply.answer) == (THINKING, ANSWER)


@pytest.mark.parametrize("stream", [True, False])
def test_tags_of_ones_own(stream):
    said = Said(answer=f"Thought: {THINKING}[BEGIN FINAL RESPONSE]{ANSWER}")
    with serving(said) as server:
        style = {"style": "custom", "open": "Thought: ", "close": "[BEGIN FINAL RESPONSE]"}
        reply = ask(server, stream=stream, thinking=style)
    assert (reply.thinking, reply.answer) == (THINKING, ANSWER)


@pytest.mark.parametrize("stream", [True, False])
def test_thinking_that_never_ends_is_thinking(stream):
    said = Said(answer="<think>and on and on", finish="length")
    with serving(said) as server:
        assert ask(server, stream=stream) == ModelReply("and on and on", "", "length", 11, 7)


@pytest.mark.parametrize("stream", [True, False])
def test_a_vendors_own_fields_are_no_word_of_the_models(stream):
    extra = {"native_finish_reason": "STOP", "provider_note": {"text": "cached"}}
    with serving(Said(ANSWER, THINKING, extra=extra)) as server:
        reply = ask(server, stream=stream)
    assert (reply.thinking, reply.answer) == (THINKING, ANSWER)


def test_a_whole_reply_to_a_streaming_request_is_read():
    body = json.dumps(Said(ANSWER, THINKING).whole()).encode()
    with serving(Said(raw=body, raw_type="application/json")) as server:
        assert ask(server).answer == ANSWER


def test_what_is_sent():
    with serving(Said()) as server:
        ask(server, request={"temperature": 0.6, "max_tokens": 9})
        ask(server, stream=False)
    streamed, whole = server.bodies
    assert streamed == {
        "model": "m",
        "messages": [{"role": "user", "content": "a < b?"}],
        "temperature": 0.6,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "stream" not in whole


def test_the_image_goes_first_and_byte_for_byte(tmp_path):
    image = tmp_path / "a.JPG"
    image.write_bytes(b"\xff\xd8 any bytes")
    with serving(Said()) as server:
        ask(server, [message("system", "s"), message("user", "what?", image)])
    system, user = server.bodies[0]["messages"]
    assert system == {"role": "system", "content": "s"}
    picture, text = user["content"]
    kind, _, data = picture["image_url"]["url"].partition(";base64,")
    assert (kind, base64.b64decode(data), text) == (
        "data:image/jpeg",
        b"\xff\xd8 any bytes",
        {"type": "text", "text": "what?"},
    )


def test_an_image_of_no_known_kind(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tiff: expected one of \.png"):
        message("user", "", tmp_path / "a.tiff")


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", " k123\n")
    with serving(Said()) as server:
        ask(server, api_key_env="SOME_KEY")
        monkeypatch.delenv("SOME_KEY")
        assert "SOME_KEY holds no key" in str(failure(server, api_key_env="SOME_KEY"))
    assert [headers["authorization"] for headers in server.headers] == ["Bearer k123"]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_busy_server_is_asked_again(status, hurried):
    with serving(lambda body, number: Said(status=status) if number < 2 else Said("At last.")) as server:
        assert ask(server, attempts=3).answer == "At last."
    assert len(hurried) == 2
    assert 0.5 <= hurried[0] <= 1.0 <= hurried[1] <= 2.0


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 413, 422])
def test_a_refusal_is_final(status, hurried):
    with serving(Said(status=status, error="not\x1b[31m so")) as server:
        refused = failure(server, attempts=5)
    assert not refused.temporary
    assert str(refused) == f"m: HTTP {status}: not\x1b[31m so"
    assert (len(server.bodies), hurried) == (1, [])


def test_attempts_end(hurried):
    with serving(Said(status=503, error="x" * 5000)) as server:
        failed = failure(server, attempts=4)
    assert failed.temporary
    assert len(str(failed)) < 400
    assert (len(server.bodies), len(hurried)) == (4, 3)


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("wanted", "least", "most"),
    [
        ("7", 7, 7),
        ("900", 60, 60),
        (600, 60, 60),  # as a date
        ("0", 0.5, 1.0),
        (-600, 0.5, 1.0),
        ("soon", 0.5, 1.0),
        ("-3", 0.5, 1.0),
    ],
)
def test_retry_after_is_kept(wanted, least, most, hurried):
    busy = Said(status=429, headers={"retry-after": wanted if isinstance(wanted, str) else in_seconds(wanted)})
    with serving(lambda body, number: busy if number == 0 else Said()) as server:
        ask(server, attempts=2)
    assert least <= hurried[0] <= most


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (c if isinstance(c, bytes) else json.dumps(c).encode()) + b"\n\n" for c in chunks)


def chunk(finish: str | None = None, **delta: str) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("raw", "said", "temporary"),
    [
        (events(chunk(content="Ye")), "the stream ended without a finish", True),
        (events(chunk(content="Ye"), b"[DONE]"), "the stream ended without a finish", True),
        (events(chunk(content="Ye"))[:-20], "isn't JSON", True),
        (events(chunk(content="Ye"), {"error": {"message": "out of memory", "code": 500}}), r"\(500\): out of memory", True),
        (events(chunk(content="Ye"), {"error": {"message": "slow down", "code": 429}}), r"\(429\): slow down", True),
        (events(chunk(content="Ye"), {"error": {"message": "too long", "code": 400}}), r"\(400\): too long", False),
        (events({"error": "gone"}, b"[DONE]"), r"\(None\): gone", True),
        (events(chunk(content="Ye"), b"{{{", chunk("stop")), "isn't JSON", True),
        (events(b"[1]"), "isn't a JSON object", True),
    ],
)  # fmt: skip
def test_a_stream_that_breaks(raw, said, temporary):
    with serving(Said(raw=raw)) as server, pytest.raises(EndpointFailure, match=said) as caught:
        ask(server)
    assert caught.value.temporary is temporary
    assert caught.value.status == (None if temporary else 400)


@pytest.mark.parametrize(
    ("body", "said", "temporary"),
    [
        (b'{"choices": []}', "the reply has no choice", True),
        (b"<html>", "other than JSON", True),
        (b"\xff", "other than JSON", True),
        (b"{}", "isn't a chat completion", True),
        (b'{"error": {"code": 400, "message": "content filter"}}', r"\(400\): content filter", False),
        (b'{"error": {"code": 503, "message": "busy"}}', r"\(503\): busy", True),
    ],
)
def test_a_whole_reply_that_is_none(body, said, temporary):
    with serving(Said(raw=body, raw_type="application/json")) as server:
        with pytest.raises(EndpointFailure, match=said) as caught:
            ask(server, stream=False)
    assert caught.value.temporary is temporary
    assert caught.value.status == (None if temporary else 400)


def test_a_torn_stream_is_asked_again_from_the_beginning(hurried):
    torn = Said(raw=events(chunk(reasoning="Hm"), chunk(content="Ye")))
    with serving(lambda body, number: torn if number == 0 else Said("Yes.", "Hm.")) as server:
        assert ask(server, attempts=2) == ModelReply("Hm.", "Yes.", "stop", 11, 7)


@pytest.mark.parametrize("stream", [True, False])
def test_a_silent_server_times_out(stream):
    with serving(Said(wait=5)) as server:
        began = time.monotonic()
        late = failure(server, timeout_s=0.2, stream=stream)
    assert late.temporary
    assert str(late) == "m: no whole reply in 0.2 s"
    assert time.monotonic() - began < 3


def test_a_server_that_is_away():
    with serving(Said()) as server:
        pass
    gone = failure(server)
    assert gone.temporary
    assert "no whole reply (ClientConnectorError" in str(gone)


def test_no_more_at_a_time_than_is_allowed():
    with serving(Said(wait=0.02)) as server:

        async def main() -> None:
            async with Client(Endpoint.model_validate(server.endpoint(concurrency=3))) as client:
                await asyncio.gather(*(client.ask([message("user", "?")]) for _ in range(12)))

        asyncio.run(main())
    assert (len(server.bodies), server.busiest) == (12, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_url": "localhost:8000/v1"}, "begins with http"),
        ({"base_url": "http://"}, "begins with http"),
        ({"base_url": "http://h:99999999/v1"}, "begins with http"),
        ({"name": "a/b"}, "pattern"),
        ({"name": ""}, "pattern"),
        ({"tempreature": 1}, "extra"),
        ({"thinking": {"stlye": "field"}}, "nexpected keyword"),
        ({"thinking": {"style": "custom"}}, "needs close"),
        ({"thinking": {"style": "custom", "close": "</t>"}}, "needs open, or starts_open"),
        ({"thinking": {"style": "custom", "open": "<t>", "close": ""}}, "empty"),
        ({"thinking": {"open": "<t>"}}, "are for style custom"),
        ({"thinking": {"style": "field", "starts_open": True}}, "no effect"),
        ({"request": {"model": "x", "n": 2}}, "model, n can't be set here"),
        ({"concurrency": 0}, "greater than"),
        ({"timeout_s": float("inf")}, "finite"),
        ({"price": {"prompt": -1}}, "greater than"),
    ],
)
def test_settings_that_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        Endpoint.model_validate({"name": "m", "base_url": "http://h/v1", "model": "m", **fields})


def test_the_manifests_settings_hold_no_secrets_and_nothing_of_where_it_is_served():
    one = {"name": "m", "base_url": "http://a/v1", "model": "x", "api_key_env": "A", "concurrency": 2}
    other = one | {"base_url": "http://b:99/v1/", "api_key_env": None, "attempts": 2, "stream": False}
    assert Endpoint.model_validate(one).settings() == Endpoint.model_validate(other).settings()
    warmer = Endpoint.model_validate(one | {"request": {"temperature": 1}})
    assert warmer.settings() != Endpoint.model_validate(one).settings()


def test_cost():
    endpoint = Endpoint.model_validate(
        {"name": "m", "base_url": "http://h/v1", "model": "m", "price": {"prompt": 2, "completion": 10}}
    )
    assert endpoint.cost(1_000_000, 500_000) == 7.0
