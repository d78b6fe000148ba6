"""Models behind OpenAI-compatible servers: thinking models, judges, oracles. The proxy's own ``wire`` reads
the replies.

Format: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardtrace_proxy.outgoing import TROUBLE, open_session
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Event, EventKind, Phase
from guardtrace_proxy.wire.tags import ThinkingStyle

T = TypeVar("T")
MAX_EVENT_BYTES = 8 << 20
MAX_ERROR_BYTES = 4096
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
LONGEST_PAUSE_SECONDS = 60.0
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}


class EndpointFailure(Exception):
    """A question got no reply. ``temporary``: asking again may help, after ``pause`` seconds if the server said so."""

    def __init__(self, message: str, *, temporary: bool, pause: float | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.pause = pause


class Price(BaseModel):
    """What a million tokens cost, in any currency."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: float = Field(0.0, ge=0)
    completion: float = Field(0.0, ge=0)


class Endpoint(BaseModel):
    """One model. ``request`` are further fields of each request: ``temperature``, ``max_tokens``, ``seed`` …

    ``thinking`` says where its thinking stands, as ``upstreams.*.thinking`` does for the proxy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base_url: str
    model: str
    api_key_env: str | None = None
    thinking: ThinkingStyle = ThinkingStyle()
    stream: bool = True
    concurrency: int = Field(8, ge=1, le=1024)
    attempts: int = Field(6, ge=1, le=100)
    timeout_s: float = Field(900.0, gt=0, allow_inf_nan=False)
    price: Price = Price()
    request: dict[str, Any] = {}

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("expected a URL that begins with http:// or https:// and, mostly, ends in /v1")
        return value.rstrip("/")

    @field_validator("request")
    @classmethod
    def _leaves_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = {"model", "messages", "stream", "stream_options", "n"} & value.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} can't be set here")
        return value

    @model_validator(mode="after")
    def _tags_fit(self) -> Endpoint:
        if (self.thinking.style == "custom") != (self.thinking.close is not None):
            raise ValueError("thinking: close is for style custom, which needs it")
        return self

    def settings(self) -> dict[str, Any]:
        """What of it changes its replies: for a step's manifest."""
        return self.model_dump(mode="json", exclude={"api_key_env", "concurrency", "attempts", "timeout_s", "price"})

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of so many tokens, in the price's currency."""
        return (prompt_tokens * self.price.prompt + completion_tokens * self.price.completion) / 1e6


