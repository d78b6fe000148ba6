"""From samples to tensors for the warm-up: plain traces as conversations and in the auditor's layout, sentences
repeated, descriptions of pictures. No analysis and no judgment is among them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from guardtrace_trainer.nano.corpus import SYSTEM_PROMPT, Sample, described, make_sample, random_excerpt
from guardtrace_trainer.nano.model import control_id, patch_order, patchify
from guardtrace_trainer.nano.render import CELLS, Drawing, Picture, any_picture, render
from guardtrace_trainer.nano.vocabulary import token_ids

HEAD = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
IMAGE_TOKENS = CELLS**2
DESCRIPTIONS, RECITALS, CONVERSATIONS = 0.2, 0.2, 0.3
"""Shares of the documents; the others are traces in the auditor's layout. Recitals teach to repeat what was read."""
ASKED, REPEAT = "What does the image show?", "Repeat this: "
TOKENS_PER_BATCH = 4600
LONGEST = 1400


@dataclass(frozen=True)
class Example:
    """One document. ``read_from``: the first token that is to be foretold; before it are the head and the image."""

    ids: list[int]
    read_from: int
    drawing: Drawing | None


@dataclass(frozen=True)
class Batch:
    """Right-padded. ``ids`` [batch, length]; ``target`` bool [batch, length]; ``cells`` [batch, 16], the
    classes of the images' cells, or None."""

    examples: list[Example]
    ids: torch.Tensor
    target: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor | None


def document(rng: random.Random) -> tuple[str, Picture | None]:
    """One text, as it stands behind head and image, and its picture."""
    draw = rng.random()
    if draw < DESCRIPTIONS:
        picture = any_picture(rng)
        return f"{ASKED}{TAIL}{described(picture)}.<|im_end|>", picture
    sample = make_sample(rng)
    if draw < DESCRIPTIONS + RECITALS:
        text = rng.choice(sample.sentences)[0]
        return f"{REPEAT}{text}{TAIL}{text}<|im_end|>", None
    if draw < DESCRIPTIONS + RECITALS + CONVERSATIONS:
        return _conversation(sample), sample.picture
    return random_excerpt(sample, rng).user_text + "<|im_end|>", sample.picture


def _conversation(sample: Sample) -> str:
    thinking = " ".join(text for text, _ in sample.sentences)
    return f"{sample.question}{TAIL}<think>\n{thinking}\n</think>\n\n{sample.answer}<|im_end|>"


def encode(text: str, picture: Picture | None, rng: random.Random) -> Example:
    """Tokenise a document; its picture is drawn here."""
    head = token_ids(HEAD)
    if picture is not None:
        pad = control_id("<|image_pad|>")
        head = [*head, control_id("<|vision_start|>"), *[pad] * IMAGE_TOKENS, control_id("<|vision_end|>")]
    return Example(head + token_ids(text), len(head), render(picture, rng) if picture is not None else None)


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
    return Batch(examples, ids, target, positions(length, bool(drawings)), cells)


def pool(seed: int, number: int) -> list[Batch]:
    """Two hundred documents in batches of like length, with images or without."""
    rng = random.Random(f"{seed} {number}")
    examples: list[Example] = []
    while len(examples) < 200:
        example = encode(*document(rng), rng)
        if len(example.ids) <= LONGEST:
            examples.append(example)
    groups: list[list[Example]] = []
    for has_image in (False, True):
        alike = sorted((e for e in examples if (e.drawing is not None) is has_image), key=lambda e: len(e.ids))
        while alike:
            size = max(1, min(28, TOKENS_PER_BATCH // len(alike[-1].ids)))
            groups.append(alike[-size:])
            del alike[-size:]
    rng.shuffle(groups)
    return [collate(group) for group in groups if len(group) > 1]


def batches(seed: int, count: int) -> Iterator[Batch]:
    """``count`` batches for the language model."""
    pools = (pool(seed, number) for number in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(pools), count)


def vision_batch(seed: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches [size, 64, 1176], classes of cells [size, 16], letters [size, 64]."""
    rng = random.Random(f"{seed} {step}")
    drawings = [render(any_picture(rng), rng) for _ in range(size)]
    cells = torch.from_numpy(np.stack([drawing.cells.reshape(-1) for drawing in drawings]))
    letters = torch.from_numpy(np.stack([patch_order(drawing.letters) for drawing in drawings]))
    return patchify(np.stack([drawing.pixels for drawing in drawings])), cells, letters
