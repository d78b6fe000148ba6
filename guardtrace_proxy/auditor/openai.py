"""The auditor behind any OpenAI-compatible server, at its best behind vLLM's.

Nothing is retried here, and a server that is down is found out by the first audit.
"""

from __future__ import annotations

import string
import time
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from guardtrace_proxy.auditor.abilities import FIRST, LATER, Abilities, learn
from guardtrace_proxy.auditor.context import DEFAULT_CONTEXT, LEAST_CONTEXT, check_context, prompt_tokens, query_tokens
from guardtrace_proxy.auditor.guard_server import Completion, GuardServer
from guardtrace_proxy.auditor.labels import likeliest
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
from guardtrace_proxy.auditor.salts import Salts
from guardtrace_proxy.auditor.seen_images import ImageCheck
from guardtrace_proxy.auditor.served_labels import ServedLabels
from guardtrace_proxy.auditor.window import GAP, Window, check_shapes, fit_turns
from guardtrace_proxy.images.fitting import fitted
from guardtrace_proxy.policy.levels import Verdict

log = structlog.get_logger("guardtrace")

LONG_QUERY = 100_000
"""Characters from which on a query is fitted in a thread: it takes milliseconds."""
BYTES_GROWN_BY_QUOTING = 2
"""Quoting of labels and breaking up of control tokens make a text at most twice as long."""
START_SECONDS = 5.0
"""How long the start waits to be told what the server can do."""
RELEARN_SECONDS = 10.0
"""A server that refuses an audit is asked again what it can do, but not more often than this."""

_LETTERS = (string.ascii_letters + " ").encode()


class OpenAIAuditor:
    """A guard model served over HTTP. See :class:`guardtrace_proxy.auditor.protocol.Auditor`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        ca_file: str | None = None,
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
        self.annotate_max_tokens = annotate_max_tokens
        self.system_prompt = system_prompt or SYSTEM_PROMPT
        self.max_context = max_context or DEFAULT_CONTEXT
        self._reads_labels = depth != Depth.ANNOTATE.value
        self._server = GuardServer(base_url, ca_file=ca_file, api_key=api_key, timeout_ms=timeout_ms)
        self._image_check = ImageCheck(self._server, model)
        self._asking = anyio.Lock()
        self._abilities: Abilities | None = None
        self._was_vllm = False
        self._learned_at = 0.0
        self.salt = Salts().of

    async def start(self) -> None:
        check_context(self.max_context)
        await self._server.start()
        try:
            with anyio.fail_after(min(self._server.timeout, START_SECONDS)):
                found = await self.abilities()
        except (AuditorFailure, TimeoutError):
            return  # it is asked again before the first audit
        if self._reads_labels and found.labels is None:
            await self.aclose()
            raise AuditorSettingsError(_cant_read_labels(found))

    async def abilities(self) -> Abilities:
        """What the server can do beyond the standard; asked once.

        Raises:
            AuditorFailure: it can't be reached.
        """
        if self._abilities is None or self._should_ask_again():
            async with self._asking:
                if self._abilities is None or self._should_ask_again():
                    self._learned(await learn(self._server, self.name))
        assert self._abilities is not None
        return self._abilities

    def _should_ask_again(self) -> bool:
        """What was found may have been a server that was still starting, or a gateway's word for one that was away."""
        assert self._abilities is not None
        lacks = self._abilities.labels is None if self._reads_labels else self._was_vllm and not self._abilities.is_vllm
        return lacks and time.monotonic() - self._learned_at >= RELEARN_SECONDS

    def _learned(self, found: Abilities) -> None:
        if self._was_vllm and not found.is_vllm:
            log.warning("auditor server doesn't answer as vLLM any more", auditor=self.name, why=found.lacking)
        self._was_vllm |= found.is_vllm
        self._abilities = found
        self._learned_at = time.monotonic()
        if found.max_context is not None:
            self.max_context = min(self.max_context, max(found.max_context, LEAST_CONTEXT))

    async def labels(self) -> ServedLabels:
        """How labels are read; raises AuditorFailure where the server can't be reached or can't do it."""
        found = await self.abilities()
        if found.labels is None:
            raise AuditorFailure(FailureKind.REFUSED, _cant_read_labels(found))
        return found.labels

    @property
    def prompt_tokens(self) -> int:
        """Tokens that a prompt may have."""
        return prompt_tokens(self.max_context, self.annotate_max_tokens)

    async def open(self, query: Query) -> OpenAISession:
        check_shapes(query.images)
        images = [await anyio.to_thread.run_sync(fitted, image.data_url, image.pixels) for image in query.images]
        if sum(len(turn.text) for turn in query.turns) < LONG_QUERY:
            return OpenAISession(self, query, images)
        return await anyio.to_thread.run_sync(OpenAISession, self, query, images)

    async def ask(self, fields: dict[str, Any], salt: str, priority: int, images: int) -> Completion:
        """Ask once.

        Raises:
            AuditorFailure: there is no reply, or ``images`` images went in and the server doesn't count them.
        """
        extras = (await self.abilities()).extras(salt, priority)
        try:
            completion = await self._server.complete({"model": self.name, **fields, **extras})
        except AuditorFailure as failure:
            asked_lately = time.monotonic() - self._learned_at < RELEARN_SECONDS
            if failure.kind is FailureKind.REFUSED and extras and not asked_lately:
                self._abilities = None  # it may be another server now
            raise
        if images:
            await self._image_check.check(images, completion.usage)
            self._warn_of_images()
        return completion

    def _warn_of_images(self) -> None:
        warning = f"the auditor's server doesn't count prompt tokens: whether {self.name} sees images isn't checked"
        if self._image_check.is_blind and warning not in self.warnings:
            self.warnings += (warning,)

    async def aclose(self) -> None:
        await self._server.aclose()


