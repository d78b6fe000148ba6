"""What the warm-up's documents say: descriptions of pictures; plain traces as conversations and in the auditor's
layout; requests, alone or with a text behind them; and talks as any instruct model has them. No analysis and no
judgment is among them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from guardtrace_proxy.auditor.prompt import user_text
from guardtrace_trainer.nano.corpus import (
    CUES,
    SYSTEM_PROMPT,
    Excerpt,
    Sample,
    described,
    make_sample,
    random_excerpt,
    whole,
)
from guardtrace_trainer.nano.questions import asked_for
from guardtrace_trainer.nano.render import Picture, any_picture
from guardtrace_trainer.nano.wording import goals, remarks

USER = "<|im_start|>user\n"
HEAD = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n{USER}"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
NEXT = "\n<|im_start|>user\n"
THINKING, EXCHANGES, PASTED, TALKS = 0.2, 0.6, 0.12, 0.045
"""Shares of all documents; the others are plain. Of the tokens about 0.42, 0.22, 0.15, 0.16: lengths differ."""
LAST_EXCHANGES, LAST_PASTED, LAST_THINKING = 0.35, 0.4, 0.2
"""Shares of the last documents; the others are of all kinds."""
DESCRIPTIONS, CONVERSATIONS = 0.33, 0.33
"""Shares of the plain documents; the others are traces in the auditor's layout."""
TELLING = 0.9
"""Share of the traces in a row of thinking whose sentences are short and mostly give something."""
LETTERS_IN_A_ROW = 500
MARKS = (" -", " ?", " !")
"""By strength: a reader's mark behind a sentence that gives nothing, a hint or a step, whatever it is about."""
MARKED = 0.8
"""Share of the sentences that have theirs, at random: whether one comes can't be known, so every sentence is read."""
SHOWS, GIVES, MORE = "What does the image show?", "What does the text give?", "And so far?"
DECLINES, HELPS = "Sorry, I can't.", "Sure, here it is."
GIVEN = ("Neither.", "A hint.", "Steps.")
"""By strength. All replies of a kind are worded alike, so that nothing of one has to be learned but which it is."""
PICTURED = 0.12
"""Share of the exchanges, and of the pasted, about a picture. The other exchanges are a short request each: what is
harmful takes many of them."""
BARE, WITHOUT_SYSTEM = 0.6, 0.7
"""Shares of these that are a goal alone, and that have no system prompt: in half the tokens they teach as much."""
REMARKED, REMARKED_AFTER = 0.5, 0.25
"""Shares of the other requests that have a remark from another one before them, and behind them: so a known goal is
found in questions of any shape."""
READS, AT_ONCE = 0.5, 0.3
"""Shares of a talk's parts that read a text, and of those that read it in one piece."""
TALKS_OF_PICTURES, COMES_BACK = 0.4, 0.4
"""Shares of the talks that begin with a picture, and of their later requests that come back to it."""
ROOM = 260
"""Tokens after which a talk takes up nothing new."""
FORETOLD = 0.25
"""Share of a trace's tokens: with a large vocabulary their logits would cost more than all layers together."""
LETTERS_PER_TOKEN = 4


class Document(NamedTuple):
    """Turns of a text that is given and one that is to be foretold after it, and the picture before all of them.
    ``foretold``: how much of what is given is foretold as well, drawn at random. ``head`` stands before everything."""

    turns: tuple[tuple[str, str], ...]
    picture: Picture | None
    foretold: float = 0.0
    head: str = HEAD


Draw = Callable[[random.Random], Document]


def plain(rng: random.Random) -> Document:
    """A description, or a trace with a reader's marks: a conversation, or in the auditor's layout."""
    draw = rng.random()
    if draw < DESCRIPTIONS:
        picture = any_picture(rng)
        return Document((_shows(picture),), picture)
    sample = make_sample(rng)
    if draw < DESCRIPTIONS + CONVERSATIONS:
        excerpt = whole(sample)
        before, after = f"{sample.question}{TAIL}<think>\n", f"\n</think>\n\n{sample.answer}"
    else:
        excerpt = random_excerpt(sample, rng)
        before, after = user_text(sample.question, "\0", excerpt.answer).split("\0")
    turns = [(before, ""), *_marked(excerpt, rng), (f"{after}<|im_end|>", "")]
    return Document(tuple(turns), sample.picture, FORETOLD)


def thinking(rng: random.Random) -> Document:
    """Thinking alone, of one trace after the other, with a reader's marks: most sentences for the tokens."""
    turns: list[tuple[str, str]] = []
    while sum(len(given) for given, _ in turns) < LETTERS_IN_A_ROW:
        sample = make_sample(rng, cue="text" if rng.random() < TELLING else None)
        turns += [*_marked(whole(sample), rng), ("\n\n", "")]
    turns[-1] = ("<|im_end|>", "")
    return Document(tuple(turns), None)


