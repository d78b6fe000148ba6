"""What the warm-up's documents say, and what a reader knows on the way: requests in a row; thinking; traces as
conversations, in the auditor's layout, or pasted behind a request; and short exchanges as any instruct model has them.
No analysis and no judgment is among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from guardtrace_proxy.auditor.prompt import user_text
from guardtrace_trainer.nano.authored import SAFE
from guardtrace_trainer.nano.corpus import (
    CUES,
    STRENGTHS,
    SYSTEM_PROMPT,
    TOLD,
    Excerpt,
    Sample,
    described,
    make_sample,
    random_excerpt,
    whole,
)
from guardtrace_trainer.nano.questions import asked_for, request
from guardtrace_trainer.nano.render import Picture, any_picture
from guardtrace_trainer.nano.wording import VAGUE_GOALS, goals, remarks

USER = "<|im_start|>user\n"
HEAD = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n{USER}"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
HARMLESS, HARMFUL = len(STRENGTHS), len(STRENGTHS) + 1
LINES = (*STRENGTHS, "harmless", "harmful")
"""What a line can be by itself: a sentence of thinking, by its strength, or a request."""
SO_FAR = tuple(f"{harm}, {strength}" for harm in LINES[HARMLESS:] for strength in STRENGTHS)
"""What a trace can be so far: what is asked for, and the strongest sentence."""
SHOWS = "What does the image show?"
DECLINES, HELPS = "Sorry, I can't.", "Sure, here it is."
GIVEN = ("Neither.", "A hint.", "Steps.")
"""By strength. All replies of a kind are worded alike, so that nothing of one has to be learned but which it is."""
ROWS, THOUGHTS, TRACES, EXCHANGES = 5, 3, 6, 2
"""Of sixteen documents. Of the tokens about 0.40, 0.22, 0.35 and 0.04: lengths differ. With more traces and fewer rows,
more safe beginnings were taken for harm."""
FIRST_ROWS = 2
"""Rows for each document of thinking at the beginning, where nothing else is read."""
FEWEST_IN_A_ROW, MOST_IN_A_ROW = 5, 12
ALONE = 0.4
"""Share of the requests in a row that are a goal alone."""
REMARKED = 0.4
"""Share of the other requests that have a remark from another one before them, and as many behind them: so a known goal
is found in questions of any shape."""
TELLING = 0.9
"""Share of the traces in a row of thinking whose sentences are short and mostly give something."""
LETTERS_IN_A_ROW = 500
PICTURED, TOGETHER = 0.15, 0.68
"""Shares of the traces whose harm would stand in an image, and of those that were put together from a goal in words;
the others are of all kinds."""
CONVERSATIONS, LAYOUTS = 0.2, 0.55
"""Shares of the traces; the others are pasted behind their request."""
DESCRIBED, ASKED_OF_PICTURES = 0.5, 0.25
"""Shares of the exchanges; the others are requests in words."""


class Piece(NamedTuple):
    """A stretch of a document: ``told`` where it is foretold, as a reply is. A reader knows at its end what it is by
    itself (``line``, of ``LINES``; of the layout's own words that of the request before them) and what all is up to
    there (``so_far``, of ``SO_FAR``), where they are given: on its last token, or on all behind the share
    ``known_from``."""

    text: str
    told: bool = False
    line: int | None = None
    so_far: int | None = None
    known_from: float = 1.0


class Document(NamedTuple):
    """Pieces, what stands before everything, and the picture behind that."""

    pieces: tuple[Piece, ...]
    picture: Picture | None = None
    head: str = HEAD


Draw = Callable[[random.Random], Document]


def row(rng: random.Random) -> Document:
    """Requests, each with a line break behind it: most of them for the tokens."""
    pieces: list[Piece] = []
    for _ in range(rng.randint(FEWEST_IN_A_ROW, MOST_IN_A_ROW)):
        harm = rng.random() < 0.5
        goal, text = _request(rng, harm)
        pieces += [*_asked(text, goal, _line(harm)), Piece("\n", line=_line(harm))]
    return Document(tuple(pieces), head=USER)


def thinking(rng: random.Random) -> Document:
    """Thinking alone, of one trace after the other: most sentences for the tokens."""
    pieces: list[Piece] = []
    while sum(len(piece.text) for piece in pieces) < LETTERS_IN_A_ROW:
        sample = make_sample(rng, cue="text" if rng.random() < TELLING else None)
        said = _sentences(whole(sample))
        answer = Piece(sample.answer, line=sample.answer_strength, known_from=TOLD)
        pieces += [*(piece._replace(so_far=None) for piece in said), Piece("\n\n"), answer, Piece("\n\n")]
    return Document(tuple(pieces))


def trace(rng: random.Random) -> Document:
    """A trace, whole or up to some point, and mostly a reply: to the request, or about what the text gives."""
    excerpt = random_excerpt(_sample(rng), rng)
    sample = excerpt.sample
    draw = rng.random()
    if draw < CONVERSATIONS:
        before, between, after = "", f"{TAIL}<think>\n", f"\n</think>\n\n{excerpt.answer}"
    elif draw < CONVERSATIONS + LAYOUTS:
        layout, after = user_text(sample.question, "\0", excerpt.answer).split("\0")
        before, _, between = layout.partition(sample.question)
    else:
        before, between, after = "", "\n\nI thought: ", f"\n\n{excerpt.answer}"
    asks = None if _is_vague(sample) or sample.cue != "text" else _line(sample.harm)
    pieces = [
        Piece(before),
        *_asked(sample.question, sample.goal, asks),
        Piece(between, line=asks, so_far=_so_far(sample, SAFE), known_from=0.0),
        *_sentences(excerpt),
    ]
    judged = _so_far(sample, excerpt.strength)
    if draw < CONVERSATIONS:
        return Document((*pieces, *_answered(after, excerpt, judged)), sample.picture)
    asked_again = rng.random() < 0.5 and judged is not None
    reply = _reply(sample.harm) if asked_again else GIVEN[excerpt.strength]
    replied = Piece(f"{reply}{END}", told=True)
    return Document((*pieces, *_answered(f"{after}{TAIL}", excerpt, judged), replied), sample.picture)


def exchange(rng: random.Random) -> Document:
    """What an instruct model says of a request, in words or in a picture (it declines what is harmful and helps with
    all else), or what a picture shows."""
    draw = rng.random()
    harm = rng.random() < 0.5
    if draw < DESCRIBED:
        picture = any_picture(rng)
        return _replied(SHOWS, f"{described(picture)}.", picture)
    if draw < DESCRIBED + ASKED_OF_PICTURES:
        sample = make_sample(rng, cue=rng.choice(CUES[1:]), harm=harm)
        return _replied(sample.question, _reply(harm), sample.picture)
    return _replied(asked_for(rng, harm), _reply(harm), None)


def nearby(rng: random.Random) -> Document:
    """Rows of requests and of thinking: what can be told without looking far."""
    return rng.choices((row, thinking), (FIRST_ROWS, 1))[0](rng)


def anything(rng: random.Random) -> Document:
    """Documents of all kinds."""
    return rng.choices((row, thinking, trace, exchange), (ROWS, THOUGHTS, TRACES, EXCHANGES))[0](rng)


def _request(rng: random.Random, harm: bool) -> tuple[str, str]:
    """What is wanted, and the request for it."""
    if rng.random() < ALONE:
        goal = rng.choice(goals(harm))
        return goal, goal
    goal, question = request(rng, harm, False, None)
    before = f"{rng.choice(remarks())} " if rng.random() < REMARKED else ""
    after = f" {rng.choice(remarks())}" if rng.random() < REMARKED else ""
    return goal, f"{before}{question}{after}"


def _sample(rng: random.Random) -> Sample:
    draw = rng.random()
    if draw < PICTURED:
        return make_sample(rng, cue=rng.choice(CUES[1:]))
    return make_sample(rng, cue="text" if draw < PICTURED + TOGETHER else None)


def _asked(text: str, goal: str, asks: int | None) -> Iterator[Piece]:
    """A request: what it is shows where its goal ends, if that stands in it."""
    at = text.rfind(goal) if goal and asks is not None else -1
    if at < 0:
        yield Piece(text)
        return
    end = at + len(goal)
    yield Piece(text[:end], line=asks)
    yield Piece(text[end:])


def _sentences(excerpt: Excerpt) -> Iterator[Piece]:
    """The thinking, sentence by sentence. Of a sentence so much gives away what all of it does."""
    start = 0
    for end, most, own in excerpt.ends:
        so_far = _so_far(excerpt.sample, most)
        yield Piece(excerpt.thinking[start:end], line=own, so_far=so_far, known_from=TOLD)
        start = end
    yield Piece(excerpt.thinking[start:])


def _answered(after: str, excerpt: Excerpt, judged: int | None) -> Iterator[Piece]:
    """What stands behind the thinking, an answer in it. At its end all is known."""
    at = after.rfind(excerpt.answer) if excerpt.answer else -1
    if at >= 0:
        end = at + len(excerpt.answer)
        yield Piece(after[:at])
        yield Piece(after[at:end], line=excerpt.sample.answer_strength, so_far=judged, known_from=TOLD)
        after = after[end:]
    yield Piece(after, so_far=judged)


def _line(harm: bool) -> int:
    return HARMFUL if harm else HARMLESS


def _so_far(sample: Sample, most: int) -> int | None:
    """What a trace is so far. Of a request that says nothing it can't be known before the text tells."""
    if _is_vague(sample) and most == SAFE:
        return None
    return len(STRENGTHS) * sample.harm + most


def _is_vague(sample: Sample) -> bool:
    return sample.goal in VAGUE_GOALS


def _reply(harm: bool) -> str:
    return DECLINES if harm else HELPS


def _replied(request: str, reply: str, picture: Picture | None) -> Document:
    return Document((Piece(f"{request}{TAIL}"), Piece(f"{reply}{END}", told=True)), picture)
