"""From excerpts to tensors: prompts in the published layout, targets, and where the running label is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from guardtrace_trainer.nano.corpus import SYSTEM_PROMPT, Excerpt, make_sample, random_excerpt
from guardtrace_trainer.nano.model import control_id, patch_order, patchify
from guardtrace_trainer.nano.render import CELLS, Drawing, any_picture, render
from guardtrace_trainer.nano.vocabulary import make_tokenizer, token_ids

Item = TypeVar("Item")
HEAD = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
THINKING_MARK = "\nCurrent Task Thinking: "
IMAGE_TOKENS = CELLS**2
BARE_SHARE = 0.2
"""Share of examples whose target is the judgment alone, so that the label depth is trained too."""
TOKENS_PER_BATCH = 4600
LONGEST = 1400


@dataclass(frozen=True)
class Example:
    """One training example. ``known`` are (token, strength so far, the sentence's own) at sentence ends; ``harm`` is
    known from ``asked`` on, the question's last token."""

    ids: list[int]
    prompt_length: int
    known: list[tuple[int, int, int]]
    asked: int
    harm: bool
    has_image: bool
    drawing: Drawing | None


@dataclass(frozen=True)
class Batch:
    """Right-padded. ``ids`` [batch, length]; ``target`` bool [batch, length]; ``images`` uint8 or None."""

    examples: list[Example]
    ids: torch.Tensor
    target: torch.Tensor
    positions: torch.Tensor
    images: np.ndarray | None


def encode(excerpt: Excerpt, rng: random.Random, *, bare: bool = False) -> Example:
    """Tokenise prompt and target; the image, if the sample has one, is drawn here."""
    picture = excerpt.sample.picture
    head = token_ids(HEAD)
    if picture is not None:
        pad = control_id("<|image_pad|>")
        vision = [control_id("<|vision_start|>"), *[pad] * IMAGE_TOKENS, control_id("<|vision_end|>")]
        head = head + vision
    text = excerpt.user_text
    encoded = make_tokenizer()(text + TAIL, add_special_tokens=False, return_offsets_mapping=True)
    start = text.index(THINKING_MARK) + len(THINKING_MARK)
    last_token_of = {
        character: token
        for token, (begin, end) in enumerate(encoded["offset_mapping"])
        for character in range(begin, end)
    }
    known = []
    for offset, strength, own in excerpt.ends:
        token = last_token_of.get(start + offset - 1)
        if token is not None and text[start : start + offset] == excerpt.thinking[:offset]:
            known.append((len(head) + token, strength, own))
    prompt = head + list(encoded["input_ids"])
    target = token_ids((excerpt.judgment if bare else excerpt.reply) + "<|im_end|>")
    drawing = render(picture, rng) if picture is not None else None
    asked = len(head) + last_token_of[text.index(THINKING_MARK) - 1]
    return Example(prompt + target, len(prompt), known, asked, excerpt.sample.harm, picture is not None, drawing)


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
        target[row, example.prompt_length : len(example.ids)] = True
    drawings = [example.drawing for example in examples if example.drawing is not None]
    images = np.stack([drawing.pixels for drawing in drawings]) if drawings else None
    return Batch(examples, ids, target, positions(length, bool(drawings)), images)


class Pools(Dataset[list[Batch]]):
    """Pool ``number`` of a seed: two hundred examples in batches of like length, with images or without."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, number: int) -> list[Batch]:
        rng = random.Random(f"{self.seed} {number}")
        pool: list[Example] = []
        while len(pool) < 200:
            excerpt = random_excerpt(make_sample(rng), rng)
            example = encode(excerpt, rng, bare=rng.random() < BARE_SHARE)
            if len(example.ids) <= LONGEST and example.known:
                pool.append(example)
        groups: list[list[Example]] = []
        for has_image in (False, True):
            alike = sorted((e for e in pool if e.has_image is has_image), key=lambda e: len(e.ids))
            while alike:
                size = max(1, min(28, TOKENS_PER_BATCH // len(alike[-1].ids)))
                groups.append(alike[-size:])
                del alike[-size:]
        rng.shuffle(groups)
        return [collate(group) for group in groups if len(group) > 1]


class VisionBatches(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Batch ``step`` of a seed: (patches [batch, 64, 1176], cells [batch, 16], letters [batch, 64])."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        drawings = [render(any_picture(rng), rng) for _ in range(self.size)]
        cells = torch.from_numpy(np.stack([drawing.cells.reshape(-1) for drawing in drawings]))
        letters = torch.from_numpy(np.stack([patch_order(drawing.letters) for drawing in drawings]))
        return patchify(np.stack([drawing.pixels for drawing in drawings])), cells, letters


def load(dataset: Dataset[Item], count: int, workers: int) -> Iterator[Item]:
    """Items 0 to count - 1 in order, made by ``workers`` processes; their number changes nothing but the pace."""
    return iter(
        DataLoader(
            dataset, batch_size=None, sampler=range(count), num_workers=workers, prefetch_factor=2 if workers else None
        )
    )


def batches(seed: int, count: int, workers: int) -> Iterator[Batch]:
    """``count`` batches for the language model."""
    pools = load(Pools(seed), count, workers)
    return itertools.islice(itertools.chain.from_iterable(pools), count)
