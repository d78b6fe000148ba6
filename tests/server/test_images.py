"""Remote images through the whole proxy: both sides get the same bytes, and what can't be had is a 400."""

from __future__ import annotations

import base64
import io
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from guardtrace_proxy.images import AllowList, ImageFetcher, decode_image
from guardtrace_proxy.images.held import BYTES_A_PIXEL
from tests.images.serving import (
    LOOPBACK,
    ImageServer,
    Names,
    image,
    image_server,
    is_test_server,
    picture,
    redirect,
    reply,
)
from tests.server.running import Running, proxy
from tests.server.scripted import DONE, SSE_HEAD, Script, by_word, chunk, judging, model_server, stream
from tests.waiting import eventually

PNG = picture(size=(40, 30))
FRAMES = stream("A small picture.", "Blue.")
PARAM = "messages[0].content[1].image_url.url"


def sideways() -> bytes:
    """A JPEG that is wider than high, and says that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(data, "JPEG", exif=exif)
    return data.getvalue()


def scans() -> bytes:
    """A small progressive JPEG of which each of very many scans has the decoder go over all pixels."""
    file = io.BytesIO()
    Image.new("L", (1000, 1000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + data[-2:]


def animated() -> bytes:
    data = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    return data.getvalue()


REPLIES = {
    "/x.png": image(PNG),
    "/moved": redirect("/x.png"),
    "/sideways": image(sideways(), "image/jpeg"),
    "/alpha": image(picture(color=(0, 0, 0, 0))),
    "/photograph": image(picture("JPEG", (3000, 2000)), "image/jpeg"),
    "/animated": image(animated(), "image/gif"),
    "/scans": image(scans(), "image/jpeg"),
    "/large": image(b"x" * 200_001),
    "/pixels": image(picture(size=(4000, 3000))),
    "/html": image(b"<html>", "text/html"),
    "/broken": image(PNG[:60]),
    "/away": redirect("http://169.254.169.254/latest/meta-data/"),
    "/missing": reply(404, content_length=0),
}


@contextmanager
def running_with_images(allowed: tuple[str, ...] = ("/",)) -> Iterator[tuple[Running, ImageServer]]:
    with image_server(lambda path: [REPLIES[path]]) as server:
        patterns = [server.url(path) for path in allowed] + ["http://inner.test/", "http://unknown.test/"]
        names = Names(images_test=[LOOPBACK], inner_test=["10.0.0.1"])
        fetcher = ImageFetcher(AllowList(patterns), 30_000, resolver=names, may_connect=is_test_server)
        limits = {"max_count": 12, "max_bytes": 200_000, "max_pixels": 8_000_000, "allow_urls": patterns}
        with proxy(lambda _: [SSE_HEAD, *FRAMES], config={"images": limits}, image_fetcher=fetcher) as running:
            yield running, server


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Running, ImageServer]]:
    with running_with_images() as both:
        yield both


def asking(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    content = [{"type": "text", "text": "What is this? é"}, *parts]
    return {"model": "thinker", "stream": True, "seed": 1.0, "messages": [{"role": "user", "content": content}]}


def images_of(request: dict[str, Any]) -> list[str]:
    parts = request["messages"][-1]["content"]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def test_model_and_auditor_get_the_very_bytes_that_were_fetched(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    body = asking(server.url("/moved"))
    got = running.raw(body)
    assert got.content == b"".join(FRAMES)
    data_url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    sent = running.upstream.bodies[-1]
    assert images_of(sent) == images_of(running.auditor.bodies[-1]) == [data_url]
    sent["messages"][0]["content"][1]["image_url"]["url"] = server.url("/moved")
    assert sent == body


def test_a_request_with_data_urls_alone_goes_as_it_came(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    fetched = len(server.requests)
    body = json.dumps(asking(f"data:image/png;base64,{base64.b64encode(PNG).decode()}"), indent=3).encode()
    assert running.raw(body).status_code == 200
    _, headers, sent = running.upstream.requests[-1]
    assert int(headers["content-length"]) == len(body)
    assert sent == json.loads(body)
    assert len(server.requests) == fetched


def test_several_images_keep_their_places(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    data_url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    assert running.raw(asking(server.url(), data_url, server.url("/sideways"), server.url())).status_code == 200
    remote = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    turned = f"data:image/jpeg;base64,{base64.b64encode(sideways()).decode()}"
    expected = [remote, data_url, turned, remote]
    assert images_of(running.upstream.bodies[-1]) == images_of(running.auditor.bodies[-1]) == expected


def test_of_a_responses_items_only_images_are_replaced(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    image = {"type": "input_image", "image_url": server.url()}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "content": [{"a": 1}]}
    items = [{"role": "user", "content": "See.", "output": ["x"]}, call, {"role": "user", "content": [image]}]
    assert running.raw({"model": "thinker", "stream": True, "input": items}, "/responses").status_code == 200
    image["image_url"] = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert running.upstream.bodies[-1]["input"] == items


def test_an_image_among_reasoning_is_refused(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    sent = len(running.upstream.requests)
    item = {"type": "reasoning", "summary": [], "content": [{"type": "input_image", "image_url": server.url()}]}
    got = running.raw({"model": "thinker", "input": [item, {"role": "user", "content": "See."}]}, "/responses")
    assert (got.status_code, got.json()["error"]["param"]) == (400, "input[0].content[0].type")
    assert len(running.upstream.requests) == sent


def test_the_clients_own_headers_and_key_stay_here(both: tuple[Running, ImageServer]) -> None:
    running, server = both
    headers = {"cookie": "a=b", "x-own": "secret", "referer": "http://chat.example/", "x-request-id": "r-1"}
    assert running.raw(asking(server.url()), headers=headers).status_code == 200
    assert set(server.requests[-1][1]) == {"host", "accept", "accept-encoding", "user-agent"}


REFUSED = {
    "/animated": "several frames",
    "/scans": "far too many scans",
    "/large": "over 200000 bytes",
    "/pixels": "over 8000000 pixels",
    "/html": "content type other than",
    "/broken": "broken or cut short",
    "/away": "redirects to one",
    "/missing": "answered HTTP 404",
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_cannot_be_had_is_refused_with_the_fields_name(both: tuple[Running, ImageServer], path: str) -> None:
    running, server = both
    before = len(running.upstream.requests)
    with pytest.raises(openai.BadRequestError, match=REFUSED[path]) as caught:
        running.client.chat.completions.create(**asking(server.url(path)))
    assert (caught.value.param, caught.value.code) == (PARAM, "invalid_image")
    assert len(running.upstream.requests) == before
    for hidden in ("images.test", "127.0.0.1", "169.254", path):
        assert hidden not in str(caught.value)


def test_a_data_url_of_very_many_scans_is_refused_with_the_fields_name(both: tuple[Running, ImageServer]) -> None:
    running, _ = both
    before = len(running.upstream.requests)
    got = running.raw(asking(f"data:image/jpeg;base64,{base64.b64encode(scans()).decode()}"))
    error = got.json()["error"]
    assert (got.status_code, error["param"], error["code"]) == (400, PARAM, "invalid_image")
    assert "far too many scans" in error["message"]
    assert len(running.upstream.requests) == before


def test_an_inner_address_and_a_name_that_leads_nowhere_read_the_same(both: tuple[Running, ImageServer]) -> None:
    running, _ = both
    inner = running.raw(asking("http://inner.test/x"))
    assert inner.status_code == 400
    assert "can't be reached" in inner.json()["error"]["message"]
    assert inner.json()["error"]["param"] == PARAM
    assert running.raw(asking("http://unknown.test/x")).json() == inner.json()
    assert "allow_urls" in running.raw(asking("http://other.test/x")).json()["error"]["message"]


def test_without_the_setting_remote_images_are_refused() -> None:
    with proxy(lambda _: [SSE_HEAD, *FRAMES]) as running:
        for url in ("https://example.com/cat.png", "http://127.0.0.1/", "HTTP://localhost/x", "https://"):
            got = running.raw(asking(url))
            error = got.json()["error"]
            assert (got.status_code, error["param"], error["code"]) == (400, PARAM, "invalid_image")
            assert "images.allow_urls" in error["message"]
        assert running.upstream.requests == []


def test_the_setting_alone_never_reaches_an_inner_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production: nothing but guardtrace.yaml says what may be fetched, and a name leads to this machine."""
    with image_server(lambda path: [REPLIES[path]]) as server:
        names = Names(images_test=[LOOPBACK])
        monkeypatch.setattr("aiohttp.connector.DefaultResolver", lambda **_: names)
        with proxy(lambda _: [SSE_HEAD, *FRAMES], config={"images": {"allow_urls": [server.url("/")]}}) as running:
            got = running.raw(asking(server.url()))
        assert (got.status_code, got.json()["error"]["code"]) == (400, "invalid_image")
        assert "images.test" in names.asked
        assert server.requests == []


