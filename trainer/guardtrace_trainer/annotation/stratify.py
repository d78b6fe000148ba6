"""Votes to strata: 3:0 for SFT, 2:1 for DPO, 1:1:1 for experts (GuardTrace-VL, arXiv 2511.20994, section 3).

Which of several analyses of one level stands for it isn't published: here a draw that depends on the seed and the row
alone, or the judges' priority.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardtrace_trainer.annotation.jury import JUDGES, VOTES
from guardtrace_trainer.rows import Agreement, Annotation, Labelled, Pair, Row, RowError, Vote, numbered_rows, row_as
from guardtrace_trainer.steps import Manifest, Step

STEP = "stratify"
SFT, PAIRS, EXPERTS, TEST = "sft.jsonl", "pairs.jsonl", "experts.jsonl", "test.jsonl"


@dataclass(frozen=True)
class Pick:
    """How one of several annotations is taken: by ``priority``, the best judge first, else drawn by ``seed``."""

    seed: int = 0
    priority: Sequence[str] = ()

    def one_of(self, row: str, annotations: Sequence[Annotation]) -> Annotation:
        """The same one for a row, in whatever order they come. Judges without priority come after those with it."""
        for name in self.priority:
            for annotation in annotations:
                if annotation.judge == name:
                    return annotation
        return min(annotations, key=lambda annotation: self._draw(row, annotation))

    def _draw(self, row: str, annotation: Annotation) -> bytes:
        return hashlib.sha256(f"{self.seed}\n{row}\n{annotation.judge}".encode()).digest()


@dataclass(frozen=True)
class Strata:
    """Where the votes went. All but ``test`` and the test split's part of ``experts`` are of the train split."""

    sft: list[Labelled] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    experts: list[Vote] = field(default_factory=list)
    test: list[Labelled] = field(default_factory=list)


def agreement(vote: Vote) -> Agreement:
    """How far the jury agrees.

    Raises:
        RowError: there aren't three votes of three judges.
    """
    judges = {annotation.judge for annotation in vote.votes}
    if len(vote.votes) != JUDGES or len(judges) != JUDGES:
        raise RowError(f"row {vote.id}, field votes: expected those of three judges, found {len(vote.votes)}")
    by_size: dict[int, Agreement] = {1: "3:0", 2: "2:1", 3: "1:1:1"}
    return by_size[len({annotation.level for annotation in vote.votes})]


def stratify(votes: Iterable[Vote], pick: Pick) -> Strata:
    """Put each vote into one stratum; what becomes of it depends on nothing but itself and ``pick``.

    Raises:
        RowError: a row hasn't three votes.
    """
    strata = Strata()
    for vote in votes:
        agreed = agreement(vote)
        if agreed == "1:1:1":
            strata.experts.append(vote)
            continue
        level = majority(vote)
        chosen = pick.one_of(vote.id, [one for one in vote.votes if one.level == level])
        if vote.split == "test":
            strata.test.append(row_as(vote, Labelled, agreement=agreed, annotation=chosen))
        elif agreed == "3:0":
            strata.sft.append(row_as(vote, Labelled, agreement=agreed, annotation=chosen))
        else:
            rejected = next(one for one in vote.votes if one.level != level)
            strata.pairs.append(row_as(vote, Pair, agreement=agreed, chosen=chosen, rejected=rejected))
    return strata


def majority(vote: Vote) -> float:
    """The level that at least two judges gave."""
    return Counter(one.level for one in vote.votes).most_common(1)[0][0]


def stratify_corpus(folder: Path, pick: Pick, *, again: bool = False) -> Manifest:
    """Make ``sft.jsonl``, ``pairs.jsonl``, ``experts.jsonl`` and ``test.jsonl`` from ``votes.jsonl`` in ``folder``.

    Raises:
        RowError, StepError: with what to do.
    """
    settings = {"seed": pick.seed, "priority": list(pick.priority)}
    step = Step(folder, STEP, inputs=[folder / VOTES], settings=settings, again=again)
    if step.done:
        return step.manifest
    votes = votes_of(folder / VOTES)
    strata = stratify(votes, pick)
    outputs: dict[str, Sequence[Row]] = {
        SFT: strata.sft,
        PAIRS: strata.pairs,
        EXPERTS: strata.experts,
        TEST: strata.test,
    }
    step.finish(outputs, **_counts(votes, strata))
    return step.manifest


def votes_of(path: Path) -> list[Vote]:
    """The rows of a file, each with three votes.

    Raises:
        RowError: with file, line and field.
    """
    votes: list[Vote] = []
    for number, vote in numbered_rows(path, Vote):
        try:
            agreement(vote)
        except RowError as error:
            raise RowError(f"{path}, line {number}, {error}") from error
        votes.append(vote)
    return votes


def _counts(votes: Sequence[Vote], strata: Strata) -> dict[str, Any]:
    return {
        "votes": len(votes),
        "agreement": dict(sorted(Counter(f"{vote.split} {agreement(vote)}" for vote in votes).items())),
        "sft_levels": _levels(row.annotation for row in strata.sft),
        "chosen_levels": _levels(row.chosen for row in strata.pairs),
        "test_levels": _levels(row.annotation for row in strata.test),
    }


def _levels(annotations: Iterable[Annotation]) -> dict[str, int]:
    return dict(sorted(Counter(f"{annotation.level:g}" for annotation in annotations).items()))
