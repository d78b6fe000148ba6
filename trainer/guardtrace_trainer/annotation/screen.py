"""A plain screen on which one expert judges items, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from guardtrace_trainer.annotation.forms import LEVEL_CELLS
from guardtrace_trainer.annotation.review import (
    Review,
    in_shown_order,
    keep_reviews,
    read_items,
    read_reviews,
    review_of,
    tally,
    version,
)
from guardtrace_trainer.rows import Vote
from guardtrace_trainer.terminal import printable, quoted

PROMPT = "0, 0.5 or 1 (s: skip, q: quit): "


def review_on_screen(folder: Path, expert: str, ask: Callable[[str], str], show: Callable[[str], None]) -> int:
    """Ask ``expert`` for every item that is open and without their vote; each answer is kept at once.

    ``ask`` shows a prompt and gives a line, or raises EOFError, which quits. Returns how many were judged.

    Raises:
        RowError, StepError: with what to do.
    """
    items = _left(read_items(folder), read_reviews(folder), expert)
    judged = 0
    for number, item in enumerate(items, 1):
        show(f"\n{number} of {len(items)}\n{screen_text(folder, item)}")
        answer = _answer(ask, show)
        if answer == "q":
            break
        if answer != "s":
            keep_reviews(folder, [review_of(item, expert, LEVEL_CELLS[answer])])
            judged += 1
    return judged


def screen_text(folder: Path, item: Vote) -> str:
    """An item as it is shown. Models' text can neither drive the terminal nor pass for the screen's own: control
    characters are escaped, and each of its lines is marked."""
    parts = [("Item", item.id)]
    if item.image is not None:
        parts.append(("Image", str(folder / item.image)))
    parts += [("Question", item.question), ("Thinking", item.thinking), ("Answer", item.answer)]
    for number, one in enumerate(in_shown_order(item), 1):
        parts.append((f"Annotation {number}: {one.level:g}", one.analysis))
    return "\n".join(f"{heading}\n{quoted(text)}" for heading, text in parts)


def _answer(ask: Callable[[str], str], show: Callable[[str], None]) -> str:
    while True:
        try:
            answer = ask(PROMPT).strip().lower()
        except EOFError:
            return "q"
        if answer in LEVEL_CELLS or answer in ("s", "q"):
            return answer
        show(f"{printable(answer)!r} is none of these.")


def _left(items: Sequence[Vote], reviews: Sequence[Review], expert: str) -> list[Vote]:
    decided = tally(items, reviews).levels
    given = {(review.id, review.version) for review in reviews}
    return [
        item
        for item in items
        if item.id not in decided and (review_of(item, expert, 0.0).id, version(item)) not in given
    ]
