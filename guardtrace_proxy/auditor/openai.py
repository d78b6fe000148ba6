"""The auditor behind any OpenAI-compatible server, at its best behind vLLM's.

Nothing is retried here but a prompt that may have been too long, and a server that is down is found out by the first
audit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from guardtrace_proxy.auditor.abilities import FIRST, LATER, Abilities, count_tokens, learn
from guardtrace_proxy.auditor.context import DEFAULT_CONTEXT, LEAST_CONTEXT, check_context, prompt_tokens
from guardtrace_proxy.auditor.guard_server import BadRequest, Completion, GuardServer
from guardtrace_proxy.auditor.labels import likeliest
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError, Depth, FailureKind
from guardtrace_proxy.auditor.reply import UnreadableReply, parse_reply
from guardtrace_proxy.auditor.salts import Salts
from guardtrace_proxy.auditor.seen_images import ImageCheck
from guardtrace_proxy.auditor.seen_text import DropsText, TextCheck
from guardtrace_proxy.auditor.served_labels import ServedLabels
from guardtrace_proxy.auditor.served_prompt import ServedPrompt, likely_tokens
from guardtrace_proxy.auditor.window import check_shapes
from guardtrace_proxy.images.fitting import fitted
from guardtrace_proxy.policy.levels import Verdict

log = structlog.get_logger("guardtrace")

LONG_QUERY = 100_000
"""Characters from which on a query is fitted in a thread: it takes milliseconds."""
START_SECONDS = 5.0
"""How long the start waits to be told what the server can do."""
START_TRIAL_SECONDS = 30.0
"""How long it waits for a server that answers to read a long prompt."""
RELEARN_SECONDS = 10.0
"""A server that refuses an audit is asked again what it can do, but not more often than this."""
COUNT_SECONDS = 2.0
"""How long an opening waits for the server to count a long query."""

Asked = tuple[list[Any], int]
"""The messages of an audit, and how many tokens its reply may have."""


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
        self.text_check = TextCheck(self._server, model)
        self._asking = anyio.Lock()
        self._abilities: Abilities | None = None
        self._was_vllm = False
        self._learned_at = 0.0
        self._is_started = False
        self.salt = Salts().of

    async def start(self) -> None:
        check_context(self.max_context)
        await self._server.start()
        await self._look()
        self._is_started = True

    async def _look(self) -> None:
        """Find out, as far as the server is there, what can be done with it."""
        try:
            with anyio.fail_after(min(self._server.timeout, START_SECONDS)):
                found = await self.abilities()
        except (AuditorFailure, TimeoutError):
            return  # it is asked again before the first audit
        if self._reads_labels and found.labels is None:
            await self.aclose()
            raise AuditorSettingsError(_cant_read_labels(found))
        try:
            with anyio.move_on_after(START_TRIAL_SECONDS):
                await self._check_text(found)
        except DropsText as failure:
            await self.aclose()
            raise AuditorSettingsError(str(failure)) from failure
        except AuditorFailure:
            return  # the first audit tries again

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
        return lacks and not self._learned_lately()

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
            session = OpenAISession(self, query, images)
        else:
            session = await anyio.to_thread.run_sync(OpenAISession, self, query, images)
        await session.measure()
        return session

    async def count(self, messages: Sequence[Any]) -> int | None:
        """Tokens of a prompt as the server counts them, None where it can't be asked."""
        if self._abilities is None or not self._abilities.is_vllm:
            return None
        with anyio.move_on_after(COUNT_SECONDS):
            return await count_tokens(self._server, self.name, messages)
        return None

    async def ask(self, fields: dict[str, Any], salt: str, priority: int, images: int) -> Completion:
        """Ask once. A server that refuses it may be another one now, which the next audit finds out; but not where it
        calls the request bad: nobody is to wait for what a client can bring about.

        Raises:
            AuditorFailure: there is no reply, or ``images`` images went in and the server doesn't count them.
        """
        found = await self.abilities()
        await self._check_text(found)
        extras = found.extras(salt, priority)
        try:
            completion = await self._server.complete({"model": self.name, **fields, **extras})
        except AuditorFailure as failure:
            is_request = isinstance(failure, BadRequest)
            if failure.kind is FailureKind.REFUSED and extras and not is_request and not self._learned_lately():
                self._abilities = None
            raise
        if images:
            await self._image_check.check(images, completion.usage)
            self._warn(self._image_check.warning)
        return completion

    async def _check_text(self, found: Abilities) -> None:
        """Where the server doesn't say what its context is. Raises AuditorFailure."""
        if found.max_context is None:
            await self.text_check.check(self.prompt_tokens, self.max_context)
            self._warn(self.text_check.warning)

    async def look_again(self) -> None:
        """After a bad request that wasn't too long: what the server takes may have changed. Meanwhile the others go on
        by what is known."""
        if self._learned_lately() or self._asking.locked():
            return
        async with self._asking:
            with suppress(AuditorFailure):
                self._learned(await learn(self._server, self.name))

    def _learned_lately(self) -> bool:
        return time.monotonic() - self._learned_at < RELEARN_SECONDS

    def _warn(self, warning: str | None) -> None:
        if warning is None or warning in self.warnings:
            return
        self.warnings += (warning,)
        if self._is_started:  # those of the start are told by whoever started it
            log.warning("auditor", warning=warning)

    async def aclose(self) -> None:
        self.text_check.close()
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
        system, seen = likely_tokens(auditor.system_prompt), sum(tokens for _, tokens in images)
        self._prompt = ServedPrompt(query.turns, auditor.prompt_tokens, system, seen)
        self.capacity = self._prompt.capacity

    async def measure(self) -> None:
        """Have the server count a query that may be too long; before the first audit. Raises DoesNotFit."""

        async def count(text: str) -> int | None:
            return await self._auditor.count([self._system, {"role": "user", "content": text}])

        await self._prompt.measure(count)
        self.capacity = self._prompt.capacity

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        began = time.perf_counter()
        audit = self._label if depth is Depth.LABEL else self._annotate
        asked = self._asked(trace)
        try:
            return await audit(*asked, began)
        except BadRequest:
            shorter = self._asked_shorter(trace, asked, depth)
            if shorter is None:
                await self._look_again()
                raise
        try:
            verdict = await audit(*shorter, began)
        except BadRequest:
            await self._look_again()
            raise
        self._prompt.is_dense = True
        return verdict

    async def _look_again(self) -> None:
        """After a refusal of what fits by all that its texts may take."""
        if self._prompt.is_certain:
            await self._auditor.look_again()

    def _asked(self, trace: Trace) -> Asked:
        """What fits. Where texts are dense, a reply has no more tokens than are kept for it."""
        auditor = self._auditor
        text = self._prompt.place(trace, auditor.prompt_tokens)
        written = auditor.max_context - auditor.prompt_tokens if self._prompt.is_dense else auditor.annotate_max_tokens
        return [self._system, self._user(text)], written

    def _asked_shorter(self, trace: Trace, refused: Asked, depth: Depth) -> Asked | None:
        """What fits however dense it is, or None where that was refused; a label read has no reply to be shortened."""
        was_dense, self._prompt.is_dense = self._prompt.is_dense, True
        try:
            asked = self._asked(trace)
        finally:
            self._prompt.is_dense = was_dense
        is_same = asked[0] == refused[0] if depth is Depth.LABEL else asked == refused
        return None if is_same else asked

    async def _label(self, messages: list[Any], _: int, began: float) -> Verdict:
        labels = await self._auditor.labels()
        probabilities = await labels.read(lambda fields: self._ask(fields, FIRST), messages)
        return Verdict(likeliest(probabilities), probabilities, depth=Depth.LABEL.value, milliseconds=_since(began))

    async def _annotate(self, messages: list[Any], written: int, began: float) -> Verdict:
        fields = {
            "messages": messages,
            "temperature": 0,
            "max_tokens": written,
            "stream": False,
        }
        completion = await self._ask(fields, LATER)
        text = completion.choices[0].message.content if completion.choices else None
        if not text:
            raise AuditorFailure(FailureKind.UNREADABLE, "the auditor's server answered without any text")
        try:
            reply = parse_reply(text, truncated=completion.choices[0].finish_reason not in ("stop", None))
        except UnreadableReply as error:
            raise AuditorFailure(FailureKind.UNREADABLE, str(error)) from error
        return Verdict(reply.level, analysis=reply.analysis, depth=Depth.ANNOTATE.value, milliseconds=_since(began))

    async def _ask(self, fields: dict[str, Any], priority: int) -> Completion:
        return await self._auditor.ask(fields, self._salt, priority, len(self._images))

    async def aclose(self) -> None:
        self._images = []

    def _user(self, text: str) -> dict[str, Any]:
        if not self._images:
            return {"role": "user", "content": text}
        return {"role": "user", "content": [*self._images, {"type": "text", "text": text}]}


def _raw(value: Any) -> msgspec.Raw:
    """Encoded once, then copied into each request."""
    return msgspec.Raw(msgspec.json.encode(value))


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
