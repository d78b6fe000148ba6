"""Reading P(0), P(0.5) and P(1) where the judgment stands, whatever tokens the tokenizer makes of the labels.

With Qwen's tokens ``0`` and ``0.5`` begin alike, so one read can't tell them apart: the next one, after
``0``, sees ``.`` against the end of the reply.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardtrace_proxy.auditor.calibration import tempered
from guardtrace_proxy.auditor.protocol import AuditorFailure, AuditorSettingsError, FailureKind
from guardtrace_proxy.policy.levels import Level, Probabilities

if TYPE_CHECKING:  # it needs a tokenizer, which auditors over HTTP haven't got
    from guardtrace_proxy.auditor.layout import Layout

JUDGMENT_OPENING = "“Judgment”: "
"""How the assistant's turn is begun for a label read."""
LEAST_MASS = 0.5
"""Probability that the three labels must carry together; below it a read says nothing."""
SETTLED_SHARE = 0.01
"""Of ``1``: where no more than this is left for 0 and 0.5 together, how they share it decides nothing."""

Shares = Mapping[int, float]
"""Probabilities by token id."""


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """The labels in one tokenizer's tokens.

    ``opening`` begins the assistant's turn up to the label. ``half`` is the token that tells 0.5 from 0: the
    second one where both begin alike (``shared``), else the first.
    """

    opening: list[int]
    zero: int
    half: int
    one: int
    shared: bool

    @classmethod
    def of(cls, layout: Layout) -> LabelTokens:
        """Find the labels' tokens by encoding them where they stand; raises as :meth:`from_spellings`."""
        return cls.from_spellings([layout.opening(JUDGMENT_OPENING + level.label) for level in Level])

    @classmethod
    def from_spellings(cls, spelled: Sequence[Sequence[int]]) -> LabelTokens:
        """``spelled`` are the ids of the same text ending in 0, in 0.5 and in 1.

        Raises:
            AuditorSettingsError: the tokenizer spells 0 or 1 in several tokens.
        """
        length = 0
        while len({tuple(ids[: length + 1]) for ids in spelled}) == 1:
            length += 1
        opening = list(spelled[0][:length])
        # 0 and 1 differ from here on, 0.5 has the token of 0 or one of its own
        zero, half, one = (ids[length:] for ids in spelled)
        shared = half[0] == zero[0]
        if len(zero) != 1 or len(one) != 1 or not half or (shared and len(half) < 2):
            raise AuditorSettingsError("the auditor's tokenizer must spell the labels 0 and 1 in one token each")
        return cls(opening, zero[0], half[1] if shared else half[0], one[0], shared)

    def first(self, level: Level) -> int:
        """The token with which a level's label begins."""
        half = self.zero if self.shared else self.half
        return {Level.SAFE: self.zero, Level.POTENTIALLY_HARMFUL: half, Level.HARMFUL: self.one}[level]


@dataclass(frozen=True, slots=True)
class LabelRead:
    """Probabilities at the label's place, before renormalising.

    ``zero``, ``half`` and ``one`` are of the first read (``half`` 0 where it shares its first token); ``dot``
    and ``end`` are of the second, after ``0``.
    """

    zero: float
    half: float
    one: float
    dot: float
    end: float

    @classmethod
    def without_second(cls, zero: float, one: float) -> LabelRead:
        """Where the second read wasn't made: all of ``0`` counts as 0.5."""
        return cls(zero, 0.0, one, dot=1.0, end=0.0)

    def probabilities(self, *, shared: bool, temperature: float = 1.0) -> Probabilities:
        """The three labels' probabilities, renormalised, then tempered.

        Raises:
            AuditorFailure: together they carry less than half of the mass (or the model gave no numbers), as they were
                before any temperature.
        """
        zero, half = (self.zero * self.end, self.zero * self.dot) if shared else (self.zero, self.half)
        mass = zero + half + self.one
        if not mass >= LEAST_MASS:  # also where it is NaN
            raise AuditorFailure(
                FailureKind.UNSURE,
                f"the three labels carry {mass:.2f} of the probability, {LEAST_MASS} is needed",
            )
        return tempered(Probabilities(zero / mass, half / mass, self.one / mass), temperature)


async def read_in_steps(
    labels: LabelTokens, ends: Iterable[int], first: Shares, behind_zero: Callable[[], Awaitable[Shares]]
) -> LabelRead:
    """One read from the shares at the label's place; those behind a ``0`` are asked for only where 0 and 0.5 stay open.
    ``ends`` are the tokens that end a reply."""
    zero, one = first[labels.zero], first[labels.one]
    if not labels.shared:
        return LabelRead(zero, first[labels.half], one, dot=0.0, end=1.0)
    if is_settled(zero, one):
        return LabelRead.without_second(zero, one)
    second = await behind_zero()
    return LabelRead(zero, 0.0, one, dot=second[labels.half], end=sum(second[token] for token in ends))


def is_settled(zero: float, one: float) -> bool:
    """Whether the first read alone decides, so that the one after ``0`` isn't needed."""
    return zero <= SETTLED_SHARE * one


def likeliest(probabilities: Probabilities) -> Level:
    """The level with the highest probability; the more severe one of equals."""
    named = (
        (probabilities.harmful, Level.HARMFUL),
        (probabilities.potentially_harmful, Level.POTENTIALLY_HARMFUL),
        (probabilities.safe, Level.SAFE),
    )
    return max(named, key=lambda pair: pair[0])[1]
