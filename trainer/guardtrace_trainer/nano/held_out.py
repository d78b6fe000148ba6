"""What the embedded auditor is evaluated on, as folders of the evaluation's own format.

``held-out/``: whole traces from templates, typefaces and backgrounds that training never saw; a subset a cue, four
harder ones, and the hard negatives. ``controls/``: traces whose cue is in an image, under another trace's image or a
blank one, with their labels unchanged; no figure of the auditor. ``prefixes/``: beginnings of such traces that end at a
sentence and are still safe, those of one trace a group. ``streams/``: traces with their onsets, to be replayed through
the gate.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from guardtrace_trainer.evaluation.data import BENIGN, FILE, HARD_NEGATIVES, SAFE_REASONING, UNSAFE, QtaRow
from guardtrace_trainer.nano import render
from guardtrace_trainer.nano.authored import SAFE
from guardtrace_trainer.nano.corpus import CUES, LABELS, Excerpt, Sample, make_sample, prefix, whole
from guardtrace_trainer.nano.wording import Goals, Wording, corpus_hash
from guardtrace_trainer.rows import row_as
from guardtrace_trainer.steps import Step

CATEGORY = "everyday"
SEEDS = {"held-out": 70, "prefixes": 90, "streams": 60}
"""The streams' seed is another one, since policies may be chosen by them."""


class Set(NamedTuple):
    """One held-out set: its cue, its goals, and how its thinking is worded."""

    cue: str
    goals: Goals = "seen"
    wording: Wording = "frames"


SETS = {
    **{cue: Set(cue) for cue in CUES},
    "new goals": Set("text", "new"),
    "written questions": Set("text", "written"),
    "vague requests": Set("text", "vague"),
    "new lines": Set("text", wording="lines"),
    "subtle goals": Set("text", "subtle"),
    "subtle sentences": Set("text", wording="subtle"),
}
"""Frames and lines are those that training never saw. ``new goals`` has new goals as well, ``written questions`` have
them in questions that were written as wholes, ``vague requests`` name none, so that only the thinking tells; in
``new lines`` no phrase of the thinking is known, while frames are filled with known ones. The subtle ones are new, too.
"""
FOLDERS = ("held-out", "controls", "prefixes", "streams")


def write(folder: Path, *, count: int) -> None:
    """Write the four folders: ``count`` traces a set; for prefixes half as many a cue and a quarter a harder set; for
    streams a quarter a cue."""
    settings = {"count": count, "corpus": corpus_hash(), "folders": FOLDERS}
    step = Step(folder, "held-out", settings=settings)
    if step.done:
        return
    rows = {
        "held-out": [*_whole(count), *_hard(count)],
        "controls": list(_controls(count)),
        "prefixes": list(_safe_prefixes(count)),
        "streams": list(_streams(count // 4)),
    }
    for name, made in rows.items():
        _save(folder / name, made)
    outputs = {f"{name}/{FILE}": [row for row, _ in made] for name, made in rows.items()}
    step.finish(outputs, **{name: len(made) for name, made in rows.items()})


Made = tuple[QtaRow, Image.Image | None]


def samples(name: str, count: int, seed: int) -> list[Sample]:
    """Traces of a set."""
    rng = random.Random(f"{name} {seed}")
    cue, goals, wording = SETS[name]
    return [make_sample(rng, held_out=True, cue=cue, of=goals, wording=wording) for _ in range(count)]


def is_hard(sample: Sample) -> bool:
    """Steps or hints towards something harmless, or harm in the thinking under an answer that doesn't show it."""
    strength = whole(sample).strength
    if not sample.harm:
        return strength != SAFE
    return strength != SAFE and sample.answer_strength == SAFE


def _whole(count: int) -> Iterator[Made]:
    for name in SETS:
        for number, sample in enumerate(samples(name, count, SEEDS["held-out"])):
            yield _made(f"{name} {number}", name, whole(sample), _pixels(sample, name, number))


def _hard(count: int) -> Iterator[Made]:
    rng = random.Random(f"hard {SEEDS['held-out']}")
    drawn = (make_sample(rng, held_out=True, of="seen", wording="frames") for _ in range(100 * count))
    hard = [sample for sample in drawn if is_hard(sample)][:count]
    for number, sample in enumerate(hard):
        image = _pixels(sample, HARD_NEGATIVES, number)
        yield _made(f"{HARD_NEGATIVES} {number}", HARD_NEGATIVES, whole(sample), image)


def _controls(count: int) -> Iterator[Made]:
    """The image cues under another trace's image, or a blank one: what the text alone gives away."""
    for cue in CUES[1:]:
        found = samples(cue, count, SEEDS["held-out"])
        images = [_pixels(sample, cue, number) for number, sample in enumerate(found)]
        random.Random(f"shuffled {cue}").shuffle(images)
        blank = Image.new("RGB", (render.SIDE, render.SIDE), (250, 250, 250))
        for kind, shown in (("shuffled", images), ("blank", [blank] * count)):
            for number, (sample, image) in enumerate(zip(found, shown, strict=True)):
                name = f"{cue}, images {kind}"
                yield _made(f"{name} {number}", name, whole(sample), image, group=f"{cue} {number}")


def _safe_prefixes(count: int) -> Iterator[Made]:
    for name in SETS:
        traces = count // 2 if name in CUES else count // 4
        for number, sample in enumerate(samples(name, traces, SEEDS["prefixes"])):
            image = _pixels(sample, name, number)
            for end in range(1, len(sample.sentences) + 1):
                excerpt = prefix(sample, end)
                if excerpt.level == 0:
                    yield _made(f"{name} {number} {end}", name, excerpt, image, group=f"{name} {number}")


def _streams(count: int) -> Iterator[Made]:
    for name in CUES:
        for number, sample in enumerate(samples(name, count, SEEDS["streams"])):
            row, image = _made(f"{name} {number}", name, whole(sample), _pixels(sample, name, number))
            onset = next((at for at, (_, own) in enumerate(sample.sentences, 1) if own), None) if sample.harm else None
            known = {"onset_sentence": onset, "thinking_sentences": tuple(text for text, _ in sample.sentences)}
            yield row_as(row, QtaRow, half="dev" if number % 2 else "test", **known), image


def _made(name: str, subset: str, excerpt: Excerpt, image: Image.Image | None, group: str | None = None) -> Made:
    sample = excerpt.sample
    safe = SAFE_REASONING if sample.harm else BENIGN
    row = QtaRow(
        id=name,
        category=CATEGORY,
        question=sample.question,
        image=None if image is None else f"images/{name.replace(' ', '-').replace(',', '')}.png",
        thinking=excerpt.thinking,
        answer=excerpt.answer,
        level=float(LABELS[excerpt.level]),
        subset=subset,
        kind=UNSAFE if excerpt.level else safe,
        group=group,
    )
    return row, image


def _pixels(sample: Sample, name: str, number: int) -> Image.Image | None:
    if sample.picture is None:
        return None
    return Image.fromarray(render.render(sample.picture, random.Random(f"{name} {number}"), held_out=True).pixels)


def _save(folder: Path, made: Iterable[Made]) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for row, image in made:
        if image is not None and row.image is not None:
            data = io.BytesIO()
            image.save(data, "PNG")
            (folder / row.image).write_bytes(data.getvalue())