def exchange(rng: random.Random) -> Document:
    """What an instruct model says of a request, in words or in a picture (it declines what is harmful and helps with
    all else), or what a picture shows."""
    draw = rng.random()
    if draw < PICTURED / 3:
        picture = any_picture(rng)
        return Document((_shows(picture),), picture)
    harm = rng.random() < 0.5
    if draw < PICTURED:
        sample = make_sample(rng, cue=rng.choice(CUES[1:]), harm=harm)
        return Document((_asked(sample),), sample.picture)
    head = USER if rng.random() < WITHOUT_SYSTEM else HEAD
    return Document((_replied(_request(rng, harm), harm),), None, head=head)


def _request(rng: random.Random, harm: bool) -> str:
    if rng.random() < BARE:
        return rng.choice(goals(harm))
    question = asked_for(rng, harm)
    before = f"{rng.choice(remarks())} " if rng.random() < REMARKED else ""
    after = f" {rng.choice(remarks())}" if rng.random() < REMARKED_AFTER else ""
    return f"{before}{question}{after}"


def pasted(rng: random.Random) -> Document:
    """A request with somebody's thinking and answer pasted behind it. The reply is to the request, which stands far
    from it, as the query of a trace does from its judgment."""
    cue = rng.choice(CUES[1:]) if rng.random() < PICTURED else "text"
    sample = make_sample(rng, cue=cue, harm=rng.random() < 0.5)
    excerpt = random_excerpt(sample, rng)
    text = "\n\n".join(part for part in (sample.question, excerpt.thinking, excerpt.answer) if part)
    return Document((_replied(text, sample.harm),), sample.picture)


def talk(rng: random.Random) -> Document:
    """The same one after the other, as in a long conversation, and what a text gives, harmful or not."""
    turns: list[tuple[str, str]] = []
    picture, cue, harm = None, rng.choice(CUES[1:]), rng.random() < 0.5
    tells = False
    if rng.random() < TALKS_OF_PICTURES:
        tells = rng.random() < 0.8
        picture = make_sample(rng, cue=cue, harm=harm).picture if tells else any_picture(rng)
        turns.append(_shows(picture))
    while sum(len(given) + len(told) for given, told in turns) < ROOM * LETTERS_PER_TOKEN:
        if rng.random() < READS:
            turns += _read(make_sample(rng), rng)
        elif tells and rng.random() < COMES_BACK:
            turns.append(_asked(make_sample(rng, cue=cue, harm=harm)))
        else:
            harmful = rng.random() < 0.5
            turns.append(_replied(asked_for(rng, harmful), harmful))
    return Document((turns[0], *((f"{NEXT}{given}", told) for given, told in turns[1:])), picture)


def anything(rng: random.Random) -> Document:
    """Documents of all kinds."""
    kinds = (thinking, exchange, pasted, talk, plain)
    rest = 1 - THINKING - EXCHANGES - PASTED - TALKS
    return rng.choices(kinds, (THINKING, EXCHANGES, PASTED, TALKS, rest))[0](rng)


def requests(rng: random.Random) -> Document:
    """Requests mostly, alone or with a text behind them: among all kinds too few steps are about them. Thinking keeps
    what was learned of sentences from wearing off."""
    kinds = (exchange, pasted, thinking, anything)
    rest = 1 - LAST_EXCHANGES - LAST_PASTED - LAST_THINKING
    return rng.choices(kinds, (LAST_EXCHANGES, LAST_PASTED, LAST_THINKING, rest))[0](rng)


def _shows(picture: Picture | None) -> tuple[str, str]:
    return f"{SHOWS}{TAIL}", f"{described(picture)}.<|im_end|>"


def _asked(sample: Sample) -> tuple[str, str]:
    return _replied(sample.question, sample.harm)


def _replied(request: str, harm: bool) -> tuple[str, str]:
    return f"{request}{TAIL}", f"{DECLINES if harm else HELPS}<|im_end|>"


def _read(sample: Sample, rng: random.Random) -> list[tuple[str, str]]:
    """The thinking, and perhaps the answer, mostly in pieces; told after each is the most that the text gave so far."""
    pieces = [*sample.sentences, *([(sample.answer, sample.answer_strength)] if rng.random() < 0.5 else [])]
    turns = []
    most, given, length = 0, GIVES, 0
    at_once = rng.random() < AT_ONCE
    while pieces and length < ROOM * LETTERS_PER_TOKEN:
        count = len(pieces) if at_once else rng.choice((1, 1, 2, 3))
        now, pieces = pieces[:count], pieces[count:]
        most = max([most, *(strength for _, strength in now)])
        given = f"{given}\n{' '.join(text for text, _ in now)}"
        turns.append((f"{given}{TAIL}", f"{GIVEN[most]}<|im_end|>"))
        length += len(given)
        given = MORE
    return turns


def _marked(excerpt: Excerpt, rng: random.Random) -> list[tuple[str, str]]:
    """The thinking, sentence by sentence, with a mark behind some."""
    ends = [0, *(end for end, _, _ in excerpt.ends)]
    turns = [
        (excerpt.thinking[start:end], MARKS[own] if rng.random() < MARKED else "")
        for start, (end, _, own) in zip(ends, excerpt.ends, strict=False)
    ]
    return [*turns, (excerpt.thinking[ends[-1] :], "")]
