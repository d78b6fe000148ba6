"""The auditor behind any OpenAI-compatible server.

On the path of every audit, so it is lean: aiohttp's own client and msgspec. Nothing is retried here, and a server
that is down is found out by the first audit.
"""

from __future__ import annotations

import asyncio
import string
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import anyio.to_thread
import msgspec

from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Trace, user_text
from guardtrace_proxy.auditor.protocol import (
    AuditorFailure,
    AuditorSettingsError,
    Depth,
    DoesNotFit,
    FailureKind,
)
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_proxy.auditor.reply import UnreadableReply, parse_reply
from guardtrace_proxy.auditor.window import GAP, Window, fit_turns
from guardtrace_proxy.images.fitting import fitted
from guardtrace_proxy.outgoing import TROUBLE, open_session
from guardtrace_proxy.policy.levels import Verdict

DEFAULT_CONTEXT = 8192
"""Tokens; the published model's ``max_length``."""
LEAST_CONTEXT = 256
REPLY_SHARE, TRACE_SHARE = 8, 4
"""At most an eighth of the context is kept free for the reply, at least a quarter of the rest for the
trace."""
MAX_CONNECTIONS = 100
KEEPALIVE_SECONDS = 4.0
"""Shorter than the five seconds after which uvicorn closes an idle connection, so that we don't run into
it."""
MAX_REPLY_BYTES = 4 * 1024 * 1024
BYTES_GROWN_BY_QUOTING = 2
"""Quoting of labels and breaking up of control tokens make a text at most twice as long."""

_LETTERS = (string.ascii_letters + " ").encode()


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


_read_completion = msgspec.json.Decoder(_Completion).decode


