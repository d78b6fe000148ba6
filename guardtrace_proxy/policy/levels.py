"""Levels and verdicts: the words in which an auditor answers.

A level is GuardTrace-VL's three-way judgment of a partial Question + image + Thinking + Answer
(arXiv 2511.20994, section 3): 0 safe, 0.5 potentially harmful, 1 harmful.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(float, Enum):
    """Judgment of a trace; the value is the number that the auditor writes."""

    SAFE = 0.0
    POTENTIALLY_HARMFUL = 0.5
    HARMFUL = 1.0

    @property
    def label(self) -> str:
        """The level as the auditor spells it: ``0``, ``0.5`` or ``1``."""
        return f"{self.value:g}"


@dataclass(frozen=True, slots=True)
class Probabilities:
    """P(0), P(0.5) and P(1), renormalised over the three labels so that they sum to 1."""

    safe: float
    potentially_harmful: float
    harmful: float

    @property
    def risk(self) -> float:
        """P(0.5) + P(1)."""
        return self.potentially_harmful + self.harmful


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgment of a partial trace.

    ``probabilities`` is None where only an annotation was read: such a verdict is certain of its level.
    ``analysis`` quotes what was judged, so it is user text: never logged, never sent to a client.
    ``milliseconds`` is the auditor's own time. ``depth`` is what decided, ``label`` or ``annotate``; ``escalated`` says
    that an annotation was asked for on suspicion, so with depth ``label`` it was lost. ``auditor`` names the one that
    judged in the configured one's place (``auditor.fallback``).
    """

    level: Level
    probabilities: Probabilities | None = None
    analysis: str | None = None
    depth: str = "annotate"
    milliseconds: float = 0.0
    escalated: bool = False
    auditor: str | None = None

    @property
    def risk(self) -> float:
        """P(0.5) + P(1); 0 or 1 where there are no probabilities."""
        if self.probabilities is not None:
            return self.probabilities.risk
        return 0.0 if self.level is Level.SAFE else 1.0
