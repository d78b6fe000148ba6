"""The app that a middleware stands before, as an upstream: asked in this process, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio

from guardtrace_proxy.server.asgi_io import App, Headers, Scope, route_of
from guardtrace_proxy.server.errors import ApiError, upstream_unreadable
from guardtrace_proxy.server.forwarded import to_client
from guardtrace_proxy.server.inner_reply import InnerReply
from guardtrace_proxy.server.settings import ModelSettings
from guardtrace_proxy.server.upstream import MAX_ERROR_BYTES, models_in, own_key, refusal
from guardtrace_proxy.server.upstream_reply import UpstreamBroke, read_bounded

KEYS = (b"authorization", b"x-api-key")


class InnerApp:
    """The app behind the middleware. A client's own key never reaches it; ``api_key`` is the one that it asks for."""

    def __init__(self, app: App, settings: ModelSettings, api_key: str | None) -> None:
        self.app = app
        self.thinking = settings.thinking.as_style
        self.read_seconds = settings.read_timeout_ms / 1000
        self.own_key: Headers = [
            (name.encode(), value.encode()) for name, value in own_key(settings.api_key_header, api_key).items()
        ]
        """The header with the app's own key, if it has one."""

    def for_request(self, scope: Scope) -> InnerRequest:
        """The app as it is asked on behalf of one request."""
        return InnerRequest(self, scope)

    def with_own_key(self, scope: Scope) -> Scope:
        """The request as it came, but for the client's key."""
        headers = [(name, value) for name, value in scope["headers"] if name not in KEYS]
        return {**scope, "headers": [*headers, *self.own_key]}

    async def start(self) -> None:
        """Nothing to open: the server runs the app."""

    async def aclose(self) -> None:
        """Nothing to close."""


class InnerRequest:
    """Asks the app under a request's own scope, but with few of its headers and without its query."""

    def __init__(self, inner: InnerApp, scope: Scope) -> None:
        self.thinking = inner.thinking
        self._inner = inner
        self._scope = scope

    @asynccontextmanager
    async def ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[InnerReply]:
        """POST to a path below ``/v1``; the reply's body hasn't been read when the context is entered.

        Leaving the context early tells the app that its client has left, and cancels it if it goes on. Raises ApiError
        where the app fails or refuses; of its error only type, code and a bounded message pass.
        """
        async with self._asked("POST", "/v1" + path, body, headers) as reply:
            yield reply

    async def models(self, headers: Mapping[str, str]) -> tuple[bytes, Headers]:
        """The app's list of models, as it sent it, and the headers that pass with it."""
        async with self._asked("GET", "/v1/models", b"", headers) as reply:
            return await models_in(reply), reply.limits

    @asynccontextmanager
    async def _asked(
        self, method: str, route: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[InnerReply]:
        scope = self._inner_scope(method, route, body, headers)
        reply = InnerReply(self._inner.app, scope, body, self._inner.read_seconds)
        try:
            await reply.head()
            reply.limits = to_client(reply.headers)
            if reply.status != 200:
                raise await _refusal(reply)
            coding = reply.headers.get("content-encoding", "identity")
            if coding.strip().lower() not in ("", "identity"):
                raise upstream_unreadable(f"a reply compressed with {coding[:40]} although it was asked not to")
            yield reply
        finally:
            reply.close()
            # A client that has left cancels what stands here, but the app's end is waited for.
            with anyio.CancelScope(shield=True):
                await reply.over()

    def _inner_scope(self, method: str, route: str, body: bytes, headers: Mapping[str, str]) -> Scope:
        came = self._scope
        own: dict[bytes, bytes] = {name: value for name, value in came["headers"] if name == b"host"}
        own[b"accept-encoding"] = b"identity"
        if method == "POST":
            own |= {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
        own |= {name.encode(): value.encode() for name, value in headers.items()}
        path = str(came["path"]).removesuffix(route_of(came)) + route
        return {
            **came,
            # Of 2.3, an app listens for its client's leaving; of 2.4 it would go on to its next ``send``.
            "asgi": {**came["asgi"], "spec_version": "2.3"},
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [*own.items(), *self._inner.own_key],
            "extensions": {},
        }


async def _refusal(reply: InnerReply) -> ApiError:
    try:
        body = await read_bounded(reply, MAX_ERROR_BYTES)
    except (ApiError, UpstreamBroke):
        body = b""
    return refusal(reply.status, reply.content_type, reply.limits, body)
