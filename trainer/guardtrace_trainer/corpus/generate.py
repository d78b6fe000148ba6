"""Requests to traces: thinking models are asked, and what they think and answer is kept.

The paper made about 30 K traces with three models (GuardTrace-VL, arXiv 2511.20994, section 3); how requests were
shared among them isn't published, so both ways are offered: every request to all models, or to one of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from guardtrace_trainer.asking import Asking, Failure, PaidReply, Question, begin, image_path, images_digest
from guardtrace_trainer.endpoints import Endpoint, EndpointFailure
from guardtrace_trainer.rows import Request, Split, Trace, read_rows, row_as
from guardtrace_trainer.settings import Settings
from guardtrace_trainer.steps import Manifest, StepError

STEP = "generate"
REQUESTS, TRACES, FAILED = "requests.jsonl", "traces.jsonl", "traces.failed.jsonl"


class Models(Settings):
    """``models.yaml``: the thinking models. ``assign: one`` asks each request of one of them, drawn by ``seed``."""

    models: list[Endpoint] = Field(min_length=1)
    assign: Literal["all", "one"] = "all"
    seed: int = 0

    @field_validator("models")
    @classmethod
    def _differ(cls, models: list[Endpoint]) -> list[Endpoint]:
        return different_names(models)

    def asked(self, request: Request) -> Sequence[Endpoint]:
        """Who is asked a request. With one model more, only those requests move that it gets."""
        if self.assign == "all":
            return self.models
        return [max(self.models, key=lambda model: _draw(self.seed, request.id, model.name))]


@dataclass(frozen=True)
class Plan:
    """What is generated. ``limit`` counts requests, in the file's order; ``split`` None takes both."""

    models: Models
    samples: int = 1
    split: Split | None = None
    limit: int | None = None

    def questions(self, folder: Path, requests: Iterable[Request]) -> list[tuple[Request, Question]]:
        """One question a request, model and sample, in that order; the id is the trace's. Those of further samples end
        in a number, so that a first one is the same question however many follow.

        Raises:
            StepError: an image doesn't fit, or two traces would have one id.
        """
        chosen = [request for request in requests if self.split in (None, request.split)][: self.limit]
        further = {f"{model.name}-{sample + 1}" for model in self.models.models for sample in range(1, self.samples)}
        found: dict[str, tuple[Request, Question]] = {}
        for request in chosen:
            image = image_path(folder, request, request.image, folder / REQUESTS)
            for model in self.models.asked(request):
                for sample in range(self.samples):
                    # a model may be called as another one's further sample
                    number = f"-{sample + 1}" if sample or model.name in further else ""
                    name = f"{request.id}-{model.name}{number}"
                    if name in found:
                        other = found[name][0].id
                        raise StepError(f"requests {other} and {request.id} make two traces {name}: rename a model")
                    question = Question(name, model, request.question, image, fields=another_seed(model, sample))
                    found[name] = request, question
        return list(found.values())


def generate(
    folder: Path, plan: Plan, *, again: bool = False, extend: bool = False, keep_failures: bool = False
) -> Manifest:
    """Make ``traces.jsonl`` and ``traces.failed.jsonl`` from ``requests.jsonl`` in ``folder``.

    Questions that failed before are asked again, unless ``keep_failures``. See :func:`asking.begin` for the others.

    Raises:
        RowError, StepError: with what to do.
    """
    questions = plan.questions(folder, read_rows(folder / REQUESTS, Request))
    settings = {
        "models": [model.settings() for model in plan.models.models],
        "assign": plan.models.assign,
        "seed": plan.models.seed,
        "samples": plan.samples,
        "split": plan.split,
        "limit": plan.limit,
        "images": images_digest(folder, (question.image for _, question in questions)),
    }
    step = begin(folder, STEP, inputs=[folder / REQUESTS], settings=settings, again=again, extend=extend)
    earlier = earlier_failures(folder / FAILED, again=again)
    if step.done and (keep_failures or not earlier):
        return step.manifest
    kept = earlier if keep_failures else {}
    with Asking(step, plan.models.models) as asking:
        questions = _as_paid(asking, questions)
        failed = _ask_all(asking, [question for _, question in questions], kept)
        replies = {question.id: paid for _, question in questions if (paid := asking.known(question))}
    traces = [
        _trace(request, question, replies[question.id]) for request, question in questions if question.id in replies
    ]
    counts = _counts(plan.models.models, questions, traces, failed)
    step.finish({TRACES: traces, FAILED: failed}, **counts)
    return step.manifest