def test_the_auditor_gets_a_smaller_copy_of_a_photograph_and_the_model_all_of_it(
    both: tuple[Running, ImageServer],
) -> None:
    running, server = both
    assert running.raw(asking(server.url("/photograph"))).status_code == 200

    def size(url: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size

    assert size(images_of(running.upstream.bodies[-1])[0]) == (3000, 2000)
    width, height = size(images_of(running.auditor.bodies[-1])[0])
    assert (width // 28) * (height // 28) <= 1280


def test_images_that_do_not_fit_the_auditor_are_refused(both: tuple[Running, ImageServer]) -> None:
    running, _ = both
    data = base64.b64encode(picture(size=(800, 800))).decode()
    with pytest.raises(openai.BadRequestError) as caught:
        running.client.chat.completions.create(**asking(*[f"data:image/png;base64,{data}"] * 10))
    assert caught.value.code == "does_not_fit_auditor"


# How long decoded images stay

LARGE = (1000, 1000)
LARGE_BYTES = BYTES_A_PIXEL * 1000 * 1000
LARGE_URL = f"data:image/png;base64,{base64.b64encode(picture(size=LARGE)).decode()}"


@dataclass
class Paused:
    """A reply of which only ``early`` choices begin before ``end``."""

    end: threading.Event = field(default_factory=threading.Event)

    def upstream(self, choices: int, early: int) -> Script:
        def script(_: dict[str, Any]) -> Iterator[bytes]:
            yield SSE_HEAD
            for index in range(choices):
                if index == early:
                    self.end.wait(30)
                for word in "All of this is quite fine and there is more of it".split():
                    yield chunk({"content": word + " "}, index=index)
            self.end.wait(30)
            for index in range(choices):
                yield chunk({}, "stop", index=index)
            yield DONE

        return script


@contextmanager
def streaming(body: dict[str, Any], choices: int = 1, early: int | None = None, **options: Any) -> Iterator[Running]:
    """The reply runs, and some of it was judged."""
    paused = Paused()
    with proxy(paused.upstream(choices, early or choices), **options) as running:
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=body, trust_env=False, timeout=30) as reply:
            came = reply.iter_bytes()
            data = b""
            try:
                while b"fine" not in data:
                    data += next(came)
                yield running
            finally:
                paused.end.set()
            assert b"[DONE]" in data + b"".join(came)
        assert eventually(lambda: running.app.service.budget.total == 0)


def held(running: Running) -> int:
    return running.app.service.budget.total


def test_pixels_are_gone_while_the_reply_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[weakref.ref[Image.Image]] = []

    def spying(*given: Any) -> Image.Image:
        pixels = decode_image(*given)
        decoded.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr("guardtrace_proxy.images.data_urls.decode_image", spying)
    with streaming(asking(LARGE_URL)) as running:
        assert eventually(lambda: [pixels() for pixels in decoded] == [None])
        assert 0 < held(running) < LARGE_BYTES
    assert images_of(running.auditor.bodies[-1])


def test_pixels_that_an_auditor_with_a_fallback_may_need_again_count() -> None:
    with model_server(judging(by_word)) as second:
        fallback = {"auditor": {"fallback": {"base_url": second.url}}}
        with streaming(asking(LARGE_URL), config=fallback) as running:
            assert held(running) >= LARGE_BYTES


def test_pixels_count_until_the_last_choice_has_its_session() -> None:
    with streaming({**asking(LARGE_URL), "n": 2}, choices=2, early=1) as running:
        assert held(running) >= LARGE_BYTES
    with streaming({**asking(LARGE_URL), "n": 2}, choices=2) as running:
        assert eventually(lambda: held(running) < LARGE_BYTES)


def test_a_choice_that_nobody_asked_for_is_judged_with_the_image() -> None:
    """By then the pixels were let go."""
    with streaming(asking(LARGE_URL), choices=2) as running:
        assert eventually(lambda: held(running) < LARGE_BYTES)
        assert eventually(lambda: len(running.auditor.bodies) > 1)
    assert all(images_of(body) for body in running.auditor.bodies if "What is this?" in str(body))


def test_what_was_fetched_counts_to_the_end() -> None:
    names = Names(images_test=[LOOPBACK])
    with image_server(lambda path: [REPLIES[path]]) as server:
        fetcher = ImageFetcher(AllowList([server.url("/")]), 30_000, resolver=names, may_connect=is_test_server)
        settings = {"images": {"allow_urls": [server.url("/")]}}
        body = asking(server.url("/photograph"))
        with streaming(body, config=settings, image_fetcher=fetcher) as running:
            size = len(base64.b64encode(picture("JPEG", (3000, 2000))))
            assert eventually(lambda: size <= held(running) < BYTES_A_PIXEL * 3000 * 2000)
