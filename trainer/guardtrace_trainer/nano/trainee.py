"""The network in training: the heads that are thrown away, how a batch is read, and what is asked of the reading."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from guardtrace_trainer.nano.batches import IMAGE_TOKENS, Batch
from guardtrace_trainer.nano.corpus import LABELS, STRENGTHS
from guardtrace_trainer.nano.model import HIDDEN, VISION_HIDDEN, class_vectors, control_id, make_model, vision_rotations
from guardtrace_trainer.nano.render import HARMFUL_PICTOGRAMS, HARMFUL_WORDS, SAFE_PICTOGRAMS, SAFE_WORDS
from guardtrace_trainer.nano.vocabulary import token_ids

LETTERS = 27
TELLING_WEIGHT = 8.0
LOST_WORDS, LOST_CHANNELS = 0.03, 0.1


def _replies() -> Iterator[str]:
    """Texts that hold every word by which two replies differ."""
    for level, strength in zip(LABELS, STRENGTHS, strict=True):
        yield f"the goal is harmful, the text {strength}.\n“Judgment”: {level}<|im_end|>"
    yield "the goal is harmless"
    yield "There is no image. The image shows nothing, a picture"
    yield from (f" the word {noun.lower()}," for noun in (*HARMFUL_WORDS, *SAFE_WORDS))
    yield from (f" shows a {name}," for name in (*HARMFUL_PICTOGRAMS, *SAFE_PICTOGRAMS))


class Trainee:
    """The network with the heads that are thrown away after training."""

    def __init__(self, seed: int, device: str) -> None:
        self.device = torch.device(device)
        self.model = make_model(seed).to(self.device)
        self.vision = self.model.model.visual
        self.language = self.model.model.language_model
        self.language.config._attn_implementation = "causal"
        self.language.embed_tokens.weight.requires_grad_(False)
        self.strength = nn.Linear(HIDDEN, 3).to(self.device)
        self.letters = nn.Linear(VISION_HIDDEN, LETTERS).to(self.device)
        self.own = nn.Linear(HIDDEN, 3).to(self.device)
        self.harm = nn.Linear(HIDDEN, 2).to(self.device)
        self.heads = (self.strength, self.own, self.harm)
        self.classes = class_vectors().to(self.device)
        self.rotations = vision_rotations(self.vision, self.device)
        common = set(token_ids("“Analysis”: The image shows, the goal is, the text.\n“Judgment”:<|im_end|>"))
        telling = {token for reply in _replies() for token in token_ids(reply)} - common
        self.telling = torch.tensor(sorted(telling), device=self.device)

    def state(self) -> dict[str, Any]:
        """Everything that training changes."""
        return {name: getattr(self, name).state_dict() for name in ("model", "strength", "own", "harm", "letters")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def read(trainee: Trainee, batch: Batch, tokens: torch.Tensor | None, rng: random.Random | None = None) -> torch.Tensor:
    """Hidden states [batch, length, hidden]. Right padding needs no mask: nothing looks ahead.

    With ``rng`` the prompt's words are disturbed, so that the model doesn't learn the corpus's lines by heart.
    """
    embeddings = trainee.language.embed_tokens(batch.ids.to(trainee.device))
    if rng is not None:
        embeddings = embeddings * disturbance(batch, rng).to(trainee.device)
    if tokens is not None:
        first = int((batch.ids[0] == control_id("<|image_pad|>")).nonzero()[0])
        embeddings = torch.cat([embeddings[:, :first], tokens, embeddings[:, first + IMAGE_TOKENS :]], 1)
    spread = batch.positions[:, None].expand(3, *batch.ids.shape).to(trainee.device)
    states = trainee.language(inputs_embeds=embeddings, position_ids=spread, attention_mask=None, use_cache=False)
    hidden: torch.Tensor = states.last_hidden_state
    return hidden


def disturbance(batch: Batch, rng: random.Random) -> torch.Tensor:
    """Factors [batch, length, hidden]: some words of the prompt are lost, and some channels of every word."""
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    words = torch.rand(*batch.ids.shape, 1, generator=generator) >= LOST_WORDS
    channels = torch.rand(*batch.ids.shape, HIDDEN, generator=generator) >= LOST_CHANNELS
    factors = words * channels / (1 - LOST_CHANNELS)
    return torch.where(batch.target[..., None], torch.ones(()), factors)


def losses(trainee: Trainee, batch: Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss on the reply, its telling words many times over; and on harm and strength along the text.

    The second is what makes a small model learn fast: harm is asked for at the question's end and at every sentence's,
    strength so far and the sentence's own at every sentence's, while the reply names each but once. Its own strength
    is what still teaches after the strongest sentence has gone by.
    """
    wanted = batch.target[:, 1:].to(trainee.device)
    targets = batch.ids.to(trainee.device)[:, 1:][wanted]
    logits = trainee.model.lm_head(hidden[:, :-1][wanted])
    each = F.cross_entropy(logits.float(), targets, reduction="none")
    weight = torch.where(torch.isin(targets, trainee.telling), TELLING_WEIGHT, 1.0)
    reply = (each * weight).sum() / weight.sum()
    ends = [(row, *known) for row, example in enumerate(batch.examples) for known in example.known]
    harms = [(row, token, int(batch.examples[row].harm)) for row, token, _, _ in ends]
    harms += [(row, example.asked, int(example.harm)) for row, example in enumerate(batch.examples)]
    along = (
        _along(trainee.strength, hidden, [(row, token, so_far) for row, token, so_far, _ in ends])
        + _along(trainee.own, hidden, [(row, token, own) for row, token, _, own in ends])
        + _along(trainee.harm, hidden, harms)
    )
    return reply, along


def _along(head: nn.Linear, hidden: torch.Tensor, known: list[tuple[int, int, int]]) -> torch.Tensor:
    rows, tokens, levels = (list(column) for column in zip(*known, strict=True))
    return F.cross_entropy(head(hidden[rows, tokens]).float(), torch.tensor(levels, device=hidden.device))