def _as_paid(asking: Asking, questions: Sequence[tuple[Request, Question]]) -> list[tuple[Request, Question]]:
    """First samples used to end in their number where others followed. One that was paid for so keeps its id, and with
    it the votes on its trace."""
    taken = {question.id for _, question in questions}
    found: list[tuple[Request, Question]] = []
    for request, question in questions:
        numbered = replace(question, id=f"{question.id}-1")
        is_paid = numbered.id not in taken and asking.known(numbered) is not None
        found.append((request, numbered if is_paid else question))
    return found


def _ask_all(asking: Asking, questions: Sequence[Question], kept: dict[str, Failure]) -> list[Failure]:
    """What failed, in the order of the questions."""
    failed: dict[str, Failure] = {}
    jobs: dict[str, list[Question]] = {}
    for question in questions:
        if asking.known(question) is not None:
            continue
        before = kept.get(question.id)
        if before is not None and before.asked == question.digest:
            failed[question.id] = before
        else:
            jobs.setdefault(question.endpoint.name, []).append(question)

    async def ask(question: Question) -> None:
        try:
            await asking.ask(question)
        except EndpointFailure as failure:
            failed[question.id] = Failure(
                id=question.id,
                asked=question.digest,
                row=question.id,
                model=question.endpoint.name,
                message=str(failure),
            )

    asking.run(jobs, ask)
    return [failed[question.id] for question in questions if question.id in failed]


def _trace(request: Request, question: Question, paid: PaidReply) -> Trace:
    return row_as(
        request,
        Trace,
        id=question.id,
        request_id=request.id,
        model=question.endpoint.name,
        thinking=paid.thinking,
        answer=paid.answer,
        finish_reason=paid.finish_reason,
        prompt_tokens=paid.prompt_tokens,
        completion_tokens=paid.completion_tokens,
    )


def _counts(
    models: Sequence[Endpoint], questions: Sequence[Any], traces: Sequence[Trace], failed: Sequence[Failure]
) -> dict[str, Any]:
    by_model = {model.name: usage(model, [trace for trace in traces if trace.model == model.name]) for model in models}
    return {
        "questions": len(questions),
        "traces": len(traces),
        "failed": len(failed),
        "finish_reasons": dict(sorted(Counter(str(trace.finish_reason) for trace in traces).items())),
        "models": by_model,
    }


def usage(endpoint: Endpoint, replies: Sequence[Trace | PaidReply]) -> dict[str, Any]:
    """Replies, tokens and cost of one model, for a manifest's counts."""
    prompt = sum(reply.prompt_tokens for reply in replies)
    completion = sum(reply.completion_tokens for reply in replies)
    cost = round(endpoint.cost(prompt, completion), 6)
    return {"replies": len(replies), "prompt_tokens": prompt, "completion_tokens": completion, "cost": cost}


def another_seed(endpoint: Endpoint, sample: int) -> dict[str, Any]:
    """Request fields that make a further sample differ from the first, where the endpoint sets a seed."""
    seed = endpoint.request.get("seed")
    return {"seed": seed + sample} if sample and isinstance(seed, int) else {}


def earlier_failures(path: Path, *, again: bool) -> dict[str, Failure]:
    """What an earlier run wrote there, by id."""
    if again or not path.exists():
        return {}
    return {failure.id: failure for failure in read_rows(path, Failure)}


def different_names(endpoints: list[Endpoint]) -> list[Endpoint]:
    """The endpoints; raises ValueError where two have one name."""
    twice = [name for name, count in Counter(endpoint.name for endpoint in endpoints).items() if count > 1]
    if twice:
        raise ValueError(f"two are called {twice[0]}: names must differ")
    return endpoints


def _draw(seed: int, request: str, model: str) -> bytes:
    return hashlib.sha256(f"{seed} {request} {model}".encode()).digest()
