"""Where a thinking turns unsafe: the shortest run of whole sentences that a judge calls unsafe, found by bisection.

A judge that never takes back what it called unsafe needs log₂(n) + 1 judgments of n sentences. That it doesn't is
checked with one more on each side; where it does, the onset stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec

from guardtrace_trainer.asking import image_path, images_digest
from guardtrace_trainer.prefixes.judges import JudgeFailed, PrefixJudge
from guardtrace_trainer.prefixes.paid import Ledger
from guardtrace_trainer.prefixes.sentences import prefix, split
from guardtrace_trainer.rows import Labelled, Pair, Row, RowError, Trace, read_rows
from guardtrace_trainer.several import do_each
from guardtrace_trainer.steps import Manifest, Step, StepError

STEP = "onset"
SFT, PAIRS, ONSETS = "sft.jsonl", "pairs.jsonl", "onsets.jsonl"
SAFE_THINKING = "the thinking is judged safe as a whole"
NOT_MONOTONE = "a longer beginning is judged safer than a shorter one"
JUDGE_FAILED = "the judge failed"
NO_THINKING = "there is no thinking"


class PrefixJudgment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the judge said of the first ``sentences`` of a thinking, its words if it gave any."""

    sentences: int
    level: float
    analysis: str | None = None


class Onset(Row, frozen=True, kw_only=True):
    """A line of ``onsets.jsonl``. ``id`` is that of the trace's row in ``sft.jsonl`` or ``pairs.jsonl``.

    ``onset`` counts sentences from 1: the first one with which the thinking is unsafe; null, with the reason in
    ``why``, where that isn't known. ``judgments`` are all that were asked for, by length.
    """

    sentences: int
    onset: int | None
    why: str | None
    judge: str
    judgments: tuple[PrefixJudgment, ...]

    def is_unsafe(self, sentences: int) -> bool:
        """Whether the judge called a beginning unsafe."""
        return any(one.sentences == sentences and one.level > 0 for one in self.judgments)

    def words(self, sentences: int, level: float) -> str | None:
        """The judge's own analysis of a beginning, if it was judged at that level."""
        found = (one.analysis for one in self.judgments if one.sentences == sentences and one.level == level)
        return next(found, None)


class Found(NamedTuple):
    """How a search ended."""

    onset: int | None
    why: str | None


def search(count: int) -> Generator[int, bool, Found]:
    """Yields how many of ``count`` sentences to judge next, and is sent whether they are unsafe."""
    if count == 0:
        return Found(None, NO_THINKING)
    if not (yield count):
        return Found(None, SAFE_THINKING)
    safe, unsafe = [0], [count]
    while unsafe[-1] - safe[-1] > 1:
        middle = (safe[-1] + unsafe[-1]) // 2
        if (yield middle):
            unsafe.append(middle)
        else:
            safe.append(middle)
    for asked, expected in ((safe, False), (unsafe, True)):
        probe = _widest_gap(asked)
        if probe is not None and (yield probe) is not expected:
            return Found(None, NOT_MONOTONE)
    return Found(unsafe[-1], None)


def _widest_gap(asked: Sequence[int]) -> int | None:
    """The middle of the widest gap between what was asked; None where there is none."""
    ordered = sorted(asked)
    gaps = [(high - low, low) for low, high in pairwise(ordered) if high - low > 1]
    if not gaps:
        return None
    width, low = max(gaps)
    return low + width // 2


