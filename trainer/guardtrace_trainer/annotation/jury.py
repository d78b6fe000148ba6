"""A jury of three judges reads each trace: traces to votes.

Protocol: structured analysis, then judgment, by three models (GuardTrace-VL, arXiv 2511.20994, section 3: Gemma-3-27B,
Mistral-3.2-24B and Qwen2.5-VL).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator, model_validator

from guardtrace_proxy.auditor.reply import UnreadableReply, parse_reply
from guardtrace_trainer.annotation.prompts import judge_text, system_prompt
from guardtrace_trainer.annotation.screening import Screened, Screening, screen_trace, screen_votes
from guardtrace_trainer.asking import Asking, Failure, PaidReply, Question, begin, image_path, images_digest
from guardtrace_trainer.corpus.generate import TRACES, another_seed, different_names, earlier_failures, usage
from guardtrace_trainer.endpoints import Endpoint, EndpointFailure
from guardtrace_trainer.rows import Annotation, Trace, Vote, read_rows, row_as
from guardtrace_trainer.settings import Settings
from guardtrace_trainer.steps import Manifest

STEP = "annotate"
VOTES, FAILED, SCREENED = "votes.jsonl", "votes.failed.jsonl", "screened.jsonl"
JUDGES = 3
TRIES = 2
"""How often a judge whose reply can't be read is asked."""
WARMER = 0.7
"""Temperature of a further try, where the endpoint sets a lower one: the same reply again would help nobody."""


class Jury(Settings):
    """``jury.yaml``: three judges, in the order in which their votes stand.

    ``system_prompt`` is a file, relative to this one; null is our own. ``priority`` lists judges whose analyses
    are preferred where several gave the level, the best first; it is read by ``stratify`` alone.
    """

    judges: list[Endpoint]
    system_prompt: Path | None = None
    priority: tuple[str, ...] = ()
    screening: Screening = Screening()

    @field_validator("judges")
    @classmethod
    def _are_three(cls, judges: list[Endpoint]) -> list[Endpoint]:
        if len(judges) != JUDGES:
            raise ValueError(f"expected three judges, found {len(judges)}")
        return different_names(judges)

    @model_validator(mode="after")
    def _priority_is_known(self) -> Jury:
        unknown = [name for name in self.priority if name not in {judge.name for judge in self.judges}]
        if unknown:
            raise ValueError(f"priority: {unknown[0]} is no judge")
        if len(set(self.priority)) < len(self.priority):
            raise ValueError("priority: a judge is listed twice")
        return self


class _Opinion(NamedTuple):
    """One trace before one judge, who is asked at most ``tries`` times."""

    trace: Trace
    judge: Endpoint
    image: Path | None
    tries: int = TRIES

    @property
    def id(self) -> str:
        return _id(self.trace, self.judge)


def annotate(
    folder: Path,
    jury: Jury,
    *,
    base: Path | None = None,
    again: bool = False,
    extend: bool = False,
    keep_failures: bool = False,
) -> Manifest:
    """Make ``votes.jsonl``, ``votes.failed.jsonl`` and ``screened.jsonl`` from ``traces.jsonl`` in ``folder``.

    A trace counts once all three votes are in. ``base`` is where ``jury.system_prompt`` is relative to. Judges that
    failed before are asked again, unless ``keep_failures``. See :func:`asking.begin` for the others.

    Raises:
        RowError, StepError: with what to do.
    """
    system = system_prompt(None if jury.system_prompt is None else (base or Path()) / jury.system_prompt)
    traces = read_rows(folder / TRACES, Trace)
    images = {trace.id: image_path(folder, trace, trace.image, folder / TRACES) for trace in traces}
    settings = {
        "judges": [judge.settings() for judge in jury.judges],
        "system_prompt": hashlib.sha256(system.encode()).hexdigest(),
        "screening": jury.screening.model_dump(),
        "images": images_digest(folder, images.values()),
    }
    step = begin(folder, STEP, inputs=[folder / TRACES], settings=settings, again=again, extend=extend)
    earlier = earlier_failures(folder / FAILED, again=again)
    if step.done and (keep_failures or not earlier):
        return step.manifest
    rules = {trace.id: screen_trace(trace, jury.screening) for trace in traces}
    heard = [trace for trace in traces if rules[trace.id] is None]
    with Asking(step, jury.judges) as asking:
        session = _Session(jury, system, asking)
        session.run([(trace, images[trace.id]) for trace in heard], earlier, keep_failures)
    votes: list[Vote] = []
    screened = [row_as(trace, Screened, votes=(), rule=rule) for trace in traces if (rule := rules[trace.id])]
    for trace in heard:
        annotations = session.votes(trace)
        if annotations is None:
            continue
        rule = screen_votes(annotations, jury.screening)
        if rule is None:
            votes.append(row_as(trace, Vote, votes=annotations))
        else:
            screened.append(row_as(trace, Screened, votes=annotations, rule=rule))
    failed = sorted(session.failed.values(), key=lambda failure: failure.id)
    step.finish({VOTES: votes, FAILED: failed, SCREENED: screened}, **_counts(jury, traces, votes, screened, session))
    return step.manifest


