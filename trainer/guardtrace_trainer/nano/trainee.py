"""The network in its warm-up: how a batch is read, and what is asked of the reading."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

from guardtrace_trainer.nano.batches import IMAGE_TOKENS, NOTHING, Batch
from guardtrace_trainer.nano.documents import LINES, SO_FAR
from guardtrace_trainer.nano.model import (
    HIDDEN,
    LAYERS,
    VISION_HIDDEN,
    class_vectors,
    control_id,
    make_model,
    see,
    vision_rotations,
)

LETTERS = 27
LINES_AT, SO_FAR_AT = 2, 3
"""After how many layers it is known what a line is by itself, and what all is so far: later tokens see nothing of a
token that only its last layer knows."""
LOST_CHANNELS = 0.1
"""Share of the channels of every word."""


class Trainee:
    """The network with the heads that are thrown away after its warm-up."""

    def __init__(self, seed: int) -> None:
        self.model = make_model(seed)
        self.vision = self.model.model.visual
        self.language = self.model.model.language_model
        self.language.config._attn_implementation = "causal"
        self.language.embed_tokens.weight.requires_grad_(False)
        self.letters = nn.Linear(VISION_HIDDEN, LETTERS)
        self.lines, self.so_far = nn.Linear(HIDDEN, len(LINES)), nn.Linear(HIDDEN, len(SO_FAR))
        self.reader = nn.ModuleDict({"language": self.language, "lines": self.lines, "so_far": self.so_far})
        self.classes = class_vectors()
        self.rotations = vision_rotations(self.vision, torch.device("cpu"))


def layers_asked(batch: Batch) -> int:
    """How many layers a batch has to go through."""
    if bool(batch.told.any()):
        return LAYERS
    return SO_FAR_AT if bool((batch.so_far != NOTHING).any()) else LINES_AT


def read(
    trainee: Trainee,
    batch: Batch,
    tokens: torch.Tensor | None,
    rng: random.Random | None = None,
    layers: int = LAYERS,
) -> list[torch.Tensor]:
    """Hidden states [batch, length, hidden] before and after each of the first ``layers``; those of the last one of all
    are behind the final norm. Right padding needs no mask: nothing looks ahead.

    With ``rng`` some channels of every word are lost, so that the model doesn't learn the corpus's lines by heart.
    """
    hidden = trainee.language.embed_tokens(batch.ids)
    if rng is not None:
        hidden = hidden * disturbance(batch, rng)
    if tokens is not None:
        first = int((batch.ids[0] == control_id("<|image_pad|>")).nonzero()[0])
        hidden = torch.cat([hidden[:, :first], tokens, hidden[:, first + IMAGE_TOKENS :]], 1)
    spread = batch.positions[:, None].expand(3, *batch.ids.shape)
    rotations = trainee.language.rotary_emb(hidden, spread)
    states = [hidden]
    for layer in trainee.language.layers[:layers]:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotations)
        states.append(hidden)
    if layers == LAYERS:
        states[-1] = trainee.language.norm(hidden)
    return states


def pictured(trainee: Trainee, batch: Batch) -> torch.Tensor | None:
    """What the tower makes of a batch's pictures [batch, 16, hidden]; None where it has none."""
    if batch.patches is None:
        return None
    with torch.no_grad():
        return see(trainee.vision, batch.patches, trainee.rotations)[1]


def disturbance(batch: Batch, rng: random.Random) -> torch.Tensor:
    """Factors [batch, length, hidden]."""
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    channels = torch.rand(*batch.ids.shape, HIDDEN, generator=generator) >= LOST_CHANNELS
    return channels / (1 - LOST_CHANNELS)


def loss(trainee: Trainee, batch: Batch, states: list[torch.Tensor]) -> torch.Tensor:
    """On what is foretold, and on what is known of lines and of all so far: the sum of the means."""
    total = torch.zeros(())
    told = batch.told[:, 1:]
    if told.any():
        total = total + F.cross_entropy(trainee.model.lm_head(states[-1][:, :-1][told]), batch.ids[:, 1:][told])
    for head, known, at in ((trainee.lines, batch.lines, LINES_AT), (trainee.so_far, batch.so_far, SO_FAR_AT)):
        asked = known != NOTHING
        if asked.any():
            total = total + F.cross_entropy(head(F.rms_norm(states[at][asked], (HIDDEN,))), known[asked])
    return total
