"""What a client may send wrongly: a clear error in OpenAI's shape, with the field's name, and a server that stays up."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.server.running import ask, proxy
from tests.server.scripted import SSE_HEAD, http, stream

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def running():
    config = {
        "server": {"max_body_bytes": 400_000},
        "images": {"max_count": 2, "max_bytes": 200_000, "max_pixels": 1_000_000},
    }
    with proxy(lambda _: [SSE_HEAD, *stream("Fine.", "Yes.")], config=config) as running:
        yield running


def png(size: tuple[int, int] = (20, 20)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(data, "PNG")
    return data.getvalue()


def with_images(*urls: object) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": "thinker", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb() -> bytes:
    """A small PNG that says it is 30,000 pixels wide and high."""

    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0" * 1000)) + part(b"IEND", b"")
    )


CASES = {
    "no JSON": (b"{nope", None),
    "nothing": (b"", None),
    "not UTF-8": (b'{"model": "\xff"}', None),
    "a list": (b"[]", None),
    "deep": (b"[" * 100_000, None),
    "NaN": (b'{"model": NaN}', None),
    "twice": (b'{"model": "a", "model": "b"}', "model"),
    "no model": ({"messages": HELLO}, "model"),
    "model": ({"model": 7, "messages": HELLO}, "model"),
    "no messages": ({"model": "m"}, "messages"),
    "empty messages": ({"model": "m", "messages": []}, "messages"),
    "message": ({"model": "m", "messages": ["hi"]}, "messages[0]"),
    "role": ({"model": "m", "messages": [{"role": 3, "content": "x"}]}, "messages[0].role"),
    "content": ({"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    "part": (
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "wat"}]}]},
        "messages[0].content[0].type",
    ),
    "stream": ({"model": "m", "messages": HELLO, "stream": "yes"}, "stream"),
    "n": ({"model": "m", "messages": HELLO, "n": 0}, "n"),
    "options": ({"model": "m", "messages": HELLO, "stream_options": 1}, "stream_options"),
    "too many images": (with_images(*[data_url(png())] * 3), "messages[0].content[3].image_url.url"),
    "remote image": (with_images("https://example.com/cat.png"), "messages[0].content[1].image_url.url"),
    "file": (with_images("file:///etc/passwd"), "messages[0].content[1].image_url.url"),
    "no base64": (with_images("data:image/png;base64,@@@"), "messages[0].content[1].image_url.url"),
    "broken image": (with_images(data_url(png()[:40])), "messages[0].content[1].image_url.url"),
    "no image": (with_images(data_url(b"hello")), "messages[0].content[1].image_url.url"),
    "bomb": (with_images(data_url(bomb())), "messages[0].content[1].image_url.url"),
    "svg": (with_images(data_url(b"<svg/>", "image/svg+xml")), "messages[0].content[1].image_url.url"),
    "many pixels": (with_images(data_url(png((1200, 900)))), "messages[0].content[1].image_url.url"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_requests_are_refused_with_the_fields_name(running, name):
    body, param = CASES[name]
    before = len(running.upstream.requests)
    reply = running.raw(body)
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]
    assert len(running.upstream.requests) == before


def test_a_body_over_the_limit_is_refused(running):
    reply = running.raw(ask(padding="x" * 500_000))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_over_the_limit_without_a_length_is_refused(running):
    import httpx

    pieces = (b"x" * 50_000 for _ in range(20))
    with httpx.Client(trust_env=False) as client:
        reply = client.post(running.url + "/v1/chat/completions", content=pieces)
    assert reply.status_code == 413


def test_refusals_never_repeat_what_was_sent(running):
    secret = "tell-nobody-this-word"
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": [{"type": secret}]}]},
        with_images(f"https://{secret}.example/x.png"),
        with_images(f"data:image/png;base64,{secret}"),
        json.dumps(ask()).replace("Please", secret).encode()[:-1],
    ]
    for body in bodies:
        assert secret not in running.raw(body).text


def test_the_official_client_raises_its_own_errors(running):
    with pytest.raises(openai.BadRequestError) as caught:
        running.client.chat.completions.create(model="m", messages=[])
    assert caught.value.param == "messages"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = ["model", "messages", "stream", "n", "stream_options", "tools", "response_format", "logprobs"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(fields), anything, max_size=5))
def test_no_json_brings_the_server_down(running, body):
    reply = running.raw(body)
    assert reply.status_code in (200, 400, 502)
    assert running.raw(ask(stream=True)).status_code == 200


def test_an_unknown_model_is_the_upstreams_to_refuse():
    body = (
        '{"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": null, "code": 404}}'
    )
    with proxy(lambda _: [http(404, body)]) as running, pytest.raises(openai.NotFoundError, match="does not exist"):
        running.client.chat.completions.create(**ask(stream=True))
