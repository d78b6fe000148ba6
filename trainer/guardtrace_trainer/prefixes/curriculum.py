"""What the beginnings of labelled traces teach: rows for SFT and pairs for DPO (design §6).

Every beginning of a safe trace is 0. An unsafe trace whose onset is known is 0 before it and its label from there on;
where it isn't known, only its first sentence (0) and the whole trace (its label, in ``sft.jsonl`` already) are used.
Where the judge calls the whole thinking safe, the harm is in the answer, and every beginning is 0.

An analysis must fit what it judges. So a beginning has the judge's own words for that very beginning, where the search
for the onset asked for them, or a judge is asked here, and the level is the right one; else its ``analysis`` is empty,
which stands for the bare judgment alone (:attr:`Annotation.bare`) as what is to be learned.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
from pydantic import BaseModel, ConfigDict, Field

from guardtrace_trainer.prefixes.judges import JudgeFailed, PrefixJudge
from guardtrace_trainer.prefixes.onset import (
    ONSETS,
    PAIRS,
    SAFE_THINKING,
    SFT,
    Onset,
    corpus_files,
    images_of,
    read_onsets,
)
from guardtrace_trainer.prefixes.paid import Ledger
from guardtrace_trainer.prefixes.sentences import prefix, split
from guardtrace_trainer.rows import Annotation, Labelled, Pair, RowError, Trace, read_rows, row_as
from guardtrace_trainer.several import do_each
from guardtrace_trainer.steps import Manifest, Step, StepError

STEP = "prefixes"
SFT_PREFIXES, PAIR_PREFIXES = "sft_prefixes.jsonl", "pair_prefixes.jsonl"
Words = Mapping[str, Annotation]
NO_WORDS: Words = MappingProxyType({})
PREFIX = "prefix"
"""Who gave a judgment that follows from an onset, not from anybody's words."""


class Curriculum(BaseModel):
    """How many beginnings of a trace are taken, and how many of them end in mid-sentence, as chunks of tokens do.

    ``even``: of traces that are safe throughout no more beginnings than there are unsafe ones, and no more pairs
    against an early judgment than against a late one, or the other way round. Most beginnings are safe, and who is
    taught by those mostly overlooks harm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_trace: int = Field(4, ge=1)
    mid_sentence: float = Field(0.25, ge=0, le=1)
    even: bool = True
    seed: int = 0


class Beginning(NamedTuple):
    """The first ``sentences`` of a thinking and perhaps a part of the next one, with its right level."""

    sentences: int
    part: str
    thinking: str
    level: float

    @property
    def name(self) -> str:
        """Unlike that of every other beginning of the trace."""
        return f"p{self.sentences}" if not self.part else f"p{self.sentences}+{len(self.part)}"


def beginnings(row: Trace, level: float, onset: Onset | None, settings: Curriculum) -> list[Beginning]:
    """Some beginnings of a trace whose label is ``level``, the shortest first; the same ones for the same seed.

    Both sides of a known onset are always among them (with one a trace: the onset), the others are drawn from near it
    more often than from afar.
    """
    sentences = split(row.thinking)
    rng = random.Random(f"{settings.seed}\n{row.id}")
    if level > 0 and onset is not None and onset.why == SAFE_THINKING:
        level = 0.0  # the harm is in the answer, which no beginning has
    at = onset.onset if onset is not None and level > 0 else None
    if level > 0 and at is None:
        known = len(sentences) > 1 and not (onset is not None and onset.is_unsafe(1))
        return [Beginning(1, "", prefix(sentences, 1), 0.0)] if known else []
    counts = _drawn(len(sentences), at, settings.per_trace, rng)
    return [_beginning(sentences, count, level, at, settings, rng) for count in sorted(counts)]


def _drawn(count: int, onset: int | None, most: int, rng: random.Random) -> list[int]:
    """How many sentences each beginning has."""
    left = list(range(1, count + 1))
    taken = [] if onset is None else [at for at in (onset, onset - 1) if at >= 1][:most]
    left = [at for at in left if at not in taken]
    while left and len(taken) < most:
        weights = [1.0 if onset is None else 1 / (1 + abs(at - onset)) for at in left]
        taken.append(left.pop(rng.choices(range(len(left)), weights)[0]))
    return taken


def _beginning(
    sentences: Sequence[str], count: int, level: float, onset: int | None, settings: Curriculum, rng: random.Random
) -> Beginning:
    right = level if onset is None or count >= onset else 0.0
    thinking = prefix(sentences, count)
    # a part of the first unsafe sentence may be safe or not: nobody has judged it
    can_be_torn = count < len(sentences) and count + 1 != onset
    if not can_be_torn or rng.random() >= settings.mid_sentence:
        return Beginning(count, "", thinking, right)
    following = sentences[count].rstrip()
    part = following[: rng.randrange(1, max(2, len(following)))].rstrip()
    torn = "".join(sentences[:count]) + part
    return Beginning(count, part, torn, right) if part.strip() else Beginning(count, "", thinking, right)


def labelled_prefixes(
    row: Labelled, onset: Onset | None, settings: Curriculum, words: Words = NO_WORDS
) -> Iterator[Labelled]:
    """A trace's rows for SFT; ``words`` are annotations of some of them by their ids."""
    for begin in beginnings(row, row.annotation.level, onset, settings):
        name = f"{row.id}#{begin.name}"
        yield row_as(
            row,
            Labelled,
            id=name,
            thinking=begin.thinking,
            answer="",
            annotation=words.get(name) or _annotation(begin, onset),
            origin=PREFIX,
        )


