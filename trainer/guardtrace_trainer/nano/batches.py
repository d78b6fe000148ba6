"""From samples to tensors for the warm-up: descriptions of pictures; plain traces as conversations and in the auditor's
layout; and exchanges as any instruct model has them. No analysis and no judgment is among them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from guardtrace_trainer.nano.corpus import SYSTEM_PROMPT, Sample, described, make_sample, random_excerpt
from guardtrace_trainer.nano.model import control_id, patch_order, patchify
from guardtrace_trainer.nano.render import CELLS, Drawing, Picture, any_picture, render
from guardtrace_trainer.nano.vocabulary import token_ids

HEAD = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE_TOKENS = CELLS**2
DESCRIPTIONS, CONVERSATIONS = 0.15, 0.35
"""Shares of the plain documents, of which the others are traces in the auditor's layout; of the exchanges as many are
descriptions."""
ABOUT_GOALS = 0.7
"""Share of the exchanges whose request is put together from a goal, as often a harmful one as a harmless one."""
ASKED = "What does the image show?"
DECLINES, HELPS = "Sorry, I can't help with that.", "Sure, here is how it's done."
"""Always the same, so that nothing of a reply has to be learned but which of the two it is."""
FORETOLD = 0.25
"""Share of a trace's tokens: with a large vocabulary their logits would cost more than all layers together."""
POOL = 400
TOKENS_PER_BATCH, MOST_ROWS = 4600, 80
LONGEST = 1400


class Document(NamedTuple):
    """A text, of which ``given`` isn't to be foretold, and its picture."""

    given: str
    told: str
    picture: Picture | None


Draw = Callable[[random.Random], Document]


@dataclass(frozen=True)
class Example:
    """One document. ``read_from``: the first token that may be foretold; ``share``: how many of them are, at random."""

    ids: list[int]
    read_from: int
    share: float
    drawing: Drawing | None


@dataclass(frozen=True)
class Batch:
    """Right-padded. ``ids`` [batch, length]; ``target`` bool [batch, length]; ``shares`` [batch, 1]; ``cells``
    [batch, 16], the classes of the images' cells, or None."""

    examples: list[Example]
    ids: torch.Tensor
    target: torch.Tensor
    shares: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor | None


def plain(rng: random.Random) -> Document:
    """A description or a trace."""
    draw = rng.random()
    if draw < DESCRIPTIONS:
        return _description(rng)
    sample = make_sample(rng)
    if draw < DESCRIPTIONS + CONVERSATIONS:
        return Document("", _conversation(sample), sample.picture)
    return Document("", random_excerpt(sample, rng).user_text + "<|im_end|>", sample.picture)


def exchange(rng: random.Random) -> Document:
    """A description, or what an instruct model says at once: it declines what is harmful and helps with all else."""
    if rng.random() < DESCRIPTIONS:
        return _description(rng)
    about_goal = rng.random() < ABOUT_GOALS
    sample = make_sample(rng, cue="text", harm=rng.random() < 0.5) if about_goal else make_sample(rng)
    reply = DECLINES if sample.harm else HELPS
    return Document(f"{sample.question}{TAIL}", f"{reply}<|im_end|>", sample.picture)


def _description(rng: random.Random) -> Document:
    picture = any_picture(rng)
    return Document(f"{ASKED}{TAIL}", f"{described(picture)}.<|im_end|>", picture)


def _conversation(sample: Sample) -> str:
    thinking = " ".join(text for text, _ in sample.sentences)
    return f"{sample.question}{TAIL}<think>\n{thinking}\n</think>\n\n{sample.answer}<|im_end|>"


def encode(document: Document, rng: random.Random) -> Example:
    """Tokenise a document; its picture is drawn here."""
    given, told, picture = document
    head = token_ids(HEAD)
    if picture is not None:
        pad = control_id("<|image_pad|>")
        head = [*head, control_id("<|vision_start|>"), *[pad] * IMAGE_TOKENS, control_id("<|vision_end|>")]
    head = head + token_ids(given)
    drawing = render(picture, rng) if picture is not None else None
    return Example(head + token_ids(told), len(head), 1.0 if given else FORETOLD, drawing)


def positions(length: int, has_image: bool) -> torch.Tensor:
    """Multimodal rotary positions [3, length]; an image stands at the same place in every prompt that has one."""
    plain = torch.arange(length)
    if not has_image:
        return plain.expand(3, length)
    first = len(token_ids(HEAD)) + 1
    cell = torch.arange(IMAGE_TOKENS)
    result = plain.repeat(3, 1)
    result[:, first + IMAGE_TOKENS :] -= IMAGE_TOKENS - CELLS
    image = torch.stack([torch.zeros_like(cell), cell // CELLS, cell % CELLS]) + first
    result[:, first : first + IMAGE_TOKENS] = image
    return result


def collate(examples: list[Example]) -> Batch:
    """Pad examples that all have an image, or all have none."""
    length = max(len(example.ids) for example in examples)
    pad = control_id("<|endoftext|>")
    ids = torch.full((len(examples), length), pad)
    target = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        target[row, example.read_from : len(example.ids)] = True
    drawings = [example.drawing for example in examples if example.drawing is not None]
    cells = torch.from_numpy(np.stack([drawing.cells.reshape(-1) for drawing in drawings])) if drawings else None
    shares = torch.tensor([[example.share] for example in examples])
    return Batch(examples, ids, target, shares, positions(length, bool(drawings)), cells)


def pool(draw: Draw, seed: int, number: int) -> list[Batch]:
    """Documents in batches of like length, with images or without."""
    rng = random.Random(f"{seed} {number}")
    examples: list[Example] = []
    while len(examples) < POOL:
        example = encode(draw(rng), rng)
        if len(example.ids) <= LONGEST:
            examples.append(example)
    groups: list[list[Example]] = []
    for has_image in (False, True):
        alike = sorted((e for e in examples if (e.drawing is not None) is has_image), key=lambda e: len(e.ids))
        while alike:
            size = max(1, min(MOST_ROWS, TOKENS_PER_BATCH // len(alike[-1].ids)))
            groups.append(alike[-size:])
            del alike[-size:]
    rng.shuffle(groups)
    return [collate(group) for group in groups if len(group) > 1]


def batches(draw: Draw, seed: int, count: int) -> Iterator[Batch]:
    """``count`` batches for the language model."""
    pools = (pool(draw, seed, number) for number in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(pools), count)


def vision_batch(seed: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches [size, 64, 1176], classes of cells [size, 16], letters [size, 64]."""
    rng = random.Random(f"{seed} {step}")
    drawings = [render(any_picture(rng), rng) for _ in range(size)]
    cells = torch.from_numpy(np.stack([drawing.cells.reshape(-1) for drawing in drawings]))
    letters = torch.from_numpy(np.stack([patch_order(drawing.letters) for drawing in drawings]))
    return patchify(np.stack([drawing.pixels for drawing in drawings])), cells, letters
