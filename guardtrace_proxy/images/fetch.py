"""Fetches a request's remote images: from URLs that the operator allows, at public addresses, under limits.

The address is checked where the socket for it is made, so it is the one that is connected to, whatever a name meant
before or will mean later. What goes wrong before a server was reached is told in one and the same way, or a caller
could learn which names and addresses there are behind the proxy.
"""

from __future__ import annotations

import re
import socket
from base64 import b64encode
from collections.abc import Callable, Sequence

import aiohttp
import anyio
import anyio.to_thread
from aiohttp.abc import AbstractResolver
from yarl import URL

from guardtrace_proxy.images.addresses import is_public_address
from guardtrace_proxy.images.allowed import AllowList, read_url
from guardtrace_proxy.images.decode import FORMATS, Budget, ImageError, ImageLimits, media_type_of
from guardtrace_proxy.outgoing import TROUBLE, open_session

MAX_REDIRECTS = 3
MAX_CONNECTIONS = 64
KEEPALIVE_SECONDS = 15.0
REDIRECTS = frozenset({301, 302, 303, 307, 308})
INSTEAD = "send the image as a data URL (data:image/png;base64,…)"

_REMOTE = re.compile(r"https?://", re.IGNORECASE)


def is_remote(url: str) -> bool:
    """Whether an image's URL is one that has to be fetched."""
    return _REMOTE.match(url) is not None


class FetchError(ImageError):
    """An image can't be fetched. ``reason`` is for the operator's log: more than the caller is told, and no text of
    the request's or the server's."""

    def __init__(self, field: str, message: str, reason: str) -> None:
        super().__init__(field, message)
        self.reason = reason


class AddressRefused(OSError):
    """The address isn't one of the public internet."""


class ImageFetcher:
    """Started and closed with the server.

    ``resolver`` and ``may_connect`` are for programs and tests that bring their own network; no setting reaches them.
    """

    def __init__(
        self,
        allowed: AllowList,
        timeout_ms: int,
        *,
        resolver: AbstractResolver | None = None,
        may_connect: Callable[[str], bool] = is_public_address,
    ) -> None:
        self._allowed = allowed
        self._timeout_ms = timeout_ms
        self._resolver = resolver
        self._may_connect = may_connect
        self._http: aiohttp.ClientSession

    async def start(self) -> None:
        """Open the session; nothing is connected yet."""
        self._http = open_session(
            {"accept": ", ".join(FORMATS)},
            aiohttp.ClientTimeout(total=None),  # one bound for all images, see fetch
            max_connections=MAX_CONNECTIONS,
            keepalive_seconds=KEEPALIVE_SECONDS,
            resolver=self._resolver,
            socket_factory=self._open_socket,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def fetch(self, images: Sequence[tuple[str, str]], limits: ImageLimits) -> dict[str, str]:
        """Fetch (URL, field) at once, each URL once; the data URLs of what was fetched, by URL.

        Raises:
            FetchError: one isn't allowed, can't be had, or isn't an image; or all together take too long.
            ImageError: they are over ``limits.max_bytes``.
        """
        fields: dict[str, str] = {}
        for url, field in images:
            fields.setdefault(url, field)
        starts = {url: self._start(url, field) for url, field in fields.items()}  # all, before anything is connected
        download = _Download(self._http, self._allowed, limits)
        found: dict[str, str] = {}
        failures: list[ImageError] = []

        async def fetch_one(url: str) -> None:
            try:
                found[url] = await download.get(starts[url], fields[url])
            except ImageError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        with anyio.move_on_after(self._timeout_ms / 1000):
            async with anyio.create_task_group() as tasks:
                for url in fields:
                    tasks.start_soon(fetch_one, url)
        if failures:
            raise failures[0]
        for url, field in fields.items():
            if url not in found:
                message = f"fetching the images took longer than {self._timeout_ms} ms: {INSTEAD}"
                raise FetchError(field, message, "timeout")
        return found

    def _start(self, text: str, field: str) -> URL:
        url = read_url(text)
        if url is None or not self._allowed.allows(url):
            message = f"images may not be fetched from this URL (the operator's images.allow_urls): {INSTEAD}"
            raise FetchError(field, message, "not allowed")
        return url

    def _open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """aiohttp connects this socket to just this address, for names and for addresses in URLs."""
        family, kind, protocol, _, place = address
        if not self._may_connect(str(place[0])):
            raise AddressRefused("the address isn't public")
        return socket.socket(family, kind, protocol)


class _Download:
    """The images of one request: they share the bytes."""

    def __init__(self, http: aiohttp.ClientSession, allowed: AllowList, limits: ImageLimits) -> None:
        self._http = http
        self._allowed = allowed
        self._bytes = Budget(limits)

    async def get(self, url: URL, field: str) -> str:
        """The data URL of the image at a URL that is allowed."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                response = await self._http.get(url, allow_redirects=False)
            except (*TROUBLE, ValueError) as error:
                raise _unreachable(field, error) from error
            try:
                if response.status not in REDIRECTS:
                    media_type = _check(response, field)
                    data = await self._read(response, field)
                    return await anyio.to_thread.run_sync(_data_url, media_type, data)
                url = self._next(response, field)
            except TROUBLE as error:
                message = "the image can't be fetched: the reply broke off"
                raise FetchError(field, message, type(error).__name__) from error
            finally:
                response.close()
        raise FetchError(field, f"the image's URL redirects more than {MAX_REDIRECTS} times", "redirects")

    def _next(self, response: aiohttp.ClientResponse, field: str) -> URL:
        location = response.headers.get("location", "")
        try:
            target = str(response.url.join(URL(location))) if location and location.isprintable() else ""
        except ValueError:
            target = ""
        url = read_url(target)
        if url is None or not self._allowed.allows(url):
            message = "the image's URL redirects to one that images may not be fetched from (images.allow_urls)"
            raise FetchError(field, message, "redirect not allowed")
        return url

    async def _read(self, response: aiohttp.ClientResponse, field: str) -> bytes:
        self._bytes.check_bytes(response.content_length or 0, field)
        chunks: list[bytes] = []
        while chunk := await response.content.readany():
            self._bytes.check_bytes(len(chunk), field)
            self._bytes.spend_bytes(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)


def _check(response: aiohttp.ClientResponse, field: str) -> str:
    """The media type of a reply that holds an image."""
    if response.status != 200:
        message = f"the image's server answered HTTP {response.status}"
        raise FetchError(field, message, f"HTTP {response.status}")
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        message = "the image's server compressed its reply although it was asked not to"
        raise FetchError(field, message, "content-encoding")
    media_type = media_type_of(response.headers.get("content-type", "").partition(";")[0].strip())
    if media_type is None:
        message = f"the image's server sent a content type other than {', '.join(FORMATS)}"
        raise FetchError(field, message, "content-type")
    return media_type


def _unreachable(field: str, error: Exception) -> FetchError:
    reason = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused):
        reason = AddressRefused.__name__
    return FetchError(field, f"the image can't be fetched: its server can't be reached. Otherwise {INSTEAD}", reason)


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(data).decode()}"
