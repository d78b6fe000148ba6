"""Remote images over real sockets: what is fetched, from where, and everything that is refused."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import pytest
import trustme

from guardtrace_proxy.images import AllowList, FetchError, ImageError, ImageFetcher, ImageLimits, resolve_images
from guardtrace_proxy.images.addresses import is_public_address
from guardtrace_proxy.images.decode import FORMATS
from guardtrace_proxy.images.fetch import MAX_REDIRECTS
from tests.images.serving import (
    HOST,
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

PNG = picture()
LONG_MS = 30_000
UNREACHABLE = "its server can't be reached"
Script = Callable[[str], Iterable[bytes]]


def fetched(
    urls: list[str],
    *patterns: str,
    limits: ImageLimits | None = None,
    timeout_ms: int = LONG_MS,
    names: Names | None = None,
    may_connect: Callable[[str], bool] = is_test_server,
) -> dict[str, str]:
    """What the fetcher makes of the URLs; fields are ``images[0]`` and so on."""

    async def run() -> dict[str, str]:
        resolver = names or Names(images_test=[LOOPBACK])
        fetcher = ImageFetcher(AllowList(patterns), timeout_ms, resolver=resolver, may_connect=may_connect)
        await fetcher.start()
        try:
            images = [(url, f"images[{index}]") for index, url in enumerate(urls)]
            return await fetcher.fetch(images, limits or ImageLimits())
        finally:
            await fetcher.aclose()

    return anyio.run(run)


def fetched_from(server: ImageServer, *paths: str, **options: object) -> list[str]:
    urls = [server.url(path) for path in paths]
    found = fetched(urls, server.url("/"), **options)  # type: ignore[arg-type]
    return [found[url] for url in urls]


def refused(script: Script, *paths: str, **options: object) -> ImageError:
    with image_server(script) as server, pytest.raises(ImageError) as caught:
        fetched_from(server, *(paths or ("/x.png",)), **options)
    assert HOST not in str(caught.value)
    assert LOOPBACK not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_becomes_a_data_url_of_the_very_bytes(kind: str) -> None:
    data = picture(FORMATS[kind])
    with image_server(lambda _: [image(data, kind)]) as server:
        [url] = fetched_from(server, "/a/b.img?size=2")
    assert url == f"data:{kind};base64,{base64.b64encode(data).decode()}"
    assert server.paths == ["/a/b.img?size=2"]


@pytest.mark.parametrize("content_type", ["IMAGE/PNG", "image/png; charset=binary", 'image/png;x="a;b"', " image/png "])
def test_parameters_and_case_of_the_content_type_do_not_matter(content_type: str) -> None:
    with image_server(lambda _: [image(PNG, content_type)]) as server:
        assert fetched_from(server, "/x")[0].startswith("data:image/png;base64,")


def test_chunked_replies_and_replies_without_a_length_are_read() -> None:
    half = len(PNG) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PNG[:half], PNG[half:]))
    replies = {
        "/chunked": [reply(200, content_type="image/png", transfer_encoding="chunked"), chunks, b"0\r\n\r\n"],
        "/open": [reply(200, content_type="image/png"), PNG[:half], PNG[half:]],
        "/identity": [image(PNG, content_encoding="identity")],
    }
    with image_server(replies.__getitem__) as server:
        assert len(set(fetched_from(server, *replies))) == 1


def test_the_request_carries_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    def script(path: str) -> Iterable[bytes]:
        return [redirect("/next") if path == "/x" else image(PNG)]

    with image_server(lambda path: [script(path)[0].replace(b"\r\n", b"\r\nSet-Cookie: a=b; Path=/\r\n", 1)]) as server:
        fetched_from(server, "/x")
    assert server.paths == ["/x", "/next"]
    for _, headers in server.requests:
        assert headers == {
            "host": f"{HOST}:{server.port}",
            "accept": "image/png, image/jpeg, image/webp, image/gif",
            "accept-encoding": "identity",
            "user-agent": "guardtrace-proxy",
        }


def test_many_images_come_at_once_and_each_url_once() -> None:
    together = threading.Barrier(6, timeout=20)

    def script(path: str) -> Iterable[bytes]:
        together.wait()  # passes only when all six are asked for at the same time
        return [image(picture(color=(int(path[1:]), 0, 0)))]

    with image_server(script) as server:
        urls = fetched_from(server, *[f"/{index % 6}" for index in range(12)])
    assert len(set(urls)) == 6
    assert urls[:6] == urls[6:]
    assert sorted(server.paths) == [f"/{index}" for index in range(6)]


def test_nothing_is_connected_to_where_one_url_is_not_allowed() -> None:
    names = Names(images_test=[LOOPBACK])
    with image_server(lambda _: [image(PNG)]) as server:
        for other in ("http://other.test/x", server.url("/private/x"), server.url().replace("http:", "https:")):
            with pytest.raises(FetchError, match="allow_urls") as caught:
                fetched([server.url("/public/x"), other], server.url("/public/"), names=names)
            assert (caught.value.field, caught.value.reason) == ("images[1]", "not allowed")
    assert (server.requests, names.asked) == ([], [])


# Addresses


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.2", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
)
def test_a_name_that_leads_to_an_inner_address_is_never_connected_to(address: str) -> None:
    with image_server(lambda _: [image(PNG)]) as server, pytest.raises(FetchError, match=UNREACHABLE) as caught:
        fetched_from(server, "/x", names=Names(images_test=[address]), may_connect=is_public_address)
    assert caught.value.reason == "AddressRefused"
    assert server.requests == []


def test_every_address_of_a_name_is_checked() -> None:
    answers = ["127.0.0.2", "::1", "10.0.0.1", LOOPBACK]
    with image_server(lambda _: [image(PNG)], address="0.0.0.0") as server:
        assert fetched_from(server, "/x", names=Names(images_test=answers))  # the last one may be connected to
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetched_from(server, "/x", names=Names(images_test=answers[:3]))
    assert len(server.requests) == 1


def test_a_name_that_changes_its_answer_gains_nothing() -> None:
    """What a check before the connection would have seen is another address than the one that is connected to."""
    seen: list[str] = []

    def may_connect(address: str) -> bool:
        seen.append(address)
        return is_test_server(address)

    with image_server(lambda _: [image(PNG)], address="0.0.0.0") as server:
        names = Names(images_test=[[LOOPBACK], ["127.0.0.2"]])
        assert fetched_from(server, "/x", names=names, may_connect=may_connect)
        assert (names.asked, seen) == ([HOST], [LOOPBACK])
        names = Names(images_test=[["127.0.0.2"], [LOOPBACK]])
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetched_from(server, "/x", names=names, may_connect=may_connect)
    assert len(server.requests) == 1


def test_an_address_in_the_url_is_checked_though_no_resolver_is_asked() -> None:
    class Everything(AllowList):
        def allows(self, url: object) -> bool:
            return True

    async def run(url: str) -> None:
        fetcher = ImageFetcher(Everything([]), LONG_MS)
        await fetcher.start()
        try:
            await fetcher.fetch([(url, "f")], ImageLimits())
        finally:
            await fetcher.aclose()

    with image_server(lambda _: [image(PNG)]) as server:
        for host in (LOOPBACK, "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0", "0x7f.1"):
            with pytest.raises(FetchError, match=UNREACHABLE):
                anyio.run(run, server.url(host=host))
    assert server.requests == []


def test_a_caller_cannot_tell_what_an_unreachable_name_leads_to() -> None:
    with image_server(lambda _: [image(PNG)]) as server:
        nobody = server.url().replace(str(server.port), "1")  # nothing listens there
        cases = [
            (server.url(), Names()),
            (server.url(), Names(images_test=["10.0.0.1"])),
            (server.url(), Names(images_test=["169.254.169.254"])),
            (nobody, Names(images_test=[LOOPBACK])),
            (server.url().replace("http:", "https:"), Names(images_test=[LOOPBACK])),
        ]
        messages = set()
        for url, names in cases:
            pattern = url.removesuffix("x.png")
            with pytest.raises(FetchError) as caught:
                fetched([url], pattern, names=names)
            messages.add(str(caught.value))
    assert len(messages) == 1


def test_the_certificate_is_asked_for_by_name_and_checked() -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST).configure_cert(context)  # by nobody whom the proxy trusts
    context.sni_callback = lambda _, name, __: asked.append(name)
    with image_server(lambda _: [image(PNG)], tls=context) as server:
        url = server.url().replace("http:", "https:")
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetched([url], url.removesuffix("x.png"))
    assert asked == [HOST]
    assert server.requests == []


def test_over_tls_an_image_comes_from_a_server_that_is_who_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "ca.pem"))
    with image_server(lambda _: [image(PNG)], tls=context) as server:
        url = server.url().replace("http:", "https:")
        assert fetched([url], url.removesuffix("x.png"))
    assert server.paths == ["/x.png"]


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/b", "b", "//images.test:PORT/b", "http://images.test:PORT/b#part"])
def test_a_redirect_is_followed(status: int, location: str) -> None:
    def script(path: str) -> Iterable[bytes]:
        return [image(PNG) if path == "/b" else redirect(location.replace("PORT", str(server.port)), status)]

    with image_server(script) as server:
        assert fetched_from(server, "/a")
    assert server.paths == ["/a", "/b"]


def test_redirects_are_bounded() -> None:
    def script(path: str) -> Iterable[bytes]:
        left = int(path[1:])
        return [redirect(f"/{left - 1}") if left else image(PNG)]

    with image_server(script) as server:
        assert fetched_from(server, f"/{MAX_REDIRECTS}")
        with pytest.raises(FetchError, match="redirects more than"):
            fetched_from(server, f"/{MAX_REDIRECTS + 1}")
        assert server.paths[-1] == "/1"


@pytest.mark.parametrize(
    "location",
    [
        "http://other.test/x",
        "http://127.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://images.test/x",
        "https://images.test:PORT/x",
        "http://user:password@images.test:PORT/x",
        "/../secret/x",
        "/public/..%2fsecret/x",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://images.test:PORT\\@other.test/x",
        "http://[broken",
        "",
    ],
)
def test_each_hop_is_again_under_the_allow_list(location: str) -> None:
    names = Names(images_test=[LOOPBACK], other_test=[LOOPBACK])
    with image_server(lambda _: [redirect(location.replace("PORT", str(server.port)))]) as server:
        with pytest.raises(FetchError, match="redirects to one") as caught:
            fetched([server.url("/public/x")], server.url("/public/"), names=names)
    assert "secret" not in str(caught.value)
    assert server.paths == ["/public/x"]
    assert set(names.asked) == {HOST}


def test_each_hops_address_is_checked() -> None:
    names = Names(images_test=[LOOPBACK], inner_test=["127.0.0.2"])
    with image_server(lambda _: [redirect(server.url("/x", "inner.test"))], address="0.0.0.0") as server:
        with pytest.raises(FetchError, match=UNREACHABLE):
            fetched([server.url("/a")], server.url("/"), server.url("/", "inner.test"), names=names)
    assert server.paths == ["/a"]


# Replies


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 407, 500, 503])
def test_other_answers_than_200_are_refused(status: int) -> None:
    body = b"" if status in (204, 304) else PNG
    error = refused(lambda _: [reply(status, body, content_type="image/png", content_length=len(body))])
    assert str(error) == f"the image's server answered HTTP {status}"


@pytest.mark.parametrize(
    "content_type", ["text/html", "image/svg+xml", "image/avif", "application/octet-stream", "image/", "", "x" * 999]
)
def test_other_content_types_are_refused(content_type: str) -> None:
    error = refused(lambda _: [image(PNG, content_type)])
    assert str(error).startswith("the image's server sent a content type other than image/png,")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "identity, gzip", "x"])
def test_compressed_replies_are_refused(encoding: str) -> None:
    assert "compressed" in str(refused(lambda _: [image(PNG, content_encoding=encoding)]))


def test_a_reply_that_breaks_off_is_refused() -> None:
    head = image(PNG)[: -len(PNG)]
    assert "broke off" in str(refused(lambda _: [head, PNG[:-5]]))
    chunked = reply(200, content_type="image/png", transfer_encoding="chunked")
    assert "broke off" in str(refused(lambda _: [chunked, b"5\r\nabc"]))
    assert UNREACHABLE in str(refused(lambda _: [b"not HTTP at all\r\n\r\n"]))
    assert UNREACHABLE in str(refused(lambda _: []))
    assert UNREACHABLE in str(refused(lambda _: [reply(200, x="y" * 100_000)]))


LIMITS = ImageLimits(max_bytes=50_000)


def endless() -> Iterable[bytes]:
    yield reply(200, content_type="image/png")
    while True:
        yield b"x" * 10_000


def test_bytes_are_limited_while_they_come() -> None:
    with image_server(lambda _: endless()) as server:
        with pytest.raises(ImageError, match="over 50000 bytes"):
            fetched_from(server, "/x", limits=LIMITS)
        assert server.left.wait(20)  # the connection was closed


def test_a_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    waiting = threading.Event()

    def script(path: str) -> Iterable[bytes]:
        yield reply(200, content_type="image/png", content_length=50_001)
        waiting.wait(20)

    assert "over 50000 bytes" in str(refused(script, limits=LIMITS))
    waiting.set()


def test_the_byte_limit_is_exact_and_that_of_all_images_together() -> None:
    with image_server(lambda path: [image(b"x" * int(path[1:]))]) as server:
        assert len(fetched_from(server, "/20000", "/30000", limits=LIMITS)) == 2
        with pytest.raises(ImageError, match="over 50000 bytes"):
            fetched_from(server, "/20000", "/30001", limits=LIMITS)
        assert fetched_from(server, *["/20000"] * 3, limits=LIMITS)  # one fetch; the decoding counts each


def test_time_is_limited_for_all_together_and_the_late_one_is_named() -> None:
    done = threading.Event()

    def script(path: str) -> Iterable[bytes]:
        yield reply(200, content_type="image/png", content_length=len(PNG))
        if path == "/slow":
            yield PNG[:10]
            done.wait(20)
        yield PNG

    error = refused(script, "/fast", "/slow", timeout_ms=3000)
    done.set()
    assert isinstance(error, FetchError)
    assert (error.field, error.reason) == ("images[1]", "timeout")
    assert "longer than 3000 ms" in str(error)


def test_a_server_that_never_answers_is_left_in_time() -> None:
    done = threading.Event()

    def script(path: str) -> Iterable[bytes]:
        done.wait(20)
        return []

    assert "longer than 300 ms" in str(refused(script, timeout_ms=300))
    done.set()


def test_the_first_failure_ends_the_others() -> None:
    asked = threading.Barrier(2, timeout=20)

    def script(path: str) -> Iterable[bytes]:
        asked.wait()
        return [reply(404)] if path == "/missing" else endless()

    with image_server(script) as server:
        with pytest.raises(ImageError) as caught:
            fetched_from(server, "/endless", "/missing", limits=ImageLimits(max_bytes=1 << 40))
        assert str(caught.value) == "the image's server answered HTTP 404"
        assert caught.value.field == "images[1]"
        assert server.left.wait(20)


# Fetched images and data URLs together


def resolved(urls: list[str], server: ImageServer, limits: ImageLimits) -> list[str]:
    async def run() -> list[str]:
        names = Names(images_test=[LOOPBACK])
        fetcher = ImageFetcher(AllowList([server.url("/")]), LONG_MS, resolver=names, may_connect=is_test_server)
        await fetcher.start()
        try:
            images = [(url, f"images[{index}]") for index, url in enumerate(urls)]
            return (await resolve_images(images, limits, fetcher)).data_urls
        finally:
            await fetcher.aclose()

    return anyio.run(run)


def test_fetched_images_and_data_urls_keep_their_order_and_share_the_limits() -> None:
    data = f"data:image/png;base64,{base64.b64encode(picture(color=(9, 9, 9))).decode()}"
    with image_server(lambda _: [image(PNG)]) as server:
        urls = [data, server.url("/x"), data]
        found = resolved(urls, server, ImageLimits(max_count=3))
        assert (found[0], found[2]) == (data, data)
        assert base64.b64decode(found[1].partition(",")[2]) == PNG
        for limits in (ImageLimits(max_count=2), ImageLimits(max_bytes=3 * len(PNG) - 1), ImageLimits(max_pixels=71)):
            before = len(server.requests)
            with pytest.raises(ImageError) as caught:
                resolved(urls, server, limits)
            assert caught.value.field == "images[2]"
            assert len(server.requests) - before == (0 if limits.max_count == 2 else 1)


def test_fetched_images_follow_the_decode_rule() -> None:
    replies = {
        "/lie": image(picture("JPEG"), "image/png"),
        "/cut": image(PNG[:40]),
        "/html": image(b"<html></html>"),
        "/none": image(b""),
    }
    with image_server(lambda path: [replies[path]]) as server:
        for path in replies:
            with pytest.raises(ImageError) as caught:
                resolved([server.url(path)], server, ImageLimits())
            assert caught.value.field == "images[0]"
