"""From documents to tensors for the warm-up, and from drawings for its vision."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from guardtrace_trainer.nano.documents import HEAD, Document, Draw
from guardtrace_trainer.nano.model import control_id, patch_order, patchify
from guardtrace_trainer.nano.render import CELLS, Drawing, any_picture, render
from guardtrace_trainer.nano.vocabulary import token_ends, token_ids

IMAGE_TOKENS = CELLS**2
POOL = 400
TOKENS_PER_BATCH, MOST_ROWS = 800, 64
"""Small, since a small network learns by the number of its steps: with twice the tokens a batch it took nearly as many
of them."""
LONGEST = 800
NOTHING = -100
"""Class of a token of which nothing is asked."""


@dataclass(frozen=True)
class Example:
    """One document. Of each token: whether it is foretold, what the line is that it ends or is in (of the layout's own
    words: that of the request before them), and what all is up to it."""

    ids: list[int]
    told: list[bool]
    lines: list[int]
    so_far: list[int]
    drawing: Drawing | None

    @property
    def by_line(self) -> bool:
        """Whether nothing is asked of it but what each line is by itself."""
        return not any(self.told) and all(known == NOTHING for known in self.so_far)


@dataclass(frozen=True)
class Batch:
    """Right-padded. ``ids``, ``told``, ``lines`` and ``so_far`` [batch, length]; ``patches`` [batch, 64, 1176] of
    the images, or None."""

    examples: list[Example]
    ids: torch.Tensor
    told: torch.Tensor
    lines: torch.Tensor
    so_far: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor | None


def encode(document: Document, rng: random.Random) -> Example:
    """Tokenise a document, all behind its picture in one, as the auditor is shown it; its picture is drawn here."""
    ids = token_ids(document.head)
    if document.picture is not None:
        pad = control_id("<|image_pad|>")
        ids = [*ids, control_id("<|vision_start|>"), *[pad] * IMAGE_TOKENS, control_id("<|vision_end|>")]
    told, lines, so_far = [False] * len(ids), [NOTHING] * len(ids), [NOTHING] * len(ids)
    new, ends = token_ends("".join(piece.text for piece in document.pieces))
    ids = [*ids, *new]
    done = stop = 0
    for piece in document.pieces:
        stop += len(piece.text)
        count = bisect_right(ends, stop) - done
        done += count
        unknown = min(int(count * piece.known_from), max(0, count - 1))
        told += [piece.told] * count
        lines += _known(piece.line, unknown, count)
        so_far += _known(piece.so_far, unknown, count)
    drawing = render(document.picture, rng) if document.picture is not None else None
    return Example(ids, told, lines, so_far, drawing)


def _known(label: int | None, unknown: int, count: int) -> list[int]:
    return [NOTHING] * unknown + [NOTHING if label is None else label] * (count - unknown)


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
    told = torch.zeros(ids.shape, dtype=torch.bool)
    lines, so_far = torch.full(ids.shape, NOTHING), torch.full(ids.shape, NOTHING)
    for row, example in enumerate(examples):
        for whole, own in ((ids, example.ids), (told, example.told), (lines, example.lines), (so_far, example.so_far)):
            whole[row, : len(own)] = torch.tensor(own)
    drawings = [example.drawing for example in examples if example.drawing is not None]
    patches = patchify(np.stack([drawing.pixels for drawing in drawings])) if drawings else None
    return Batch(examples, ids, told, lines, so_far, positions(length, bool(drawings)), patches)


def pool(draw: Draw, seed: int, number: int) -> list[Batch]:
    """Documents in batches of like length, with images or without; those that are read line by line, which need fewer
    layers, by themselves."""
    rng = random.Random(f"{seed} {number}")
    examples: list[Example] = []
    while len(examples) < POOL:
        example = encode(draw(rng), rng)
        if len(example.ids) <= LONGEST:
            examples.append(example)
    groups: list[list[Example]] = []
    kinds: dict[tuple[bool, bool], list[Example]] = {}
    for example in sorted(examples, key=lambda e: len(e.ids)):
        kinds.setdefault((example.drawing is not None, example.by_line), []).append(example)
    for alike in kinds.values():
        while alike:
            size = max(1, min(MOST_ROWS, TOKENS_PER_BATCH // len(alike[-1].ids)))
            groups.append(alike[-size:])
            del alike[-size:]
    rng.shuffle(groups)
    return [collate(group) for group in groups]


def batches(draw: Draw, seed: int, count: int, begin: int = 0) -> Iterator[Batch]:
    """The first ``count`` batches for the language model, from number ``begin`` on."""
    pools = (pool(draw, seed, number) for number in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(pools), begin, count)


def vision_batch(seed: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches [size, 64, 1176], classes of cells [size, 16], letters [size, 64]."""
    rng = random.Random(f"{seed} {step}")
    drawings = [render(any_picture(rng), rng) for _ in range(size)]
    cells = torch.from_numpy(np.stack([drawing.cells.reshape(-1) for drawing in drawings]))
    letters = torch.from_numpy(np.stack([patch_order(drawing.letters) for drawing in drawings]))
    return patchify(np.stack([drawing.pixels for drawing in drawings])), cells, letters
