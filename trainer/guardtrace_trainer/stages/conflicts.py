"""Where the DPO model and the jury disagree: rows, what an oracle's answers come to, and the files of ``mine``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from guardtrace_trainer.rows import Annotation, Pair, Row, Trace, row_as
from guardtrace_trainer.stages.settings import MineSettings
from guardtrace_trainer.steps import Step

Order = Literal["chosen first", "model first"]
ORDERS: tuple[Order, Order] = ("chosen first", "model first")
Decision = Literal["model wrong", "model right", "undecided"]
MODEL = "model"
"""The judge's name in the annotations that the trained model writes."""


class Judged(Row, frozen=True, kw_only=True):
    """What the model made of a trace: its annotation, or why there is none."""

    annotation: Annotation | None = None
    failure: str | None = None


class Answer(Row, frozen=True, kw_only=True):
    """One answer of the oracle. ``sides_with`` is None where it can't be read."""

    trace_id: str
    order: Order
    raw: str
    sides_with: Literal["chosen", "model"] | None
    problem: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Conflict(Row, frozen=True, kw_only=True):
    """A line of ``oracle.jsonl``: the trace, who said what of it, and what followed. ``image`` is a path inside the
    corpus."""

    decision: Decision
    question: str
    image: str | None
    thinking: str
    answer: str
    chosen: Annotation
    model: Annotation
    chosen_first: Answer
    model_first: Answer


class Unjudged(Trace, frozen=True, kw_only=True):
    """A line of ``unjudged.jsonl``: a trace that the model gave no readable annotation of."""

    failure: str


def decide(answers: Sequence[Answer]) -> Decision:
    """What the answers in both orders come to: only an oracle that says the same twice decides."""
    sides = {answer.sides_with for answer in answers}
    if sides == {"chosen"}:
        return "model wrong"
    return "model right" if sides == {"model"} else "undecided"


def answer_id(pair: Pair, order: Order) -> str:
    """The id of the oracle's answer on a pair."""
    return f"{pair.id} {order}"


def write(
    step: Step,
    pairs: Sequence[Pair],
    conflicts: Sequence[tuple[Pair, Annotation]],
    judged: Mapping[str, Judged],
    answers: Mapping[str, Answer],
    settings: MineSettings,
    seed: int,
) -> None:
    """Write all files of ``mine`` and its manifest."""
    decided: dict[Decision, list[Pair]] = {"model wrong": [], "model right": [], "undecided": []}
    lines: list[Conflict] = []
    for pair, model in conflicts:
        given = [answers[answer_id(pair, order)] for order in ORDERS]
        decision = decide(given)
        lines.append(
            Conflict(
                id=pair.id,
                decision=decision,
                question=pair.question,
                image=pair.image,
                thinking=pair.thinking,
                answer=pair.answer,
                chosen=pair.chosen,
                model=model,
                chosen_first=given[0],
                model_first=given[1],
            )
        )
        decided[decision].append(msgspec.structs.replace(pair, rejected=model, origin="mined"))
    unjudged = [
        row_as(pair, Unjudged, failure=failure) for pair in pairs if (failure := judged[pair.id].failure) is not None
    ]
    replay = replayed(pairs, judged, settings.replay * len(decided["model wrong"]), seed)
    tokens = [(answer.prompt_tokens, answer.completion_tokens) for answer in answers.values()]
    prompt_tokens, completion_tokens = (sum(column) for column in zip(*tokens, strict=True)) if tokens else (0, 0)
    step.finish(
        {
            "mined.jsonl": decided["model wrong"],
            "dropped.jsonl": decided["model right"],
            "undecided.jsonl": decided["undecided"],
            "replay.jsonl": replay,
            "unjudged.jsonl": unjudged,
            "oracle.jsonl": lines,
        },
        pairs=len(pairs),
        conflicts=len(conflicts),
        decisions=dict(Counter(line.decision for line in lines)),
        replay=len(replay),
        unjudged=dict(Counter(row.failure.partition(":")[0] for row in unjudged)),
        oracle_answers=len(answers),
        oracle_prompt_tokens=prompt_tokens,
        oracle_completion_tokens=completion_tokens,
        oracle_cost=round(settings.oracle.cost(prompt_tokens, completion_tokens), 6),
    )


def replayed(pairs: Sequence[Pair], judged: Mapping[str, Judged], most: float, seed: int) -> list[Pair]:
    """At most ``most`` of the pairs that the jury calls safe and the model as well, in their order."""
    safe = [
        pair
        for pair in pairs
        if pair.chosen.level == 0 and (model := judged[pair.id].annotation) is not None and model.level == 0
    ]
    picked = random.Random(seed).sample(range(len(safe)), min(int(most), len(safe)))
    return [safe[index] for index in sorted(picked)]