def pair_prefixes(row: Pair, onset: Onset | None, settings: Curriculum, words: Words = NO_WORDS) -> Iterator[Pair]:
    """A trace's rows for DPO: the right judgment against one that comes too early, with the whole trace's label, or
    from the onset on against one that comes too late, with 0.

    Both have an analysis or neither has, so that the level is what is preferred and not the form. An early judgment has
    the words about the whole trace, a late one those of a minority that called the whole safe, else the judge's about
    the last safe beginning.
    """
    for begin in beginnings(row, row.chosen.level, onset, settings):
        name = f"{row.id}#{begin.name}"
        chosen, rejected = words.get(name) or _annotation(begin, onset), _rejected(row, begin, onset)
        if not (chosen.analysis and rejected.analysis):
            chosen, rejected = (_bare(annotation) for annotation in (chosen, rejected))
        yield row_as(
            row,
            Pair,
            id=name,
            thinking=begin.thinking,
            answer="",
            chosen=chosen,
            rejected=rejected,
            origin=PREFIX,
        )


def _annotation(begin: Beginning, onset: Onset | None) -> Annotation:
    words = None if onset is None or begin.part else onset.words(begin.sentences, begin.level)
    if onset is None or not words:
        return Annotation(judge=PREFIX, level=begin.level, analysis="")
    return Annotation(judge=onset.judge, level=begin.level, analysis=words)


def _rejected(row: Pair, begin: Beginning, onset: Onset | None) -> Annotation:
    if begin.level == 0:
        return row.chosen if row.chosen.level > 0 else row.rejected
    if row.rejected.level > 0:
        words = None if onset is None or onset.onset is None else onset.words(onset.onset - 1, 0.0)
        return Annotation(judge=PREFIX if onset is None else onset.judge, level=0.0, analysis=words or "")
    return row.rejected


def evened_rows(rows: Sequence[Labelled], seed: int) -> list[Labelled]:
    """Those of traces with an unsafe beginning, and as many of all others as these have unsafe ones, in their order;
    ``seed`` draws which."""
    unsafe = {_trace_of(row) for row in rows if row.annotation.level > 0}
    others = [at for at, row in enumerate(rows) if _trace_of(row) not in unsafe]
    count = min(len(others), sum(row.annotation.level > 0 for row in rows))
    drawn = set(random.Random(seed).sample(others, count))
    return [row for at, row in enumerate(rows) if at in drawn or _trace_of(row) in unsafe]


def _trace_of(row: Labelled) -> str:
    return row.id.rpartition("#")[0]