@dataclass(frozen=True)
class ModelReply:
    """What a model said."""

    thinking: str
    answer: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Client:
    """Asks one endpoint, at most ``concurrency`` questions at a time; to be opened by ``async with``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        headers = {"content-type": "application/json"}
        if self.endpoint.api_key_env is not None:
            key = os.environ.get(self.endpoint.api_key_env)
            if not key:
                raise EndpointFailure(
                    f"{self.endpoint.name}: the environment variable {self.endpoint.api_key_env} holds no key",
                    temporary=False,
                )
            headers["authorization"] = f"Bearer {key}"
        timeout = aiohttp.ClientTimeout(total=self.endpoint.timeout_s, sock_connect=30)
        limit = self.endpoint.concurrency
        self._session = open_session(headers, timeout, max_connections=limit, keepalive_seconds=15)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> ModelReply:
        """The reply to ``messages``; tried again while that can help.

        Raises:
            EndpointFailure: refused, or every attempt failed.
        """
        endpoint = self.endpoint
        request = {"model": endpoint.model, "messages": messages, **endpoint.request, **fields}
        if endpoint.stream:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        return await self._ask("chat/completions", msgspec.json.encode(request), self._read)

    async def post(self, path: str, request: Mapping[str, Any]) -> bytes:
        """The reply's body of another of the server's routes (``moderations``); tried again while that can help.

        Raises:
            EndpointFailure: refused, or every attempt failed.
        """
        return await self._ask(path, msgspec.json.encode(request), aiohttp.ClientResponse.read)

    async def _ask(self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        endpoint = self.endpoint
        async with self._places:
            for attempt in range(1, endpoint.attempts + 1):
                try:
                    return await self._try(path, body, read)
                except EndpointFailure as failure:
                    if not failure.temporary or attempt == endpoint.attempts:
                        raise
                    pause = failure.pause
                await asyncio.sleep(_pause(attempt) if pause is None else pause)
        raise AssertionError("unreachable")

    async def _try(self, path: str, body: bytes, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        assert self._session is not None
        url = f"{self.endpoint.base_url}/{path}"
        try:
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                return await read(response)
        except TROUBLE as error:  # a timeout is an OSError, too, from Python 3.11 on
            raise self._failure(f"no whole reply ({type(error).__name__})", temporary=True) from error
        except asyncio.TimeoutError as error:
            raise self._failure(f"no whole reply in {self.endpoint.timeout_s:g} s", temporary=True) from error

    async def _read(self, response: aiohttp.ClientResponse) -> ModelReply:
        reading = _Reading(self.endpoint.thinking)
        if response.content_type == "text/event-stream":
            async for data in response.content.iter_any():
                reading.feed(data)
            reading.end()
        else:
            reading.whole(await response.read())
        if reading.trouble is not None:
            raise self._failure(reading.trouble, temporary=True)
        return reading.reply()

    async def _refusal(self, response: aiohttp.ClientResponse) -> EndpointFailure:
        said = (await response.content.read(MAX_ERROR_BYTES)).decode("utf-8", "replace")
        wanted = response.headers.get("retry-after", "")
        pause = min(float(wanted), LONGEST_PAUSE_SECONDS) if wanted.isdecimal() else None
        temporary = response.status in RETRIED
        return self._failure(f"HTTP {response.status}: {said[:300]}", temporary=temporary, pause=pause)

    def _failure(self, message: str, *, temporary: bool, pause: float | None = None) -> EndpointFailure:
        return EndpointFailure(f"{self.endpoint.name}: {message}", temporary=temporary, pause=pause)


class _Reading:
    """A reply as it comes in."""

    def __init__(self, style: ThinkingStyle) -> None:
        self._stream = ChatStream(style, include_usage=True, max_event_bytes=MAX_EVENT_BYTES)
        self._parts: dict[Phase, list[str]] = {Phase.THINKING: [], Phase.ANSWERING: []}
        self._usage: dict[str, Any] = {}
        self._finish: str | None = None
        self.trouble: str | None = None

    def feed(self, data: bytes) -> None:
        for event in self._stream.feed(data):
            self._take(event)

    def end(self) -> None:
        for event in self._stream.end():
            self._take(event)
        if self.trouble is None and self._finish is None:
            self.trouble = "the stream ended without a finish"

    def whole(self, body: bytes) -> None:
        self._take(self._stream.completion(body))

    def reply(self) -> ModelReply:
        """What came in."""
        usage = self._usage
        return ModelReply(
            "".join(self._parts[Phase.THINKING]).strip(),
            "".join(self._parts[Phase.ANSWERING]).strip(),
            self._finish,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _take(self, event: Event) -> None:
        if event.kind in (EventKind.ERROR, EventKind.MALFORMED):
            self.trouble = event.detail or "the server sent an error in mid-stream"
        self._usage = event.usage or self._usage
        for part in event.parts:
            self._finish = part.finish_reason or self._finish
            for segment in part.segments:
                if not segment.tag:
                    self._parts[segment.phase].append(segment.text)


def message(role: str, text: str, image: Path | None = None) -> dict[str, Any]:
    """One chat message; with an image its content is a list, image first, as the auditor's own prompt has it.

    Raises:
        OSError: the image can't be read.
        ValueError: it is of no kind that chat APIs take.
    """
    if image is None:
        return {"role": role, "content": text}
    mime = MIME.get(image.suffix.lower())
    if mime is None:
        raise ValueError(f"{image}: expected one of {', '.join(MIME)}")
    url = f"data:{mime};base64,{base64.b64encode(image.read_bytes()).decode()}"
    return {"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}


def _pause(attempt: int) -> float:
    return min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