class _Session:
    """One run of the jury."""

    def __init__(self, jury: Jury, system: str, asking: Asking) -> None:
        self._jury = jury
        self._system = system
        self._asking = asking
        self._annotations: dict[str, Annotation] = {}
        self.failed: dict[str, Failure] = {}
        self.replies: dict[str, dict[str, PaidReply]] = {judge.name: {} for judge in jury.judges}

    def run(self, traces: Iterable[tuple[Trace, Path | None]], earlier: Mapping[str, Failure], keep: bool) -> None:
        """Ask for every opinion that isn't known. ``keep``: what failed ``earlier`` isn't asked again."""
        jobs: dict[str, list[_Opinion]] = {judge.name: [] for judge in self._jury.judges}
        for trace, image in traces:
            text = judge_text(trace)
            for judge in self._jury.judges:
                opinion = _Opinion(trace, judge, image)
                before = earlier.get(opinion.id)
                if before is not None and before.asked == self._question(opinion, text, 0).digest:
                    if keep:
                        self.failed[opinion.id] = before
                        continue
                    opinion = opinion._replace(tries=max(TRIES, self._tried(opinion, text) + 1))
                if not self._is_settled(opinion, text):
                    jobs[judge.name].append(opinion)
        self._asking.run(jobs, self._ask)

    def votes(self, trace: Trace) -> tuple[Annotation, ...] | None:
        """In the jury's order; None while one is missing."""
        found = [self._annotations.get(_id(trace, judge)) for judge in self._jury.judges]
        whole = tuple(vote for vote in found if vote is not None)
        return whole if len(whole) == JUDGES else None

    async def _ask(self, opinion: _Opinion) -> None:
        text = judge_text(opinion.trace)
        for number in range(opinion.tries):
            try:
                paid = await self._asking.ask(self._question(opinion, text, number))
            except EndpointFailure as failure:
                self._fail(opinion, text, str(failure))
                return
            if self._can_read(opinion, text, paid):
                return

    def _is_settled(self, opinion: _Opinion, text: str) -> bool:
        """Whether the replies that are paid for are enough."""
        for number in range(opinion.tries):
            paid = self._asking.known(self._question(opinion, text, number))
            if paid is None:
                return False
            if self._can_read(opinion, text, paid):
                break
        return True

    def _tried(self, opinion: _Opinion, text: str) -> int:
        number = 0
        while self._asking.known(self._question(opinion, text, number)) is not None:
            number += 1
        return number

    def _can_read(self, opinion: _Opinion, text: str, paid: PaidReply) -> bool:
        """Take a reply as the judge's annotation, or else as the failure that the next try may undo."""
        self.replies[opinion.judge.name][paid.id] = paid
        try:
            reply = parse_reply(paid.answer, truncated=paid.finish_reason == "length")
        except UnreadableReply as error:
            self._fail(opinion, text, str(error), paid.answer)
            return False
        if not reply.analysis or not reply.analysis.strip():
            self._fail(opinion, text, "the judge's reply has no analysis", paid.answer)
            return False
        self.failed.pop(opinion.id, None)
        self._annotations[opinion.id] = Annotation(
            judge=opinion.judge.name, level=float(reply.level), analysis=reply.analysis.strip()
        )
        return True

    def _fail(self, opinion: _Opinion, text: str, message: str, reply: str | None = None) -> None:
        asked = self._question(opinion, text, 0).digest
        self.failed[opinion.id] = Failure(
            id=opinion.id, asked=asked, row=opinion.trace.id, model=opinion.judge.name, message=message, reply=reply
        )

    def _question(self, opinion: _Opinion, text: str, number: int) -> Question:
        name = opinion.id if number == 0 else f"{opinion.id} {number + 1}"
        fields = another_try(opinion.judge, number)
        return Question(name, opinion.judge, text, opinion.image, self._system, fields)


def _id(trace: Trace, judge: Endpoint) -> str:
    return f"{trace.id} {judge.name}"


def another_try(judge: Endpoint, number: int) -> dict[str, Any]:
    """Request fields of a further try: another seed and some temperature, where the endpoint sets them."""
    fields = another_seed(judge, number)
    temperature = judge.request.get("temperature")
    if number and isinstance(temperature, (int, float)):
        fields["temperature"] = max(float(temperature), WARMER)
    return fields


def _counts(
    jury: Jury, traces: Sequence[Trace], votes: Sequence[Vote], screened: Sequence[Screened], session: _Session
) -> dict[str, Any]:
    levels = {
        judge.name: Counter(f"{vote.votes[number].level:g}" for vote in votes)
        for number, judge in enumerate(jury.judges)
    }
    return {
        "traces": len(traces),
        "votes": len(votes),
        "failed": len(session.failed),
        "screened": dict(sorted(Counter(row.rule for row in screened).items())),
        "judges": {
            judge.name: usage(judge, list(session.replies[judge.name].values()))
            | {"levels": dict(sorted(levels[judge.name].items()))}
            for judge in jury.judges
        },
    }