def evened_pairs(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """As many against an early judgment as against a late one, in their order; ``seed`` draws what is left out."""
    late, early = ([at for at, pair in enumerate(pairs) if _is_late(pair) is late] for late in (True, False))
    rng = random.Random(seed)
    count = min(len(late), len(early))
    kept = sorted(at for kind in (late, early) for at in rng.sample(kind, count))
    return [pairs[at] for at in kept]


def _is_late(pair: Pair) -> bool:
    return pair.rejected.level < pair.chosen.level


def _bare(annotation: Annotation) -> Annotation:
    return Annotation(judge=annotation.judge, level=annotation.level, analysis="")


def make_prefixes(
    folder: Path,
    settings: Curriculum,
    judge: PrefixJudge | None = None,
    *,
    concurrency: int = 1,
    again: bool = False,
) -> Manifest:
    """Make ``sft_prefixes.jsonl`` and ``pair_prefixes.jsonl`` from ``onsets.jsonl`` and what it was made from.

    A ``judge`` is asked for its words on each beginning that has none yet; they are taken where its level is the right
    one. What it said is kept in the ledger of the onsets.

    Raises:
        RowError, StepError, EndpointFailure, EvaluationStopped: with what to do.
    """
    files = corpus_files(folder)
    onsets = read_onsets(folder)
    sft = read_rows(folder / SFT, Labelled) if folder / SFT in files else []
    pairs = read_rows(folder / PAIRS, Pair) if folder / PAIRS in files else []
    levels = {**{row.id: row.annotation.level for row in sft}, **{row.id: row.chosen.level for row in pairs}}
    for row in (*sft, *pairs):
        _check(folder, row, levels[row.id], onsets)
    every = {**settings.model_dump(), "judge": None, "images": None}
    if judge is not None:
        every |= {"judge": dict(judge.settings), "images": images_of(folder, [*sft, *pairs])}
    step = Step(folder, STEP, inputs=[*files, folder / ONSETS], settings=every, again=again)
    if step.done:
        return step.manifest

    def taught(words: Words) -> tuple[list[Labelled], list[Pair]]:
        rows = [each for row in sft for each in labelled_prefixes(row, onsets.get(row.id), settings, words)]
        made = [each for row in pairs for each in pair_prefixes(row, onsets.get(row.id), settings, words)]
        if not settings.even:
            return rows, made
        return evened_rows(rows, settings.seed), evened_pairs(made, settings.seed)

    rows, pair_rows = taught(NO_WORDS)
    if judge is not None:
        wanted: list[tuple[Trace, float]] = [(row, row.annotation.level) for row in rows if not row.annotation.analysis]
        wanted += [(row, row.chosen.level) for row in pair_rows if not row.chosen.analysis]
        rows, pair_rows = taught(words_of(folder, judge, wanted, concurrency))
    step.finish({SFT_PREFIXES: rows, PAIR_PREFIXES: pair_rows}, **_counts(rows, pair_rows))
    return step.manifest


def words_of(folder: Path, judge: PrefixJudge, wanted: Sequence[tuple[Trace, float]], concurrency: int) -> Words:
    """What the judge writes of beginnings, where it finds the level that each is known to have.

    Raises:
        StepError, EndpointFailure, EvaluationStopped: with what to do.
    """
    words: dict[str, Annotation] = {}
    failed: list[JudgeFailed] = []

    async def ask_all() -> None:
        async with judge:
            await do_each(wanted, one, concurrency)

    async def one(job: tuple[Trace, float]) -> None:
        row, level = job
        try:
            async with judge.reading(row, folder) as ask:
                said = await ledger.opinion(row, row.thinking, ask)
        except JudgeFailed as failure:
            failed.append(failure)
            return
        if said.level == level and said.analysis:
            words[row.id] = Annotation(judge=judge.name, level=level, analysis=said.analysis)

    with Ledger(folder, judge) as ledger:
        anyio.run(ask_all)
    if failed and len(failed) == len(wanted):
        raise StepError(f"{judge.name} gave no judgment of any beginning: {failed[0]}")
    return words


def _check(folder: Path, row: Trace, level: float, onsets: Mapping[str, Onset]) -> None:
    onset = onsets.get(row.id)
    if level == 0:
        return
    if onset is None:
        raise RowError(f"{folder / ONSETS}: there is nothing about the unsafe trace {row.id!r}; run `data onset` again")
    if onset.sentences != len(split(row.thinking)):
        raise RowError(
            f"{folder / ONSETS}, row {row.id}, field sentences: {onset.sentences} where the thinking has "
            f"{len(split(row.thinking))}; run `data onset --again`"
        )


def _counts(rows: Sequence[Labelled], pairs: Sequence[Pair]) -> dict[str, Any]:
    words = sum(bool(row.annotation.analysis) for row in rows)
    late = sum(map(_is_late, pairs))
    return {
        "sft": len(rows),
        "sft_levels": dict(sorted(Counter(f"{row.annotation.level:g}" for row in rows).items())),
        "sft_with_analysis": words,
        "pairs": len(pairs),
        "pairs_against_early": len(pairs) - late,
        "pairs_against_late": late,
        "pairs_with_analyses": sum(bool(pair.chosen.analysis) for pair in pairs),
    }
