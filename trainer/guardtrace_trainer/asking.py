"""Many questions to several models, each paid for once.

All replies of a step are kept in its ledger, ``STEP.paid.jsonl``, by the digest of what was asked of whom, the
question's id included. A question whose digest stands there isn't asked again: after a crash, after failures, where the
step's inputs have grown, or where it goes back to earlier settings.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guardtrace_trainer.endpoints import Client, Endpoint, EndpointFailure, message, mime_type
from guardtrace_trainer.progress import Progress
from guardtrace_trainer.replies import ModelReply
from guardtrace_trainer.rows import Row, place_of
from guardtrace_trainer.steps import Journal, OtherWork, Step, StepError, file_hash, forget

UNANSWERED_AT_FIRST = 20
"""An endpoint that has answered nothing after so many questions is taken to be set up wrongly."""

Job = TypeVar("Job")


class PaidReply(Row, frozen=True, kw_only=True):
    """A reply as it was paid for. ``asked`` is the digest of the question."""

    asked: str
    thinking: str
    answer: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Failure(Row, frozen=True, kw_only=True):
    """A question without a reply that can be used. ``row`` is what it was about, ``reply`` what can't be used."""

    asked: str
    row: str
    model: str
    message: str
    reply: str | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of ``endpoint``. ``id`` is unique in its step, ``fields`` are further fields of the request."""

    id: str
    endpoint: Endpoint
    text: str
    image: Path | None = None
    system: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Of all that the reply depends on: the model and its settings, the texts and the image's bytes."""
        image = None if self.image is None else image_hash(self.image)
        parts = (self.id, self.endpoint.settings(), self.system, self.text, image, self.fields)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As they are sent: the image's own bytes first, then the text."""
        system = [] if self.system is None else [message("system", self.system)]
        return [*system, message("user", self.text, self.image)]


class Asking:
    """The questions of one step; to be opened by ``with``, and used in one event loop.

    Raises:
        StepError: another process is at the same step, or the ledger holds something else.
    """

    def __init__(self, step: Step, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._ledger = Journal(paid_path(step.folder, step.name), PaidReply, lambda paid: paid.asked)
        self._clients: dict[str, Client] = {}
        self._progress = Progress()
        self._spent = {endpoint.name: _Spent() for endpoint in endpoints}

    def __enter__(self) -> Asking:
        self._ledger.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._ledger.__exit__(*raised)

    def known(self, question: Question) -> PaidReply | None:
        """The reply, where it was paid for already."""
        paid = self._ledger.rows.get(question.digest)
        if paid is None:
            return None
        self._spent[question.endpoint.name].has_answered = True
        return paid

    async def ask(self, question: Question) -> PaidReply:
        """The reply, from the ledger or from the model.

        Raises:
            EndpointFailure: there is none.
            StepError: the endpoint seems to be set up wrongly.
        """
        known = self.known(question)
        if known is not None:
            return known
        endpoint, spent = question.endpoint, self._spent[question.endpoint.name]
        try:
            reply = await self._clients[endpoint.name].ask(question.messages, **question.fields)
        except EndpointFailure as failure:
            spent.failed += 1
            if not spent.has_answered and spent.failed >= UNANSWERED_AT_FIRST:
                raise StepError(
                    f"{endpoint.name} has answered none of its first {spent.failed} questions: {failure}"
                ) from failure
            raise
        paid = _paid(question, reply)
        self._ledger.add(paid)
        spent.has_answered = True
        self._progress.spend(
            endpoint.name,
            reply.prompt_tokens + reply.completion_tokens,
            endpoint.cost(reply.prompt_tokens, reply.completion_tokens),
        )
        return paid

    def run(self, jobs: Mapping[str, Sequence[Job]], do: Callable[[Job], Awaitable[None]]) -> None:
        """Do all jobs, by the name of their endpoint; of each endpoint at most ``concurrency`` at a time.

        Raises:
            StepError: by a job, or an endpoint's key is missing.
        """
        _run(self._all(jobs, do))

    async def _all(self, jobs: Mapping[str, Sequence[Job]], do: Callable[[Job], Awaitable[None]]) -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(self._progress)
            workers: list[Coroutine[Any, Any, None]] = []
            for endpoint in self.endpoints:
                mine = jobs.get(endpoint.name, ())
                if not mine:
                    continue
                try:
                    self._clients[endpoint.name] = await stack.enter_async_context(Client(endpoint))
                except EndpointFailure as failure:
                    for worker in workers:
                        worker.close()
                    raise StepError(str(failure)) from failure
                self._progress.expect(endpoint.name, len(mine))
                left = iter(mine)
                workers += [self._work(endpoint.name, left, do) for _ in range(min(endpoint.concurrency, len(mine)))]
            await _together(workers)

    async def _work(self, name: str, left: Iterator[Job], do: Callable[[Job], Awaitable[None]]) -> None:
        for job in left:
            await do(job)
            self._progress.advance(name)


@dataclass
class _Spent:
    has_answered: bool = False
    """Ever, in this run or an earlier one."""
    failed: int = 0


def begin(
    folder: Path, name: str, *, inputs: Sequence[Path], settings: Mapping[str, Any], again: bool, extend: bool
) -> Step:
    """A step that pays. ``again`` forgets what was paid for before it; ``extend`` takes other inputs and settings and
    keeps it.

    Raises:
        StepError: the folder holds another state of this step and neither is given.
    """

    def clear() -> None:
        if again and paid_path(folder, name).exists():
            forget(paid_path(folder, name))

    try:
        return Step(folder, name, inputs=inputs, settings=settings, again=again, extend=extend, clear=clear)
    except OtherWork as error:
        raise StepError(f"{error}, or --extend to pay only for what wasn't asked in the same way") from None


def paid_path(folder: Path, name: str) -> Path:
    """Where the ledger of a step stands."""
    return folder / f"{name}.paid.jsonl"


def image_path(folder: Path, row: Row, image: str | None, *files: Path) -> Path | None:
    """The image, in the corpus's ``folder``, which it must not lead out of, of a row of one of ``files``.

    Raises:
        StepError: it does, it can't be read, or it is of no kind that chat APIs take.
    """
    if image is None:
        return None
    path = folder / image
    is_inside = path.resolve().is_relative_to(folder.resolve())
    if Path(image).is_absolute() or ".." in Path(image).parts or not is_inside:
        raise StepError(f"{place_of(row.id, *files)}, field image: {image} leads out of the corpus's folder")
    try:
        image_hash(path)
        mime_type(path)
    except (StepError, ValueError) as error:
        raise StepError(f"{place_of(row.id, *files)}, field image: {error}") from error
    return path


def image_hash(path: Path) -> str:
    """SHA-256 of an image; read again only where the file has changed.

    Raises:
        StepError: it can't be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise StepError(f"{path}: can't be read ({error.strerror})") from error
    return _hash(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=200_000)
def _hash(path: Path, changed: int, size: int) -> str:
    return file_hash(path)


def images_digest(folder: Path, paths: Iterable[Path | None]) -> str:
    """One digest of many images in ``folder``, each with its name, for a step's settings."""
    found = sorted({path for path in paths if path is not None})
    named = [(path.relative_to(folder).as_posix(), image_hash(path)) for path in found]
    return hashlib.sha256(msgspec.json.encode(named)).hexdigest()


def _paid(question: Question, reply: ModelReply) -> PaidReply:
    return PaidReply(
        id=question.id,
        asked=question.digest,
        thinking=reply.thinking,
        answer=reply.answer,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )


async def _together(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All to their ends; the first that breaks ends the others."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # on Windows
        asyncio.run(main)
    else:
        uvloop.run(main)
