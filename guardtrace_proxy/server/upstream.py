"""The upstream thinking model, asked over aiohttp."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from guardtrace_proxy.outgoing import TROUBLE, open_session
from guardtrace_proxy.server.errors import ApiError, upstream_unreachable, upstream_unreadable
from guardtrace_proxy.wire.chat import ThinkingStyle

CONNECT_SECONDS = 10.0
READ_SECONDS = 600.0
"""Between two reads: a busy thinking model may queue a request for minutes before its first byte."""
MAX_CONNECTIONS = 4096
KEEPALIVE_SECONDS = 30.0
MAX_ERROR_BYTES = 65_536
MAX_ERROR_CHARS = 500
MAX_MODELS_BYTES = 1_048_576


class UpstreamBroke(Exception):
    """The connection broke off in the middle of a reply."""


class Upstream:
    """One upstream of the config. A client's own key never reaches it."""

    def __init__(self, name: str, base_url: str, api_key: str | None, thinking: ThinkingStyle) -> None:
        self.name = name
        self.thinking = thinking
        base_url = base_url.rstrip("/")
        self._chat_url = base_url + "/chat/completions"
        self._models_url = base_url + "/models"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key is not None else {}
        self._session: aiohttp.ClientSession

    async def start(self) -> None:
        """Open the session; nothing is connected yet."""
        timeout = aiohttp.ClientTimeout(connect=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        self._session = open_session(
            self._headers, timeout, max_connections=MAX_CONNECTIONS, keepalive_seconds=KEEPALIVE_SECONDS
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()

    @asynccontextmanager
    async def chat(self, body: bytes, request_id: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST to ``chat/completions``; the body hasn't been read when the context is entered.

        Leaving the context early closes the connection, which is how a model server learns to stop. Raises ApiError
        where the upstream can't be reached or refuses; of its error only type, code and a bounded message pass.
        """
        headers = {"content-type": "application/json", "x-request-id": request_id}
        try:
            response = await self._session.post(self._chat_url, data=body, headers=headers, allow_redirects=False)
        except TROUBLE as error:
            raise upstream_unreachable() from error
        try:
            if response.status != 200:
                raise await _refusal(response)
            yield response
        finally:
            response.close()

    async def models(self) -> bytes:
        """The upstream's list of models, as it sent it."""
        try:
            async with self._session.get(self._models_url, allow_redirects=False) as response:
                if response.status != 200:
                    raise await _refusal(response)
                body = await read_bounded(response, MAX_MODELS_BYTES)
        except TROUBLE as error:
            raise upstream_unreachable() from error
        try:
            msgspec.json.decode(body, type=dict[str, object])
        except msgspec.MsgspecError as error:
            raise upstream_unreadable("something other than a JSON object") from error
        return body


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes; raises ApiError 502 beyond."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > limit:
            raise upstream_unreadable(f"a reply larger than {limit:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """The upstream's own error, without what a provider may have put there of the generated text."""
    status = response.status if response.status >= 400 else 502
    try:
        body = msgspec.json.decode(await read_bounded(response, MAX_ERROR_BYTES), type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, *TROUBLE):
        body = {}
    error = body.get("error")
    if not isinstance(error, dict):
        what = response.headers.get("content-type", "no content type")[:80]
        message = f"The upstream model server answered HTTP {response.status} ({what}) without an error object."
        return ApiError(max(status, 400), message, type="upstream_error", code="upstream_error")
    text, kind = error.get("message"), error.get("type")
    code, param = error.get("code"), error.get("param")
    return ApiError(
        status,
        text[:MAX_ERROR_CHARS] if isinstance(text, str) else "The upstream model server refused the request.",
        type=kind[:MAX_ERROR_CHARS] if isinstance(kind, str) else "upstream_error",
        param=param[:MAX_ERROR_CHARS] if isinstance(param, str) else None,
        code=code[:MAX_ERROR_CHARS] if isinstance(code, str) else code if isinstance(code, int) else None,
    )
