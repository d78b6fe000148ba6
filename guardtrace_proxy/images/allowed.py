"""``images.allow_urls``: the URLs that images may be fetched from.

A pattern is a scheme, a host, and if wanted a port and the beginning of a path: ``https://images.example.com``,
``https://*.example.com/``, ``http://example.com:8080/public/``. ``*.`` stands for one label or more, never for none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from yarl import URL

from guardtrace_proxy.images.addresses import is_public_address

MAX_URL_CHARS = 4096

_PATTERN = re.compile(r"(?P<scheme>https?://)(?P<below>\*\.)?(?P<rest>[^*]+)")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMERIC = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)")
"""A host of which some resolvers make an address."""
_AMBIGUOUS = re.compile(r"[\s\\]|^[^/?#]*//[^/?#]*@")
"""Spaces, backslashes, and a user or password, even an empty one."""
_STEPS_ASIDE = re.compile(r"/\.\.|%(2e|2f|5c|25)", re.IGNORECASE)
"""What a server may take for a step out of a path: ``..``, and dots, slashes and percent signs in disguise."""


def read_url(text: str) -> URL | None:
    """An absolute http or https URL without a user; None where it isn't one, or where two readers could differ."""
    if len(text) > MAX_URL_CHARS or not text.isprintable() or _AMBIGUOUS.search(text):
        return None
    try:
        url = URL(text).with_fragment(None)
        host, port = url.raw_host, url.port
    except ValueError:
        return None
    if url.scheme not in ("http", "https") or not host or not port:
        return None
    return url if ":" in host or (len(host) <= 253 and _HOST.fullmatch(host)) else None


@dataclass(frozen=True, slots=True)
class UrlPattern:
    """One entry of the list. ``path`` begins and ends with a slash; ``below``: hosts under ``host``, not itself."""

    scheme: str
    host: str
    port: int
    path: str
    below: bool

    @classmethod
    def parse(cls, text: str) -> UrlPattern:
        """Read a pattern; raises ValueError with what is wrong where no URL could match it, or too many would."""
        found = _PATTERN.fullmatch(text)
        url = read_url(found["scheme"] + found["rest"]) if found else None
        if found is None or url is None:
            raise ValueError("expected a URL such as https://images.example.com/ or https://*.example.com/public/")
        if url.raw_query_string or "?" in text or "#" in text:
            raise ValueError("expected a URL without query or fragment")
        if not url.raw_path.endswith("/") or _STEPS_ASIDE.search(url.raw_path):
            raise ValueError("a path is the beginning of one: end it with /, and leave out .. and encoded slashes")
        host, below = url.raw_host or "", found["below"] is not None
        _check_host(host, below)
        return cls(url.scheme, host, url.port or 0, url.raw_path, below)

    def matches(self, url: URL) -> bool:
        """Whether a URL from :func:`read_url` is one of this pattern's."""
        host = url.raw_host or ""
        if (url.scheme, url.port) != (self.scheme, self.port):
            return False
        if not (host.endswith(f".{self.host}") if self.below else host == self.host):
            return False
        return self.path == "/" or (url.raw_path.startswith(self.path) and not _STEPS_ASIDE.search(url.raw_path))


def _check_host(host: str, below: bool) -> None:
    if ":" in host or _NUMERIC.fullmatch(host):
        if below or not _is_canonical_address(host):
            raise ValueError("the host is no name and no plain address")
        if not is_public_address(host):
            raise ValueError("the address isn't public: images are never fetched from private, local or reserved ones")
        return
    if host.rpartition(".")[2] == "localhost":
        raise ValueError("images are never fetched from this machine")
    if below and "." not in host:
        raise ValueError("*. needs a domain behind it, such as *.example.com")


def _is_canonical_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class AllowList:
    """All patterns of the setting; an empty list allows nothing."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [UrlPattern.parse(pattern) for pattern in patterns]

    def allows(self, url: URL) -> bool:
        """Whether an image may be fetched from a URL that :func:`read_url` read."""
        return any(pattern.matches(url) for pattern in self._patterns)
