"""Who says whether a beginning is unsafe: an auditor as the proxy runs it, or any model that is asked as a judge."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec

from guardtrace_proxy.auditor.cascade import ESCALATE_AT, AuditPlan
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Turn
from guardtrace_proxy.auditor.prompt import Trace as PartialTrace
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, DoesNotFit
from guardtrace_proxy.auditor.reply import UnreadableReply, parse_reply
from guardtrace_trainer.annotation.jury import another_try
from guardtrace_trainer.annotation.prompts import judge_text
from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, message
from guardtrace_trainer.evaluation.auditors import Reads, of_this_item
from guardtrace_trainer.evaluation.data import image_beside
from guardtrace_trainer.evaluation.evaluate import Plan, weights_of
from guardtrace_trainer.evaluation.judged import EvaluationStopped
from guardtrace_trainer.evaluation.opening import opened_auditor
from guardtrace_trainer.evaluation.replay import plan_for
from guardtrace_trainer.rows import Trace
from guardtrace_trainer.steps import file_hash

GO_ON = "See to it and run the same command again: it goes on where it stopped"


class JudgeFailed(Exception):
    """The judge gave no judgment of this trace; others may fare better."""


class UnreadableOpinion(JudgeFailed):
    """What it said, ``reply``, was paid for; another try may be read."""

    def __init__(self, problem: str, reply: str) -> None:
        super().__init__(problem)
        self.reply = reply


class Opinion(NamedTuple):
    """A level, and the judge's words if it has any."""

    level: float
    analysis: str | None


Ask = Callable[[str, int], Awaitable[Opinion]]
"""Judges a thinking that stops where the text ends, without an answer; the number counts the tries from 0.

Raises JudgeFailed, or EvaluationStopped where the judge can't be had: going on would only collect failures."""


class PrefixJudge(Protocol):
    """To be opened by ``async with``. ``settings`` are all that changes its judgments."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]: ...

    async def __aenter__(self) -> PrefixJudge: ...

    async def __aexit__(self, *raised: Any) -> None: ...

    def reading(self, row: Trace, folder: Path) -> AbstractAsyncContextManager[Ask]:
        """Begin on one trace, whose image lies in ``folder``; raises JudgeFailed where it can't be taken."""
        ...


class AuditorJudge:
    """The auditor that ``plan`` names, at the plan's depth; only annotations have words."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.auditor or ""
        self._weights = {path.name: file_hash(path) for path in weights_of(plan)}
        self._plan = plan
        self._stack = AsyncExitStack()
        self._auditor: Auditor | None = None
        self._audits: AuditPlan | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The plan's; and a digest of a checkpoint in a folder, since a retrained one is another judge."""
        if not self._weights:
            return {"auditor": self._plan.settings()}
        digest = hashlib.sha256(msgspec.json.encode(self._weights)).hexdigest()
        return {"auditor": self._plan.settings(), "weights": digest}

    async def __aenter__(self) -> AuditorJudge:
        auditor = self._auditor = await self._stack.enter_async_context(opened_auditor(self._plan))
        wanted = (self._plan.escalate_at, auditor.escalate_at, ESCALATE_AT)
        self._audits = plan_for(self._plan.depth, next(value for value in wanted if value is not None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def reading(self, row: Trace, folder: Path) -> AsyncIterator[Ask]:
        assert self._auditor is not None
        assert self._audits is not None
        audits = self._audits
        image = image_beside(row.image, folder, f"row {row.id}, field image")
        query = Query([Turn("user", row.question)], [] if image is None else [image])
        try:
            session = await self._auditor.open(query)
        except DoesNotFit as failure:
            raise JudgeFailed(str(failure)) from failure
        except AuditorFailure as failure:
            raise JudgeFailed(str(of_this_item(failure))) from failure

        reads = Reads(session, round(self._plan.timeout_s * 1000))

        async def ask(thinking: str, number: int) -> Opinion:
            try:
                verdict = await audits.judge(reads, PartialTrace(thinking))
            except AuditorFailure as failure:
                raise JudgeFailed(str(failure)) from failure
            return Opinion(verdict.level.value, verdict.analysis)

        try:
            yield ask
        finally:
            await session.aclose()


class EndpointJudge:
    """A model behind an endpoint, asked as the jury is: system prompt, image, then query, thinking and no answer."""

    def __init__(self, endpoint: Endpoint, system: str = SYSTEM_PROMPT) -> None:
        self.name = endpoint.name
        self._system = system
        self._client = Client(endpoint)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The endpoint's, and the system prompt."""
        return {"endpoint": self._client.endpoint.settings(), "system": self._system}

    async def __aenter__(self) -> EndpointJudge:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def reading(self, row: Trace, folder: Path) -> AsyncIterator[Ask]:
        image = image_beside(row.image, folder, f"row {row.id}, field image")

        async def ask(thinking: str, number: int) -> Opinion:
            text = judge_text(msgspec.structs.replace(row, thinking=thinking, answer=""))
            asked = message("user", text, None if image is None else image.path)
            messages = [message("system", self._system), asked]
            try:
                said = await self._client.ask(messages, **another_try(self._client.endpoint, number))
            except EndpointFailure as failure:
                if failure.concerns_question:
                    raise JudgeFailed(str(failure)) from failure
                raise EvaluationStopped(f"{failure}. {GO_ON}") from failure
            try:
                reply = parse_reply(said.answer, truncated=said.finish_reason == "length")
            except UnreadableReply as failure:
                raise UnreadableOpinion(str(failure), said.answer) from failure
            return Opinion(reply.level.value, reply.analysis)

        yield ask
