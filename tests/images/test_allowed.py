"""``images.allow_urls``: what a pattern means, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.images.allowed import MAX_URL_CHARS, AllowList, UrlPattern, read_url


def allowed(pattern: str, url: str) -> bool:
    read = read_url(url)
    return read is not None and AllowList([pattern]).allows(read)


YES = [
    ("https://a.example", "https://a.example"),
    ("https://a.example", "https://a.example/any/path.png?size=3#part"),
    ("https://a.example/", "HTTPS://A.Example:443/x"),
    ("http://a.example:8080/", "http://a.example:8080/x"),
    ("https://*.a.example/", "https://b.a.example/x"),
    ("https://*.a.example/", "https://c.b.a.example/x"),
    ("https://a.example/public/", "https://a.example/public/x.png"),
    ("https://a.example/public/", "https://a.example/other/../public/x.png"),
    ("https://a.example/public/", "https://a.example/%70ublic/x.png"),
    ("https://a.example/", "https://a.example/o/images%2Fcat.png"),
    ("https://bücher.example/", "https://xn--bcher-kva.example/x"),
    ("https://93.184.216.34/", "https://93.184.216.34/x"),
    ("https://[2606:4700::1111]/", "https://[2606:4700:0:0::1111]/x"),
]
NO = [
    ("https://a.example/", "http://a.example/"),
    ("https://a.example/", "https://b.example/"),
    ("https://a.example/", "https://x.a.example/"),
    ("https://a.example/", "https://a.example:8443/"),
    ("https://a.example/", "https://a.example./"),
    ("https://a.example/", "https://a.example.evil.example/"),
    ("https://a.example/", "https://evil.example/a.example/"),
    ("https://a.example/", "https://evil.example?https://a.example/"),
    ("https://a.example/", "https://user@a.example/"),
    ("https://a.example/", "https://user:password@a.example/"),
    ("https://a.example/", "https://@a.example/"),
    ("https://a.example/", "https://:@a.example/"),
    ("https://a.example/", "https://a.example@evil.example/"),
    ("https://a.example/", "https://a.example\\@evil.example/"),
    ("https://a.example/", "https://evil.example\\.a.example/"),
    ("https://a.example/", "https://evil.example#.a.example/"),
    ("https://a.example/", "https://a.exam\tple/"),
    ("https://a.example/", " https://a.example/"),
    ("https://a.example/", "https://a.example/x y"),
    ("https://a.example/", "https://a.example/\r\nHost: b"),
    ("https://a.example/", "https:a.example/"),
    ("https://a.example/", "//a.example/"),
    ("https://a.example/", "ftp://a.example/"),
    ("https://a.example/", "https://a.example:99999/"),
    ("https://a.example/", "https://a.example/" + "x" * MAX_URL_CHARS),
    ("http://a.example:8080/", "http://a.example/"),
    ("https://*.a.example/", "https://a.example/"),
    ("https://*.a.example/", "https://ba.example/"),
    ("https://*.a.example/", "https://.a.example/"),
    ("https://a.example/public/", "https://a.example/"),
    ("https://a.example/public/", "https://a.example/public"),
    ("https://a.example/public/", "https://a.example/publicity/x"),
    ("https://a.example/public/", "https://a.example/Public/x"),
    ("https://a.example/public/", "https://a.example/public/../secret/x"),
    ("https://a.example/public/", "https://a.example/public/%2e%2e/secret/x"),
    ("https://a.example/public/", "https://a.example/public/..%2fsecret/x"),
    ("https://a.example/public/", "https://a.example/public/%2e%2e%5csecret/x"),
    ("https://a.example/public/", "https://a.example/public/%252e%252e/secret/x"),
    ("https://a.example/public/", "https://a.example/public/..;/secret/x"),
    ("https://a.example/public/", "https://a.example//public/x"),
    ("https://93.184.216.34/", "https://1572395042/"),
    ("https://93.184.216.34/", "https://93.184.55330/"),
]


@pytest.mark.parametrize(("pattern", "url"), YES)
def test_what_a_pattern_allows(pattern: str, url: str) -> None:
    assert allowed(pattern, url)


@pytest.mark.parametrize(("pattern", "url"), NO)
def test_what_a_pattern_does_not_allow(pattern: str, url: str) -> None:
    assert not allowed(pattern, url)


IMPOSSIBLE = {
    "": "expected a URL such as",
    "a.example": "expected a URL such as",
    "ftp://a.example/": "expected a URL such as",
    "https://": "expected a URL such as",
    "https:///path/": "expected a URL such as",
    "*://a.example/": "expected a URL such as",
    "https://*": "expected a URL such as",
    "https://*/": "expected a URL such as",
    "https://*a.example/": "expected a URL such as",
    "https://a.*.example/": "expected a URL such as",
    "https://a.example/*": "expected a URL such as",
    "https://a.example:*/": "expected a URL such as",
    "https://a.example:0/": "expected a URL such as",
    "https://a.example:99999/": "expected a URL such as",
    "https://user@a.example/": "expected a URL such as",
    "https://a.example/ ": "expected a URL such as",
    "https://a.example\\b/": "expected a URL such as",
    "https://a.example/?x=1": "without query or fragment",
    "https://a.example/?": "without query or fragment",
    "https://a.example/#x": "without query or fragment",
    "https://a.example/public": "end it with /",
    "https://a.example/a%2Fb/": "end it with /",
    "https://*.example": "needs a domain behind it",
    "https://a..example/": "expected a URL such as",
    "https://a.example./": "expected a URL such as",
    "https://-a.example/": "expected a URL such as",
    "https://a%20b.example/": "expected a URL such as",
    f"https://{'a' * 64}.example/": "expected a URL such as",
    "https://localhost/": "this machine",
    "https://app.localhost/": "this machine",
    "https://*.8.8.8.8/": "no plain address",
    "https://2130706433/": "no plain address",
    "https://0x7f.1/": "no plain address",
    "https://127.1/": "no plain address",
    "https://127.0.0.1/": "isn't public",
    "https://10.0.0.1:8080/": "isn't public",
    "https://169.254.169.254/": "isn't public",
    "https://[::1]/": "isn't public",
    "https://[::ffff:10.0.0.1]/": "isn't public",
}


@pytest.mark.parametrize("pattern", IMPOSSIBLE)
def test_a_pattern_that_can_match_nothing_or_too_much_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError) as caught:
        UrlPattern.parse(pattern)
    assert IMPOSSIBLE[pattern] in str(caught.value)


def test_an_empty_list_allows_nothing() -> None:
    url = read_url("https://a.example/")
    assert url is not None
    assert not AllowList([]).allows(url)
    assert AllowList(["https://b.example/", "https://a.example/"]).allows(url)


label = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
host = st.lists(label, min_size=2, max_size=4).map(".".join).filter(lambda name: not name.endswith(".localhost"))
segments = st.lists(st.text("abcXYZ019-_~!$'()*+,;=:@ äß%/?#.\\", max_size=6), max_size=4).map("/".join)


@given(host, segments, segments)
def test_whatever_the_path_the_host_is_the_patterns_and_the_path_below_it(name: str, prefix: str, rest: str) -> None:
    pattern, url = f"https://{name}/public/", read_url(f"https://{name}/{prefix}/public/{rest}")
    if url is None or not AllowList([pattern]).allows(url):
        return
    assert (url.scheme, url.raw_host, url.port) == ("https", name, 443)
    assert url.raw_path.startswith("/public/")
    assert ".." not in url.path.split("/")
    assert url.raw_user is None


@given(host, host)
def test_a_wildcard_takes_all_hosts_below_and_no_others(name: str, other: str) -> None:
    wildcard = f"https://*.{name}/"
    assert allowed(wildcard, f"https://{other}.{name}/x")
    assert not allowed(wildcard, f"https://{name}/x")
    assert not allowed(wildcard, f"https://{name}.{other}z/x")
    assert allowed(f"https://{name}/", f"https://{other}/") == (name == other)


@given(st.text(max_size=40) | st.text("htps:/@.#?%\\[]*0aA:~\u3002", max_size=30).map("https://".__add__))
def test_any_text_is_read_or_refused(text: str) -> None:
    url = read_url(text)
    if url is not None:
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert "@" not in url.raw_authority
        assert read_url(str(url)) == url
    try:
        pattern = UrlPattern.parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert "localhost" not in pattern.host.split(".")[-1]
