"""Items on which all three judges differ, decided by experts: three votes an item, the majority counts.

In the paper experts label these 287 items (GuardTrace-VL, arXiv 2511.20994, section 3); which annotation is rejected
isn't published. Here it is the one farthest from the experts' level, or on request both others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guardtrace_trainer.annotation.stratify import EXPERTS, Pick, agreement, votes_of
from guardtrace_trainer.rows import (
    LEVELS,
    Annotation,
    Labelled,
    Pair,
    Row,
    RowError,
    Vote,
    place_of,
    read_rows,
    row_as,
    write_rows,
)
from guardtrace_trainer.steps import Journal, Manifest, Step

STEP = "review"
REVIEWS, PAIRS, TEST = "reviews.jsonl", "expert_pairs.jsonl", "expert_test.jsonl"
COPIES = "reviews.copies.jsonl"
"""Those of ``reviews.jsonl`` that came from the copies that a recipe names."""
LEAST_VOTES = 3
Reject = Literal["farthest", "both"]


class Review(Row, frozen=True, kw_only=True):
    """What one expert says of one item; ``version`` is that of the text that was shown."""

    item: str
    version: str
    expert: str
    level: float
    comment: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError("a level is 0, 0.5 or 1")


@dataclass(frozen=True)
class Tally:
    """Where the items stand. ``waiting`` lack votes; ``divided`` have three or more, and no level has most of them."""

    levels: Mapping[str, float]
    waiting: Sequence[str]
    divided: Sequence[str]


def review_of(item: Vote, expert: str, level: float, comment: str = "") -> Review:
    """One expert's vote; a second one of theirs on the item has the same id and takes its place."""
    return Review(
        id=f"{item.id} {expert.strip().casefold()}",
        item=item.id,
        version=version(item),
        expert=expert.strip(),
        level=level,
        comment=comment,
    )


def version(item: Vote) -> str:
    """A short digest of what an expert is shown: votes on an older text don't count for a newer one. It begins with a
    letter, since spreadsheets take digits with an e for a number."""
    shown = [item.question, item.image or "", item.thinking, item.answer, *sorted(one.analysis for one in item.votes)]
    return "v" + hashlib.sha256("\0".join(shown).encode()).hexdigest()[:12]


def in_shown_order(item: Vote) -> list[Annotation]:
    """The annotations in an order that says nothing of their judges."""
    return sorted(item.votes, key=lambda one: hashlib.sha256(f"{item.id}\n{one.judge}".encode()).digest())


def tally(items: Sequence[Vote], reviews: Iterable[Review]) -> Tally:
    """Count the votes: an item is decided once three experts voted and more than half of all agree."""
    votes: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for review in reviews:
        votes[review.item, review.version][review.id] = review.level
    levels: dict[str, float] = {}
    waiting: list[str] = []
    divided: list[str] = []
    for item in items:
        given = list(votes.get((item.id, version(item)), {}).values())
        if len(given) < LEAST_VOTES:
            waiting.append(item.id)
            continue
        level, count = Counter(given).most_common(1)[0]
        if 2 * count > len(given):
            levels[item.id] = level
        else:
            divided.append(item.id)
    return Tally(levels, waiting, divided)


def expert_pairs(item: Vote, level: float, pick: Pick, reject: Reject = "farthest") -> list[Pair]:
    """The item's pair, or both: chosen is the annotation of the experts' level. Of two that are equally far from it
    ``pick`` rejects one."""
    chosen = next(one for one in item.votes if one.level == level)
    others = [one for one in item.votes if one.level != level]
    if reject == "both":
        ids = {one.judge: f"{item.id}-not-{one.level:g}" for one in others}
    else:
        farthest = max(abs(one.level - level) for one in others)
        others = [pick.one_of(item.id, [one for one in others if abs(one.level - level) == farthest])]
        ids = {others[0].judge: item.id}
    return [
        row_as(item, Pair, id=ids[one.judge], agreement="1:1:1", chosen=chosen, rejected=one, origin="expert")
        for one in others
    ]


def read_items(folder: Path) -> list[Vote]:
    """The items of ``experts.jsonl``.

    Raises:
        RowError: a row doesn't fit, or its judges don't differ.
    """
    path = folder / EXPERTS
    items = votes_of(path)
    for item in items:
        if agreement(item) != "1:1:1":
            raise RowError(f"{place_of(item.id, path)}, field votes: expected three different levels")
    return items


def read_reviews(folder: Path) -> list[Review]:
    """All votes so far."""
    if not (folder / REVIEWS).exists():
        return []
    with Journal(folder / REVIEWS, Review) as journal:
        return list(journal.rows.values())


def keep_reviews(folder: Path, reviews: Iterable[Review]) -> None:
    """Add votes to ``reviews.jsonl``; they outlive a crash."""
    with Journal(folder / REVIEWS, Review) as journal:
        for review in reviews:
            if journal.rows.get(review.id) != review:
                journal.add(review)


def take_copies(folder: Path, given: Sequence[Review]) -> None:
    """Votes of experts' copies, in the place of all that copies gave before: what was withdrawn in them counts no more.
    Votes that were given otherwise stay."""
    before = {review.id for review in read_rows(folder / COPIES, Review)} if (folder / COPIES).exists() else set()
    replaced = before | {review.id for review in given}
    if not replaced:
        return
    with Journal(folder / REVIEWS, Review) as journal:  # open, so that nobody votes meanwhile
        others = [review for review in journal.rows.values() if review.id not in replaced]
        write_rows(folder / REVIEWS, [*others, *given])
        write_rows(folder / COPIES, given)


def decide(folder: Path, *, reject: Reject = "farthest", pick: Pick | None = None) -> tuple[Tally, Manifest]:
    """Make ``expert_pairs.jsonl`` (train) and ``expert_test.jsonl`` (test) from the votes so far.

    Raises:
        RowError, StepError: with what to do.
    """
    pick = pick or Pick()
    items, reviews = read_items(folder), read_reviews(folder)
    found = tally(items, reviews)
    inputs = [path for path in (folder / EXPERTS, folder / REVIEWS) if path.exists()]
    settings = {"reject": reject, "seed": pick.seed, "priority": list(pick.priority)}
    step = Step(folder, STEP, inputs=inputs, settings=settings, again=True)  # it pays nothing, and votes keep coming
    decided = [(item, found.levels[item.id]) for item in items if item.id in found.levels]
    pairs = [
        pair for item, level in decided if item.split == "train" for pair in expert_pairs(item, level, pick, reject)
    ]
    test = [_labelled(item, level) for item, level in decided if item.split == "test"]
    current = {(item.id, version(item)) for item in items}
    step.finish(
        {PAIRS: pairs, TEST: test},
        items=len(items),
        decided=len(decided),
        waiting=len(found.waiting),
        divided=list(found.divided),
        votes=len(reviews),
        votes_on_other_versions=sum((review.item, review.version) not in current for review in reviews),
        levels=dict(sorted(Counter(f"{level:g}" for _, level in decided).items())),
    )
    return found, step.manifest


def _labelled(item: Vote, level: float) -> Labelled:
    annotation = next(one for one in item.votes if one.level == level)
    return row_as(item, Labelled, agreement="1:1:1", annotation=annotation, origin="expert")
