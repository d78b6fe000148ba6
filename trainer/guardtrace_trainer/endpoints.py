"""Models behind OpenAI-compatible servers: thinking models, judges, oracles. The proxy's own ``wire`` reads
the replies.

Format: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from yarl import URL

from guardtrace_proxy.outgoing import TROUBLE, open_session
from guardtrace_proxy.wire.tags import ThinkingStyle
from guardtrace_trainer.replies import MAX_SHOWN, RETRIED, ModelReply, Reading

T = TypeVar("T")
MAX_ERROR_BYTES = 4096
LONGEST_PAUSE_SECONDS = 60.0
REFUSALS = frozenset({400, 403, 413, 422})
"""How servers say that they won't answer this question; other refusals are about the key, the credit, the model or the
address, and so about all questions that follow."""
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}


class EndpointFailure(Exception):
    """A question got no reply. ``temporary``: asking again may help, after ``pause`` seconds if the server said so.

    ``status`` is that of HTTP where the server answered with one, or refused with one in its reply's place.
    """

    def __init__(self, message: str, *, temporary: bool, pause: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.pause = pause
        self.status = status

    @property
    def concerns_question(self) -> bool:
        """Whether it is about this question alone; else going on would only collect failures."""
        return self.status in REFUSALS


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
        try:
            usable = value.startswith(("http://", "https://")) and URL(value).host is not None
        except ValueError:
            usable = False
        if not usable:
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
        thinking = self.thinking
        if "" in (thinking.open, thinking.close):
            raise ValueError("thinking: a tag can't be empty")
        misfit = thinking.misfit()
        if misfit is not None:
            raise ValueError(f"thinking: {misfit}")
        return self

    def settings(self) -> dict[str, Any]:
        """What of it changes its replies: for a step's manifest. Where the model is served isn't part of it, so that
        a run can go on after its server has moved."""
        return self.model_dump(mode="json", include={"name", "model", "thinking", "request"})

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of so many tokens, in the price's currency."""
        return (prompt_tokens * self.price.prompt + completion_tokens * self.price.completion) / 1e6


class Client:
    """Asks one endpoint, at most ``concurrency`` questions at a time; to be opened by ``async with``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        headers = {"content-type": "application/json"}
        if self.endpoint.api_key_env is not None:
            key = os.environ.get(self.endpoint.api_key_env, "").strip()
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
        except asyncio.TimeoutError as error:  # before the others: from Python 3.11 on it is an OSError, too
            raise self._failure(f"no whole reply in {self.endpoint.timeout_s:g} s", temporary=True) from error
        except TROUBLE as error:
            raise self._failure(f"no whole reply ({type(error).__name__}: {error})", temporary=True) from error

    async def _read(self, response: aiohttp.ClientResponse) -> ModelReply:
        reading = Reading(self.endpoint.thinking)
        if response.content_type == "text/event-stream":
            async for data in response.content.iter_any():
                reading.feed(data)
            reading.end()
        else:
            reading.whole(await response.read())
        if reading.trouble is not None:
            raise self._failure(reading.trouble, temporary=reading.refused is None, status=reading.refused)
        return reading.reply()

    async def _refusal(self, response: aiohttp.ClientResponse) -> EndpointFailure:
        said = (await response.content.read(MAX_ERROR_BYTES)).decode("utf-8", "replace")
        pause = _wanted_pause(response.headers.get("retry-after", ""))
        temporary = response.status in RETRIED
        message = f"HTTP {response.status}: {said[:MAX_SHOWN]}"
        return self._failure(message, temporary=temporary, pause=pause, status=response.status)

    def _failure(
        self, message: str, *, temporary: bool, pause: float | None = None, status: int | None = None
    ) -> EndpointFailure:
        return EndpointFailure(f"{self.endpoint.name}: {message}", temporary=temporary, pause=pause, status=status)


def message(role: str, text: str, image: Path | None = None) -> dict[str, Any]:
    """One chat message; with an image its content is a list, image first, as the auditor's own prompt has it.

    Raises:
        OSError: the image can't be read.
        ValueError: it is of no kind that chat APIs take.
    """
    if image is None:
        return {"role": role, "content": text}
    url = f"data:{mime_type(image)};base64,{base64.b64encode(image.read_bytes()).decode()}"
    return {"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]}


def mime_type(image: Path) -> str:
    """Of an image, by its name.

    Raises:
        ValueError: it is of no kind that chat APIs take.
    """
    found = MIME.get(image.suffix.lower())
    if found is None:
        raise ValueError(f"{image}: expected one of {', '.join(MIME)}")
    return found


def _wanted_pause(retry_after: str) -> float | None:
    """Seconds, from a number of them or a date; None where the header says nothing that can be used."""
    if retry_after.isdecimal():
        seconds = float(retry_after)
    else:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(seconds, LONGEST_PAUSE_SECONDS) if seconds > 0 else None


def _pause(attempt: int) -> float:
    return min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)
