"""From examples to the batches that TRL's trainers take, with nothing left for TRL to tokenise or to cut.

TRL leaves rows alone that have a column ``images``; ours hold but the place of an example, which the collator looks up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from guardtrace_trainer.stages.encode import Encoder, Example

IGNORED = -100
POOL = 50
"""Batches that are sorted by length together."""


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """What TRL is given: each example's place."""
    return Dataset.from_dict({"place": list(range(len(examples))), "images": [[] for _ in examples]})


class LikeLengths(Sampler[int]):
    """Examples in batches of like length, in an order that depends on seed and epoch alone, so that an interrupted
    training goes on with the same one. Every example comes once an epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")
        places = list(range(len(self._lengths)))
        rng.shuffle(places)
        batches: list[list[int]] = []
        for start in range(0, len(places), self._batch * POOL):
            pool = sorted(places[start : start + self._batch * POOL], key=self._lengths.__getitem__)
            batches += [pool[at : at + self._batch] for at in range(0, len(pool), self._batch)]
        last = [batch for batch in batches if len(batch) < self._batch]  # at most one: the trainer cuts every `batch`
        batches = [batch for batch in batches if len(batch) == self._batch]
        rng.shuffle(batches)
        return iter([place for batch in batches + last for place in batch])


@dataclass
class Images:
    """Patches by image; or, where the vision tower is frozen and small, its features, computed once (``features``)."""

    encoder: Encoder
    features: Mapping[Path, torch.Tensor] = field(default_factory=dict)

    def of(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The model's inputs for all images of a batch, in order."""
        shown = [example for example in examples if example.image is not None]
        if not shown:
            return {}
        if self.features:
            return {"image_features": torch.cat([self.features[_image(example)] for example in shown])}
        return {
            "pixel_values": torch.cat([self.encoder.patches(_image(example)) for example in shown]),
            "image_grid_thw": torch.tensor([example.grid for example in shown]),
        }


def _image(example: Example) -> Path:
    assert example.image is not None
    return example.image


def positions(example: Example, image_id: int, merge: int) -> torch.Tensor:
    """Multimodal rotary positions [3, prompt] of a prompt with at most one image, as the model's ``get_rope_index`` has
    them."""
    length = len(example.prompt)
    plain = torch.arange(length).repeat(3, 1)
    if example.grid is None:
        return plain
    _, height, width = (side // merge for side in example.grid)
    first, count = example.prompt.index(image_id), height * width
    cell = torch.arange(count)
    plain[:, first : first + count] = first + torch.stack([torch.zeros_like(cell), cell // width, cell % width])
    plain[:, first + count :] -= count - max(height, width)
    return plain


@dataclass
class Sequences:
    """Prompt and tail one behind the other, padded at the right; all examples' first tails, then all second ones."""

    ids: torch.Tensor
    """[sequences, length]."""
    positions: torch.Tensor
    """[3, sequences, length]."""
    real: torch.Tensor
    """bool [sequences, length]: not padding."""
    learned: torch.Tensor
    """bool [sequences, length]: tokens that the loss is for."""


class Collator:
    """Makes batches of examples; the two kinds of training differ in the names of what they take."""

    def __init__(self, examples: Sequence[Example], images: Images) -> None:
        self._examples = examples
        self._images = images
        processor = images.encoder.processor
        self._image_id: int = processor.image_token_id
        self._merge: int = processor.image_processor.merge_size
        self._pad: int = processor.tokenizer.pad_token_id or images.encoder.end

    def examples_of(self, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """The examples whose places TRL's rows hold."""
        return [self._examples[row["place"]] for row in rows]

    def sequences(self, examples: Sequence[Example]) -> Sequences:
        """One sequence for each tail."""
        pairs = [(example, example.tails[number]) for number in range(len(examples[0].tails)) for example in examples]
        length = max(len(example.prompt) + len(tail.ids) for example, tail in pairs)
        ids = torch.full((len(pairs), length), self._pad)
        places = torch.zeros((3, len(pairs), length), dtype=torch.long)
        real, learned = (torch.zeros((len(pairs), length), dtype=torch.bool) for _ in range(2))
        for row, (example, tail) in enumerate(pairs):
            prompt, end = len(example.prompt), len(example.prompt) + len(tail.ids)
            ids[row, :end] = torch.tensor(example.prompt + tail.ids)
            before = positions(example, self._image_id, self._merge)
            places[:, row, :prompt] = before
            places[:, row, prompt:end] = before[:, -1:] + 1 + torch.arange(len(tail.ids))
            real[row, :end] = True
            learned[row, prompt + tail.given : end] = True
        return Sequences(ids, places, real, learned)

    def packed(self, examples: Sequence[Example], length: int) -> dict[str, torch.Tensor]:
        """Each prompt once, with both tails behind it: half the work of two sequences. For :mod:`.answers`.

        ``packed_tail`` [examples, packed length] is 0 in prompts, else the tail's number from 1 on; ``packed_from``
        [sequences, length - 1] says where in the packed row the hidden state of each place of a sequence stands.
        """
        longest = max(len(example.prompt) + sum(len(tail.ids) for tail in example.tails) for example in examples)
        ids = torch.full((len(examples), longest), self._pad)
        places = torch.zeros((3, len(examples), longest), dtype=torch.long)
        tails = torch.zeros((len(examples), longest), dtype=torch.long)
        source = torch.zeros((len(examples[0].tails), len(examples), length - 1), dtype=torch.long)
        for row, example in enumerate(examples):
            prompt = len(example.prompt)
            ids[row, :prompt] = torch.tensor(example.prompt)
            before = positions(example, self._image_id, self._merge)
            places[:, row, :prompt] = before
            start = prompt
            for number, tail in enumerate(example.tails):
                end = start + len(tail.ids)
                ids[row, start:end] = torch.tensor(tail.ids)
                places[:, row, start:end] = before[:, -1:] + 1 + torch.arange(len(tail.ids))
                tails[row, start:end] = number + 1
                source[number, row, :prompt] = torch.arange(prompt)
                source[number, row, prompt : prompt + len(tail.ids) - 1] = torch.arange(start, end - 1)
                start = end
        return {
            "packed_ids": ids,
            "packed_positions": places,
            "packed_tail": tails,
            "packed_from": source.flatten(0, 1),
        }


class SftCollator(Collator):
    """For TRL's SFTTrainer: the loss is on tokens whose label isn't -100."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        examples = self.examples_of(rows)
        made = self.sequences(examples)
        return {
            "input_ids": made.ids,
            "attention_mask": made.real.long(),
            "position_ids": made.positions,
            "labels": made.ids.masked_fill(~made.learned, IGNORED),
            **self._images.of(examples),
        }


class PairCollator(Collator):
    """For TRL's DPOTrainer: all chosen sequences, then all rejected ones.

    With ``pack`` also what :mod:`.answers` computes both from; then images come once, else once a sequence.
    """

    def __init__(self, examples: Sequence[Example], images: Images, *, pack: bool) -> None:
        super().__init__(examples, images)
        self._pack = pack

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        examples = self.examples_of(rows)
        made = self.sequences(examples)
        batch = {
            "input_ids": made.ids,
            "attention_mask": made.real.long(),
            "completion_mask": made.learned.long(),
        }
        if self._pack:
            return {**batch, **self.packed(examples, made.ids.shape[1]), **self._images.of(examples)}
        return {**batch, "position_ids": made.positions, **self._images.of([*examples, *examples])}
