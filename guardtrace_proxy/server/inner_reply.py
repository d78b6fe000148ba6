"""One reply of an app in this process: the app runs in a task of its own, and its body is read as it sends it."""

from __future__ import annotations

import asyncio

import structlog

from guardtrace_proxy.server.asgi_io import App, Headers, Message, Scope
from guardtrace_proxy.server.errors import upstream_failed, upstream_silent
from guardtrace_proxy.server.upstream_reply import Gathers, UpstreamBroke

log = structlog.get_logger("guardtrace")

MAX_UNREAD_BYTES = 65_536
"""Sent by the app and not yet read: beyond this its ``send`` waits."""
DISCONNECT_SECONDS = 1.0
"""How long an app may take to stop once it was told that its client has left; then its task is cancelled."""
CANCEL_SECONDS = 5.0
"""How long a cancelled app is waited for."""
LATE_MESSAGES = 16
"""What an app sends after its client has left is dropped so often, then ``send`` raises. Raising at once would leave
a generator suspended outside its own code, where only the garbage collector ends it, and the engine's work with it."""


class NobodyReads(OSError):
    """What ``send`` raises once the reply is closed, as ASGI says of a client that has left."""


class InnerReply:
    """Runs ``app`` for one request, whose body is ``body``. ``read_seconds`` bounds its silence.

    To be closed with ``close`` and then awaited with ``over``.
    """

    def __init__(self, app: App, scope: Scope, body: bytes, read_seconds: float) -> None:
        self.status = 0
        """0 until the head has come."""
        self.headers: dict[str, str] = {}
        self.content_type = ""
        self.limits: Headers = []
        self._body: bytes | None = body
        self._read_seconds = read_seconds
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._is_whole = False
        self._is_closed = False
        self._late = 0
        self._broke: str | None = None
        self._waiting_since: float | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._client_left = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(read_seconds, self._watch)
        # Not in a task group: an app that resists its cancellation must not hold up the request for ever.
        self._task = asyncio.create_task(self._run(app, scope))

    async def head(self) -> None:
        """Wait for status and headers; raises ApiError where none come."""
        try:
            while not self.status:
                await self._wait()
        except UpstreamBroke as error:
            raise (upstream_silent() if self._is_silent else upstream_failed()) from error

    async def read(self, gathers: Gathers | None = None) -> bytes:
        """The next bytes of the body, empty at its end; raises UpstreamBroke. ``gathers`` isn't asked: the app's own
        task is awake anyway."""
        while not self._unread:
            if self._is_whole:
                return b""
            await self._wait()
        data = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        self._room.set()
        return data

    def close(self) -> None:
        """Tell the app that its client has left, unless it has sent its whole reply; it is cancelled if it goes on."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        self._room.set()  # first: what waits in ``send`` is back in the app's own code when it is told
        self._client_left.set()
        if not self._is_whole:
            self._timer = self._loop.call_later(DISCONNECT_SECONDS, self._task.cancel)

    async def over(self) -> None:
        """Wait for the app's end after ``close``: as long as it works on after a whole reply, else within a bound."""
        limit = None if self._is_whole else DISCONNECT_SECONDS + CANCEL_SECONDS
        try:
            await asyncio.wait([self._task], timeout=limit)
        except asyncio.CancelledError:  # the server itself stops
            self._task.cancel()
            raise
        if self._task.done():
            self._timer.cancel()
        else:
            log.error("the server's app goes on although it was cancelled")

    @property
    def _is_silent(self) -> bool:
        return self._broke == "silent"

    async def _wait(self) -> None:
        if self._broke is not None:
            raise UpstreamBroke(self._broke)
        self._news.clear()
        self._waiting_since = self._loop.time()
        try:
            await self._news.wait()
        finally:
            self._waiting_since = None

    def _watch(self) -> None:
        since = self._waiting_since
        silent = 0.0 if since is None else self._loop.time() - since
        if silent < self._read_seconds:
            self._timer = self._loop.call_later(self._read_seconds - silent, self._watch)
            return
        self._broke = "silent"
        self._news.set()

    async def _run(self, app: App, scope: Scope) -> None:
        broke = "it returned before its reply was finished"
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:
            broke = type(error).__name__
            if not self._is_closed:
                log.exception("the server's app raised", error=broke)
        finally:
            if not self._is_whole and self._broke is None:
                self._broke = broke
            self._client_left.set()
            self._news.set()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._client_left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._is_closed:
            self._late += 1
            if self._late > LATE_MESSAGES:
                raise NobodyReads("the reply isn't read any more")
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.status:
            self._take_head(message)
        elif kind == "http.response.body" and self.status and not self._is_whole:
            self._take_body(message)
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")
        self._news.set()
        while self._unread_bytes > MAX_UNREAD_BYTES and not self._is_whole and not self._is_closed:
            self._room.clear()
            await self._room.wait()

    def _take_head(self, message: Message) -> None:
        headers: dict[str, str] = {}
        for name, value in message.get("headers", ()):
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.headers = headers
        self.content_type = headers.get("content-type", "")
        self.status = message["status"]

    def _take_body(self, message: Message) -> None:
        data = message.get("body", b"")
        if data:
            self._unread.append(data)
            self._unread_bytes += len(data)
        if not message.get("more_body", False):
            self._is_whole = True
            self._client_left.set()