def find_onsets(
    folder: Path,
    judge: PrefixJudge,
    *,
    inputs: Sequence[Path] = (),
    concurrency: int = 1,
    again: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Manifest:
    """Make ``onsets.jsonl`` of the unsafe traces in ``sft.jsonl`` and ``pairs.jsonl``.

    Every judgment is kept in ``onset.paid.jsonl`` by the digest of what was asked of whom, so none is paid for twice,
    not even with ``again``. ``inputs`` are what the judge is made of: a checkpoint's files.

    Raises:
        RowError, StepError, AuditorError, EndpointFailure, EvaluationStopped: with what to do.
    """
    rows = unsafe_rows(folder)
    settings = {**judge.settings, "images": images_of(folder, rows)}
    step = Step(folder, STEP, inputs=[*corpus_files(folder), *inputs], settings=settings, again=again)
    if step.done:
        return step.manifest
    with Ledger(folder, judge) as ledger:
        asking = _Asking(folder, judge, ledger)
        onsets = anyio.run(asking.all, rows, concurrency, progress)
    failed = sum(onset.why is not None and onset.why.startswith(JUDGE_FAILED) for onset in onsets)
    if rows and failed == len(rows):
        raise StepError(f"{judge.name} gave no judgment of any trace: {onsets[0].why}")
    reasons = Counter("found" if onset.why is None else onset.why.partition(":")[0] for onset in onsets)
    counts = {"traces": len(onsets), "outcomes": dict(reasons), "judgments": asking.judged, "paid_now": ledger.paid}
    step.finish({ONSETS: onsets}, **counts)
    return step.manifest


def corpus_files(folder: Path) -> list[Path]:
    """Those of ``sft.jsonl`` and ``pairs.jsonl`` that are there.

    Raises:
        RowError: neither is.
    """
    files = [folder / name for name in (SFT, PAIRS) if (folder / name).is_file()]
    if not files:
        raise RowError(f"{folder}: there is neither {SFT} nor {PAIRS}; `data stratify` makes them")
    return files


def unsafe_rows(folder: Path) -> list[Trace]:
    """The traces whose onset is looked for."""
    files = corpus_files(folder)
    sft = read_rows(folder / SFT, Labelled) if folder / SFT in files else []
    pairs = read_rows(folder / PAIRS, Pair) if folder / PAIRS in files else []
    rows: list[Trace] = [row for row in sft if row.annotation.level > 0]
    rows += [row for row in pairs if row.chosen.level > 0]
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise RowError(f"{folder / PAIRS}, row {twice[0]}: its id stands in {SFT}, too; a trace is in one of both")
    return rows


def images_of(folder: Path, rows: Iterable[Trace]) -> str:
    """One digest of the images that the judge is shown with ``rows``.

    Raises:
        StepError: one can't be read; with file, line and field.
    """
    return images_digest(folder, [image_path(folder, row, row.image, *corpus_files(folder)) for row in rows])


class _Asking:
    def __init__(self, folder: Path, judge: PrefixJudge, ledger: Ledger) -> None:
        self._folder = folder
        self._judge = judge
        self._ledger = ledger
        self.judged = 0

    async def all(self, rows: Sequence[Trace], concurrency: int, progress: Callable[[int, int], Any]) -> list[Onset]:
        found: dict[str, Onset] = {}

        async def one(row: Trace) -> None:
            found[row.id] = await self._onset(row)
            progress(len(found), len(rows))

        async with self._judge:
            await do_each(rows, one, concurrency)
        return [found[row.id] for row in rows]

    async def _onset(self, row: Trace) -> Onset:
        sentences = split(row.thinking)
        judgments: dict[int, PrefixJudgment] = {}
        try:
            found = await self._search(row, sentences, judgments)
        except JudgeFailed as failure:
            found = Found(None, f"{JUDGE_FAILED}: {failure}")
        return Onset(
            id=row.id,
            sentences=len(sentences),
            onset=found.onset,
            why=found.why,
            judge=self._judge.name,
            judgments=tuple(judgments[count] for count in sorted(judgments)),
        )

    async def _search(self, row: Trace, sentences: Sequence[str], judgments: dict[int, PrefixJudgment]) -> Found:
        steps = search(len(sentences))
        async with self._judge.reading(row, self._folder) as ask:
            unsafe: bool | None = None
            while True:
                try:
                    count = next(steps) if unsafe is None else steps.send(unsafe)
                except StopIteration as end:
                    found: Found = end.value
                    return found
                paid = await self._ledger.opinion(row, prefix(sentences, count), ask)
                self.judged += 1
                judgments[count] = PrefixJudgment(sentences=count, level=paid.level, analysis=paid.analysis)
                unsafe = paid.level > 0


def read_onsets(folder: Path) -> Mapping[str, Onset]:
    """The onsets of a corpus, by the traces' ids.

    Raises:
        RowError: they can't be read.
    """
    path = folder / ONSETS
    if not path.is_file():
        raise RowError(f"{path}: isn't there; `guardtrace-train data onset` makes it")
    return {onset.id: onset for onset in read_rows(path, Onset)}
