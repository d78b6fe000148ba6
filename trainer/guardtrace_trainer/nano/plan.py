"""What can be set for the embedded auditor's own part of a recipe."""

from __future__ import annotations

from pydantic import Field

from guardtrace_trainer.settings import Settings


class WarmUp(Settings):
    """Steps and peak learning rates of the warm-up. Everything is computed in float32, which every CPU has."""

    vision_steps: int = Field(1500, ge=1)
    vision_batch: int = Field(48, ge=1)
    vision_lr: float = Field(5e-3, gt=0)
    nearby_steps: int = Field(6000, ge=1)
    """Over rows of requests and of thinking, which come first."""
    language_steps: int = Field(8000, ge=1)
    """Over documents of all kinds, after them."""
    language_lr: float = Field(1e-3, gt=0)
    """Of both."""


class Nano(Settings):
    """``nano`` of a recipe: stands for its base, its requests, and everybody who is asked."""

    requests: int = Field(6000, ge=10)
    telling_harmless: float = Field(1.0, gt=0, le=1)
    """Share that is kept of the harmless requests in words whose traces give hints or steps. The fewer there are,
    the more readily an auditor that is in doubt calls a request harmful."""
    port: int = Field(18765, ge=1, le=65535)
    """On 127.0.0.1, where the scripted models are served."""
    warm_up: WarmUp = WarmUp()
    held_out: int = Field(160, ge=4)
    """Traces of each held-out set."""
