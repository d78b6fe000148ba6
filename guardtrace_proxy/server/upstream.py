"""The upstream thinking model: what all have in common, and one that is asked over aiohttp."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Protocol

import aiohttp
import anyio
import msgspec
import structlog

from guardtrace_proxy.outgoing import TROUBLE, open_session
from guardtrace_proxy.server.asgi_io import Headers, Scope
from guardtrace_proxy.server.errors import (
    ApiError,
    upstream_silent,
    upstream_unauthorized,
    upstream_unreachable,
    upstream_unreadable,
    upstream_untrusted,
)
from guardtrace_proxy.server.forwarded import to_client, with_another_id
from guardtrace_proxy.server.upstream_reply import Source, UpstreamBroke, UpstreamReply, read_bounded
from guardtrace_proxy.wire.raw_json import NOT_JSON
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_proxy.wire.upstream_error import MAX_ERROR_CHARS

log = structlog.get_logger("guardtrace")

CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 4096
KEEPALIVE_SECONDS = 30.0
FIRST_RETRY_SECONDS = 0.2
"""At random down to half of it; doubled each time."""
MAX_ERROR_BYTES = 65_536
MAX_MODELS_BYTES = 1_048_576


class UpstreamForRequest(Protocol):
    """A model server as it is asked on behalf of one request."""

    thinking: ThinkingStyle

    def ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Source]:
        """POST to a dialect's path, until the context is left."""

    async def models(self, headers: Mapping[str, str]) -> tuple[bytes, Headers]:
        """The list of models, and the headers that pass with it."""


class ModelServer(Protocol):
    """One upstream: a server that is asked over HTTP, or the app that a middleware stands before."""

    def for_request(self, scope: Scope) -> UpstreamForRequest:
        """The same, on behalf of a client's request."""

    async def start(self) -> None:
        """Open what it needs."""

    async def aclose(self) -> None:
        """Close it."""


def own_key(header: str, api_key: str | None) -> dict[str, str]:
    """The header with the key that a model server asks for, if it asks for one."""
    if api_key is None:
        return {}
    return {header: f"Bearer {api_key}" if header == "authorization" else api_key}


class Upstream:
    """One upstream of the config. A client's own key never reaches it."""

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None,
        thinking: ThinkingStyle,
        *,
        ca_file: str | None = None,
        read_timeout_ms: int = 600_000,
        api_key_header: str = "authorization",
        retries: int = 0,
    ) -> None:
        self._retries = retries
        self.name = name
        self.thinking = thinking
        self._ca_file = ca_file
        self._base_url = base_url.rstrip("/")
        self._headers = own_key(api_key_header, api_key)
        self._read_seconds = read_timeout_ms / 1000
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        """Open the session; nothing is connected yet. Raises BadCaFile."""
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=self._read_seconds)
        self._session = open_session(
            self._headers,
            timeout,
            max_connections=MAX_CONNECTIONS,
            keepalive_seconds=KEEPALIVE_SECONDS,
            ca_file=self._ca_file,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()

    def for_request(self, scope: Scope) -> Upstream:
        """Itself: nothing of the client's request but body and headers counts."""
        return self

    @asynccontextmanager
    async def ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[UpstreamReply]:
        """POST to a path below the base URL; the reply's body hasn't been read when the context is entered.

        Leaving the context early closes the connection, which is how a model server learns to stop. Raises ApiError
        where the upstream can't be reached or refuses; of its error only type, code and a bounded message pass.
        """
        headers = {"content-type": "application/json", **headers}
        response = await self._reply("POST", path, headers, body)
        with closing(await self._accepted(response)) as reply:
            yield reply

    async def models(self, headers: Mapping[str, str]) -> tuple[bytes, Headers]:
        """The upstream's list of models, as it sent it, and the headers that pass with it."""
        response = await self._reply("GET", "/models", headers)
        with closing(await self._accepted(response)) as reply:
            return await models_in(reply), reply.limits

    async def _reply(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """The head of a reply; asked again where not a byte of one came. aiohttp's own timers begin when the body is
        written and again with each byte of a head, so an upstream that doesn't read, or drips, is told by ours."""
        url, pause = self._base_url + path, FIRST_RETRY_SECONDS
        for left in range(self._retries, -1, -1):
            try:
                with anyio.fail_after(self._read_seconds):
                    return await self._session.request(method, url, data=body, headers=headers, allow_redirects=False)
            except TROUBLE as error:
                if not left or not _is_worth_a_retry(error):
                    raise _no_reply(error) from error
                log.warning("upstream asked again", upstream=self.name, why=type(error).__name__)
            headers = with_another_id(headers)
            await anyio.sleep(pause * random.uniform(0.5, 1))
            pause *= 2
        raise AssertionError("unreachable")

    async def _accepted(self, response: aiohttp.ClientResponse) -> UpstreamReply:
        try:
            if response.status != 200:
                raise await _refusal(response, self._read_seconds)
            return UpstreamReply(response, self._read_seconds)
        except BaseException:
            response.close()
            raise


def _is_worth_a_retry(error: Exception) -> bool:
    """There was no connection, or it broke off before anything of a reply came; but not after a long wait."""
    if isinstance(error, (aiohttp.ServerTimeoutError, aiohttp.ClientSSLError)):
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the beginning of a head
    return isinstance(error, aiohttp.ClientOSError)


def _no_reply(error: Exception) -> ApiError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return upstream_untrusted()
    was_reached = not isinstance(error, aiohttp.ConnectionTimeoutError)
    return upstream_silent() if was_reached and isinstance(error, TimeoutError) else upstream_unreachable()


async def _refusal(response: aiohttp.ClientResponse, read_seconds: float) -> ApiError:
    try:
        with closing(UpstreamReply(response, read_seconds)) as reply:
            body = await read_bounded(reply, MAX_ERROR_BYTES)
    except (ApiError, UpstreamBroke):
        body = b""
    return refusal(response.status, response.headers.get("content-type", ""), to_client(response.headers), body)


async def models_in(reply: Source) -> bytes:
    """The body of a list of models, which is a JSON object; raises ApiError."""
    try:
        body = await read_bounded(reply, MAX_MODELS_BYTES)
        msgspec.json.decode(body, type=dict[str, object])
    except UpstreamBroke as error:
        raise upstream_unreadable("a list of models that broke off") from error
    except NOT_JSON as error:
        raise upstream_unreadable("something other than a JSON object") from error
    return body


def refusal(answered: int, content_type: str, headers: Headers, body: bytes) -> ApiError:
    """The upstream's own error, without what a provider may have put there of the generated text."""
    status = answered if 400 <= answered < 600 else 502
    limits = tuple(headers)
    if status == 401:
        return upstream_unauthorized(limits)
    try:
        content = msgspec.json.decode(body, type=dict[str, object])
    except NOT_JSON:
        content = {}
    error = content.get("error")
    if not isinstance(error, dict):
        what = content_type[:80] or "no content type"
        message = f"The upstream model server answered HTTP {answered} ({what}) without an error object."
        return ApiError(status, message, type="upstream_error", code="upstream_error", headers=limits)
    text, kind = error.get("message"), error.get("type")
    code, param = error.get("code"), error.get("param")
    return ApiError(
        status,
        text[:MAX_ERROR_CHARS] if isinstance(text, str) else "The upstream model server refused the request.",
        type=kind[:MAX_ERROR_CHARS] if isinstance(kind, str) else "upstream_error",
        param=param[:MAX_ERROR_CHARS] if isinstance(param, str) else None,
        code=code[:MAX_ERROR_CHARS] if isinstance(code, str) else code if isinstance(code, int) else None,
        headers=limits,
    )