def _cant_read_labels(found: Abilities) -> str:
    return (
        f"auditor.depth: label and cascade need a server that gives the labels' probabilities: {found.lacking}. "
        "Use depth: annotate, or serve the auditor with vLLM (`guardtrace auditor serve`)"
    )


class OpenAISession:
    """One query under audit. ``images`` are (URL, tokens)."""

    def __init__(self, auditor: OpenAIAuditor, query: Query, images: Sequence[tuple[str, int]]) -> None:
        self._auditor = auditor
        self._salt = auditor.salt(query.tenant)
        self._system = _raw({"role": "system", "content": auditor.system_prompt})
        self._images = [_raw({"type": "image_url", "image_url": {"url": url}}) for url, _ in images]
        self._fixed_tokens = _tokens(auditor.system_prompt) + sum(tokens for _, tokens in images)
        limit = query_tokens(auditor.prompt_tokens)
        if self._fixed_tokens > limit:
            raise DoesNotFit("messages", "the images are more than the auditor's context takes: send fewer")
        self._query = fit_turns(query.turns, lambda text: self._size(self._text(text, GAP, GAP)) <= limit)
        room = auditor.prompt_tokens - self._size(self._text(self._query, GAP, GAP))
        self.capacity = max(1, room // BYTES_GROWN_BY_QUOTING)
        self._window = Window()

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        began = time.perf_counter()
        text = self._window.place(trace, self._build)
        audit = self._label if depth is Depth.LABEL else self._annotate
        return await audit([self._system, self._user(text)], began)

    async def _label(self, messages: list[Any], began: float) -> Verdict:
        labels = await self._auditor.labels()
        probabilities = await labels.read(lambda fields: self._ask(fields, FIRST), messages)
        return Verdict(likeliest(probabilities), probabilities, depth=Depth.LABEL.value, milliseconds=_since(began))

    async def _annotate(self, messages: list[Any], began: float) -> Verdict:
        fields = {
            "messages": messages,
            "temperature": 0,
            "max_tokens": self._auditor.annotate_max_tokens,
            "stream": False,
        }
        completion = await self._ask(fields, LATER)
        written = completion.choices[0].message.content if completion.choices else None
        if not written:
            raise AuditorFailure(FailureKind.UNREADABLE, "the auditor's server answered without any text")
        try:
            reply = parse_reply(written, truncated=completion.choices[0].finish_reason not in ("stop", None))
        except UnreadableReply as error:
            raise AuditorFailure(FailureKind.UNREADABLE, str(error)) from error
        return Verdict(reply.level, analysis=reply.analysis, depth=Depth.ANNOTATE.value, milliseconds=_since(began))

    async def _ask(self, fields: dict[str, Any], priority: int) -> Completion:
        return await self._auditor.ask(fields, self._salt, priority, len(self._images))

    async def aclose(self) -> None:
        self._images = []

    def _build(self, thinking: str, answer: str) -> str | None:
        text = self._text(self._query, thinking, answer)
        return text if self._size(text) <= self._auditor.prompt_tokens else None

    def _text(self, query: str, thinking: str, answer: str) -> str:
        return defuse_control_tokens(user_text(query, thinking, answer))

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


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
