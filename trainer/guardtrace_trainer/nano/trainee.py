"""The network in its warm-up: how a batch is read, and what is asked of the reading."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from guardtrace_trainer.nano.batches import IMAGE_TOKENS, Batch
from guardtrace_trainer.nano.model import HIDDEN, VISION_HIDDEN, class_vectors, control_id, make_model, vision_rotations
from guardtrace_trainer.nano.render import UNSURE
from guardtrace_trainer.nano.vocabulary import EMBEDDING_RMS

LETTERS = 27
LOST_CHANNELS = 0.1
BLUR, SWAPPED = 0.4, 0.03


class Trainee:
    """The network with the head that is thrown away after its warm-up."""

    def __init__(self, seed: int) -> None:
        self.model = make_model(seed)
        self.vision = self.model.model.visual
        self.language = self.model.model.language_model
        self.language.config._attn_implementation = "causal"
        self.language.embed_tokens.weight.requires_grad_(False)
        self.letters = nn.Linear(VISION_HIDDEN, LETTERS)
        self.classes = class_vectors()
        self.rotations = vision_rotations(self.vision, torch.device("cpu"))


def read(trainee: Trainee, batch: Batch, tokens: torch.Tensor | None, rng: random.Random | None = None) -> torch.Tensor:
    """Hidden states [batch, length, hidden]. Right padding needs no mask: nothing looks ahead.

    With ``rng`` some channels of every word are lost, so that the model doesn't learn the corpus's lines by heart.
    """
    embeddings = trainee.language.embed_tokens(batch.ids)
    if rng is not None:
        embeddings = embeddings * disturbance(batch, rng)
    if tokens is not None:
        first = int((batch.ids[0] == control_id("<|image_pad|>")).nonzero()[0])
        embeddings = torch.cat([embeddings[:, :first], tokens, embeddings[:, first + IMAGE_TOKENS :]], 1)
    spread = batch.positions[:, None].expand(3, *batch.ids.shape)
    states = trainee.language(inputs_embeds=embeddings, position_ids=spread, attention_mask=None, use_cache=False)
    hidden: torch.Tensor = states.last_hidden_state
    return hidden


def simulated(trainee: Trainee, cells: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """What a trained tower would make of images: each cell's class vector, blurred; now and then another cell's.

    [batch, 16] to [batch, 16, hidden]. So the two parts of the warm-up can run side by side.
    """
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    known = torch.where(cells == UNSURE, 0, cells)
    swapped = torch.rand(cells.shape, generator=generator) < SWAPPED
    known = torch.where(swapped, known.roll(1, 1), known)
    noise = torch.randn(*cells.shape, HIDDEN, generator=generator) * BLUR * EMBEDDING_RMS
    return trainee.classes[known] + noise


def disturbance(batch: Batch, rng: random.Random) -> torch.Tensor:
    """Factors [batch, length, hidden]."""
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    channels = torch.rand(*batch.ids.shape, HIDDEN, generator=generator) >= LOST_CHANNELS
    return channels / (1 - LOST_CHANNELS)


def foretelling(trainee: Trainee, batch: Batch, hidden: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Mean loss on the next tokens that are drawn to be foretold."""
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    wanted = (torch.rand(batch.shares.shape, generator=generator) < batch.shares)[:, 1:]
    targets = batch.ids[:, 1:][wanted]
    return F.cross_entropy(trainee.model.lm_head(hidden[:, :-1][wanted]), targets)