class OpenAIAuditor:
    """A guard model served over HTTP. See :class:`guardtrace_proxy.auditor.protocol.Auditor`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        depth: str = "annotate",
        timeout_ms: int = 5000,
        annotate_max_tokens: int = 512,
        max_context: int | None = None,
        system_prompt: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.name = model
        self.warnings = warnings
        self.escalate_at: float | None = None
        self.depth = depth
        self.annotate_max_tokens = annotate_max_tokens
        self.system_prompt = system_prompt or SYSTEM_PROMPT
        self.max_context = max_context or DEFAULT_CONTEXT
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._api_key = api_key
        self._timeout = timeout_ms / 1000
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        if self.max_context < LEAST_CONTEXT:
            raise AuditorSettingsError(
                f"auditor.max_context is {self.max_context} tokens, at least {LEAST_CONTEXT} are needed"
            )
        headers = {"content-type": "application/json"}
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        timeout = aiohttp.ClientTimeout(connect=self._timeout, sock_connect=self._timeout)  # the rest is the caller's
        self._http = open_session(
            headers, timeout, max_connections=MAX_CONNECTIONS, keepalive_seconds=KEEPALIVE_SECONDS
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_context - min(self.annotate_max_tokens, self.max_context // REPLY_SHARE)

    async def open(self, query: Query) -> OpenAISession:
        images = [await anyio.to_thread.run_sync(fitted, image.data_url, image.pixels) for image in query.images]
        return OpenAISession(self, query, images)

    async def complete(self, messages: list[Any]) -> tuple[str, bool]:
        """Ask once; the reply's text, and whether it stopped at its length limit.

        Raises:
            AuditorFailure: there is no reply.
        """
        body = msgspec.json.encode(
            {
                "model": self.name,
                "messages": messages,
                "temperature": 0,
                "max_tokens": self.annotate_max_tokens,
                "stream": False,
            }
        )
        try:
            completion = _read_completion(await self._post(body))
        except msgspec.MsgspecError as error:
            raise AuditorFailure(
                FailureKind.UNREADABLE, "the auditor's server didn't answer with a chat completion"
            ) from error
        if not completion.choices or not completion.choices[0].message.content:
            raise AuditorFailure(FailureKind.UNREADABLE, "the auditor's server answered without any text")
        choice = completion.choices[0]
        return choice.message.content or "", choice.finish_reason == "length"

    async def _post(self, body: bytes) -> bytes:
        if self._http is None:
            raise AuditorFailure(FailureKind.CANCELLED, "the auditor isn't started")
        try:
            response = await self._http.post(self._url, data=body, allow_redirects=False)
            try:
                if response.status != 200:
                    raise _refusal(response.status)
                return await _read_bounded(response.content)
            finally:
                response.close()
        except TROUBLE as error:
            raise _no_reply(error) from error

    async def aclose(self) -> None:
        if self._http is not None:
            http, self._http = self._http, None
            await http.close()


class OpenAISession:
    """One query under audit. ``images`` are (URL, tokens)."""

    def __init__(self, auditor: OpenAIAuditor, query: Query, images: Sequence[tuple[str, int]]) -> None:
        self._auditor = auditor
        self._system = _raw({"role": "system", "content": auditor.system_prompt})
        self._images = [_raw({"type": "image_url", "image_url": {"url": url}}) for url, _ in images]
        self._fixed_tokens = _tokens(auditor.system_prompt) + sum(tokens for _, tokens in images)
        limit = auditor.prompt_tokens - auditor.prompt_tokens // TRACE_SHARE
        if self._fixed_tokens > limit:
            raise DoesNotFit("messages", "the images are more than the auditor's context takes: send fewer")
        self._query = fit_turns(query.turns, lambda text: self._size(user_text(text, GAP, GAP)) <= limit)
        room = auditor.prompt_tokens - self._size(user_text(self._query, GAP, GAP))
        self.capacity = max(1, room // BYTES_GROWN_BY_QUOTING)
        self._window = Window()

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        if depth is not Depth.ANNOTATE:
            raise ValueError("depth label is not yet supported over HTTP")
        began = time.perf_counter()
        text = self._window.place(trace, self._build)
        written, truncated = await self._auditor.complete([self._system, self._user(text)])
        try:
            reply = parse_reply(written, truncated=truncated)
        except UnreadableReply as error:
            raise AuditorFailure(FailureKind.UNREADABLE, str(error)) from error
        elapsed = (time.perf_counter() - began) * 1000
        return Verdict(reply.level, analysis=reply.analysis, depth=depth.value, milliseconds=elapsed)

    async def aclose(self) -> None:
        self._images = []

    def _build(self, thinking: str, answer: str) -> str | None:
        text = defuse_control_tokens(user_text(self._query, thinking, answer))
        return text if self._size(text) <= self._auditor.prompt_tokens else None

    def _size(self, text: str) -> int:
        return self._fixed_tokens + _tokens(text)

    def _user(self, text: str) -> dict[str, Any]:
        if not self._images:
            return {"role": "user", "content": text}
        return {"role": "user", "content": [*self._images, {"type": "text", "text": text}]}


def _tokens(text: str) -> int:
    """At most so many tokens: words run to three letters a token, anything else to one a byte."""
    data = text.encode("utf-8", "surrogatepass")
    others = len(data.translate(None, delete=_LETTERS))
    return others + (len(data) - others) // 3 + 1


def _raw(value: Any) -> msgspec.Raw:
    """Encoded once, then copied into each request."""
    return msgspec.Raw(msgspec.json.encode(value))


def _refusal(status: int) -> AuditorFailure:
    kind = FailureKind.OVERLOADED if status in (429, 503) else FailureKind.REFUSED
    return AuditorFailure(kind, f"the auditor's server answered with HTTP status {status}")


def _no_reply(error: Exception) -> AuditorFailure:
    if isinstance(error, asyncio.TimeoutError):
        return AuditorFailure(FailureKind.TIMEOUT, "no connection to the auditor's server in time")
    return AuditorFailure(FailureKind.UNREACHABLE, f"the auditor's server can't be reached ({type(error).__name__})")


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await content.readany():
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise AuditorFailure(FailureKind.UNREADABLE, f"the auditor's reply is over {MAX_REPLY_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)
