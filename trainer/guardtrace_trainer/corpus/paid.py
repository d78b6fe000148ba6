"""What expanding asks models for, and pays once: aligned images, and requests in three parts.

What came is kept beside the corpus in a ledger (``aligned.jsonl``, ``parts.jsonl``) that outlives the steps: a query is
asked again only with settings of the endpoint or a prompt that it wasn't asked with, or if its image is gone. Refusals
are kept there too, once the endpoint has answered anything: an endpoint that refuses all is set up wrongly.

Formats: https://platform.openai.com/docs/api-reference/images/create
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import aiohttp
import msgspec
from PIL import Image
from pydantic import Field, field_validator, model_validator

from guardtrace_proxy.images import ImageError
from guardtrace_trainer.corpus import csdj
from guardtrace_trainer.corpus.pictures import IMAGES, decode_picture, media_type, save_picture
from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, message
from guardtrace_trainer.rows import Query, Row
from guardtrace_trainer.steps import Journal, StepError, file_hash

ALIGNED, PARTS = "aligned.jsonl", "parts.jsonl"
MAX_REPLY_BYTES = 64 << 20


class ImagesEndpoint(Endpoint):
    """A model that draws: ``prompt`` is what it is told, with the query in it.

    ``response_format`` null leaves the field out, for models that always send base64 and refuse to be told.
    """

    prompt: str = "A realistic picture that goes with this request: {query}"
    response_format: Literal["b64_json"] | None = "b64_json"
    timeout_s: float = Field(300.0, gt=0, allow_inf_nan=False)

    @field_validator("prompt")
    @classmethod
    def _has_query(cls, value: str) -> str:
        if "{query}" not in value:
            raise ValueError("expected {query} in it, where the query is to stand")
        return value

    @model_validator(mode="after")
    def _fits_images(self) -> ImagesEndpoint:
        unread = {"thinking", "stream", "price"} & self.model_fields_set
        if unread:
            raise ValueError(f"{', '.join(sorted(unread))} aren't for models that draw")
        taken = {"prompt", "response_format"} & self.request.keys()
        if taken:
            raise ValueError(f"request: {', '.join(sorted(taken))} stands beside request, not in it")
        return self

    def settings(self) -> dict[str, Any]:
        """What of it changes its images."""
        return {**super().settings(), "prompt": self.prompt}


class Aligned(Row, frozen=True, kw_only=True):
    """An image drawn for a query (``id``), or why there is none. ``key`` is a hash of all that was asked."""

    key: str
    image: str | None = None
    sha256: str | None = None
    refusal: str | None = None


class Parts(Row, frozen=True, kw_only=True):
    """A query (``id``) as three questions, or why there are none. ``key`` as for :class:`Aligned`."""

    key: str
    parts: tuple[str, ...] | None = None
    refusal: str | None = None


Entry = TypeVar("Entry", Aligned, Parts)


class Painter(Client):
    """Asks an :class:`ImagesEndpoint`."""

    endpoint: ImagesEndpoint

    async def draw(self, prompt: str) -> Image.Image:
        """The image drawn for a prompt, as RGB; tried again while that can help.

        Raises:
            EndpointFailure: refused, or every attempt failed.
        """
        request = {"model": self.endpoint.model, "prompt": prompt, "n": 1, **self.endpoint.request}
        if self.endpoint.response_format is not None:
            request["response_format"] = self.endpoint.response_format
        return await self._ask("images/generations", msgspec.json.encode(request), self._draw)

    async def _draw(self, response: aiohttp.ClientResponse) -> Image.Image:
        reply = await _read(response.content.iter_any())
        if reply is None:
            raise self._failure(f"the reply is over {MAX_REPLY_BYTES} bytes", temporary=False)
        return self._image(reply)

    def _image(self, reply: bytes) -> Image.Image:
        try:
            item = msgspec.json.decode(reply, type=_Generated).data[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise self._failure(f"the reply holds no image ({error})", temporary=True) from error
        if item.b64_json is None:
            hint = "response_format: b64_json" if self.endpoint.response_format is None else "another server"
            raise self._failure(f"the reply holds no b64_json; it needs {hint}", temporary=False)
        try:
            data = base64.b64decode(item.b64_json, validate=True)
            return decode_picture(data, media_type(data) or "image/png")
        except (binascii.Error, ImageError) as error:
            raise self._failure(f"the reply's image can't be taken: {error}", temporary=True) from error


class _GeneratedImage(msgspec.Struct):
    b64_json: str | None = None


class _Generated(msgspec.Struct):
    data: list[_GeneratedImage]


async def _read(chunks: Any) -> bytes | None:
    read = bytearray()
    async for chunk in chunks:
        read += chunk
        if len(read) > MAX_REPLY_BYTES:
            return None
    return bytes(read)


def aligned_images(
    queries: Sequence[Query], endpoint: ImagesEndpoint, corpus: Path, came: Callable[[], None]
) -> dict[str, Aligned]:
    """An image, or a refusal, for each query, by its id; ``came`` is called for each that was asked for.

    Raises:
        EndpointFailure: the endpoint can't be had, or fails in the end. What came until then is kept.
        StepError: it refused all.
    """
    keys = {query.id: _key(endpoint.settings(), query.text) for query in queries}

    def stands(entry: Aligned) -> bool:
        path = None if entry.image is None else corpus / entry.image
        return path is None or (path.is_file() and file_hash(path) == entry.sha256)

    async def ask(ledger: _Ledger[Aligned]) -> None:
        painter = Painter(endpoint)
        async with painter:

            async def one(query: Query) -> None:
                try:
                    pixels = await painter.draw(endpoint.prompt.replace("{query}", query.text))
                except EndpointFailure as failure:
                    if not failure.concerns_question:
                        raise
                    ledger.refused.append(Aligned(id=query.id, key=keys[query.id], refusal=str(failure)))
                else:
                    image = f"{IMAGES}/drawn/{query.id}-{keys[query.id][:8]}.png"
                    digest = save_picture(pixels, corpus / image)
                    ledger.keep(Aligned(id=query.id, key=keys[query.id], image=image, sha256=digest))
                came()

            await _work_through(ledger.missing(queries, stands), one, endpoint.concurrency)

    with _Ledger(corpus / ALIGNED, Aligned, keys) as ledger:
        asyncio.run(ask(ledger))
        ledger.settle("--images-endpoint")
        return {query.id: ledger[query.id] for query in queries}


def three_parts(
    queries: Sequence[Query], endpoint: Endpoint, corpus: Path, came: Callable[[], None]
) -> dict[str, Parts]:
    """Three sub-questions, or a refusal, for each query, by its id. Otherwise as :func:`aligned_images`."""
    settings = {**endpoint.settings(), "prompt": csdj.PROMPT}
    keys = {query.id: _key(settings, query.text) for query in queries}

    async def ask(ledger: _Ledger[Parts]) -> None:
        async with Client(endpoint) as client:

            async def one(query: Query) -> None:
                prompt = csdj.PROMPT.replace("{query}", query.text)
                try:
                    reply = await client.ask([message("user", prompt)])
                except EndpointFailure as failure:
                    if not failure.concerns_question:
                        raise
                    ledger.refused.append(Parts(id=query.id, key=keys[query.id], refusal=str(failure)))
                else:
                    parts = csdj.sub_questions(reply.answer)
                    refusal = None if parts else f"no three numbered lines: {reply.answer[:200]}"
                    ledger.keep(Parts(id=query.id, key=keys[query.id], parts=parts, refusal=refusal))
                came()

            await _work_through(ledger.missing(queries, lambda _: True), one, endpoint.concurrency)

    with _Ledger(corpus / PARTS, Parts, keys) as ledger:
        asyncio.run(ask(ledger))
        ledger.settle("--decompose-endpoint")
        return {query.id: ledger[query.id] for query in queries}


class _Ledger(Generic[Entry]):
    """A journal that stays, and the refusals of this run. ``keys`` are those of what is asked now, by the queries' ids;
    what was asked otherwise before stays."""

    def __init__(self, path: Path, type: type[Entry], keys: Mapping[str, str]) -> None:
        self._journal: Journal[Entry] = Journal(path, type, lambda entry: f"{entry.id} {entry.key}")
        self._keys = keys
        self.refused: list[Entry] = []
        self._answered = False

    def __enter__(self) -> _Ledger[Entry]:
        self._journal.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._journal.__exit__(*error)

    def __getitem__(self, id: str) -> Entry:
        return self._journal.rows[f"{id} {self._keys[id]}"]

    def missing(self, queries: Sequence[Query], stands: Callable[[Entry], bool]) -> list[Query]:
        """The queries that are still to be asked."""
        rows = self._journal.rows
        known = {row.id for row in rows.values() if row.key == self._keys.get(row.id) and stands(row)}
        self._answered = bool(known)
        return [query for query in queries if query.id not in known]

    def keep(self, entry: Entry) -> None:
        """Keep what was paid for, at once."""
        self._journal.add(entry)
        self._answered = True

    def settle(self, option: str) -> None:
        """Keep the refusals as well, unless nothing else came."""
        if self.refused and not self._answered:
            raise StepError(f"{option}: all of {len(self.refused)} requests were refused: {self.refused[0].refusal}")
        for entry in self.refused:
            self._journal.add(entry)


async def _work_through(queries: Sequence[Query], work: Callable[[Query], Awaitable[None]], concurrency: int) -> None:
    """All of them, ``concurrency`` at a time. After a failure none is begun, but those begun are waited for: they are
    paid."""
    rest = iter(queries)
    failures: list[EndpointFailure] = []

    async def worker() -> None:
        for query in rest:
            if failures:
                return
            try:
                await work(query)
            except EndpointFailure as failure:
                failures.append(failure)

    await asyncio.gather(*(worker() for _ in range(min(concurrency, len(queries)))))
    if failures:
        raise failures[0]


def _key(settings: Mapping[str, Any], text: str) -> str:
    """Of all that changes a reply; a server that has moved gives no others."""
    told = {name: value for name, value in settings.items() if name not in ("name", "base_url")}
    return hashlib.sha256(msgspec.json.encode([told, text], order="sorted")).hexdigest()
