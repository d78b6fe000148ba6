"""What comes of judging an item, and who judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.rows import Row

GUARD = "guard"
"""Where depths are named: a guard other than ours has none."""
GO_ON = "See to it and run the same command again: with --out it goes on where it stopped"


class EvaluationStopped(Exception):
    """Going on would only collect failures. What is judged already is kept; the message says what to do."""


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What one judge said of one item: a level, or from guards that know only two whether it is ``unsafe``; or why not.

    ``probabilities`` are P(0), P(0.5), P(1). ``depth`` is the read that decided. ``pieces`` says in how many audits a
    trace was judged that is longer than one takes. ``failure`` names why there is no verdict, ``why`` says it. ``said``
    is the analysis or the guard's whole reply, if it was to be kept: it quotes what was judged.
    """

    level: float | None = None
    unsafe: bool | None = None
    probabilities: tuple[float, float, float] | None = None
    scores: dict[str, float] = {}
    depth: str | None = None
    escalated: bool = False
    pieces: int = 1
    milliseconds: float | None = None
    failure: str | None = None
    why: str | None = None
    said: str | None = None

    @property
    def risk(self) -> float | None:
        """P(0.5) + P(1), where there are probabilities."""
        return None if self.probabilities is None else self.probabilities[1] + self.probabilities[2]


class Judged(Row, frozen=True, kw_only=True):
    """A line of the verdicts' file. ``id`` is the item's key, ``level`` the right one; ``outcomes`` has one for each
    depth, or one named ``guard``. ``group`` names the items that intervals draw together."""

    subset: str
    kind: str
    category: str
    level: float | None
    outcomes: dict[str, Outcome]
    group: str | None = None


class Judge(Protocol):
    """Whoever is evaluated."""

    async def outcomes(self, item: Item) -> Mapping[str, Outcome]:
        """What it says of an item, by depth; raises EvaluationStopped where it can't say anything of any item."""
        ...
