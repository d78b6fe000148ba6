"""What a part of the warm-up has learned so far: a crash costs minutes, and the seed still gives the same model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

EVERY = 200
"""Steps, about a minute."""


class Halfway:
    """The state of one part, kept in ``path`` until it is done: all that the next step depends on."""

    def __init__(
        self, path: Path, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, rng: random.Random
    ) -> None:
        self._path = path
        self._networks = networks
        self._optimizer = optimizer
        self._rng = rng

    def resume(self) -> tuple[int, float | None]:
        """The step to go on with, and the loss's running mean before it; 0 and None where nothing is kept."""
        if not self._path.exists():
            return 0, None
        kept = torch.load(self._path, weights_only=True)
        for name, network in self._networks.items():
            network.load_state_dict(kept[name])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._rng.setstate(kept["rng"])
        return kept["step"], kept["average"]

    def keep(self, step: int, average: float) -> None:
        """``step`` is the next one. Writes now and then."""
        if step % EVERY:
            return
        learned = {name: network.state_dict() for name, network in self._networks.items()}
        others = {"optimizer": self._optimizer.state_dict(), "rng": self._rng.getstate()}
        write(self._path, {**learned, **others, "step": step, "average": average})


def write(path: Path, state: Mapping[str, object]) -> None:
    """All of it, or what was there before."""
    part = path.with_name(path.name + ".new")
    torch.save(state, part)
    part.replace(path)
