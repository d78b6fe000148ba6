"""When a chunk is full: it starts small for a fast first token, grows while the stream looks safe, shrinks when not."""

from __future__ import annotations

import re

from guardtrace_proxy.gate.tape import Tape
from guardtrace_proxy.policy.schema import Boundary, Unit

SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)|\n+")
"""A sentence ends at its mark before white space, or at a line's end."""


class ChunkSize:
    """The current chunk size, in the boundary's unit."""

    def __init__(self, boundary: Boundary, threshold: float) -> None:
        """``threshold`` is the policy's own for potentially harmful: half of it is where growing stops."""
        self._boundary = boundary
        self._calm = threshold / 2
        self._size = float(boundary.first)

    @property
    def tokens(self) -> float:
        """How many tokens make a chunk full, where that is the unit."""
        return self._size

    def is_full(self, tape: Tape) -> bool:
        """Whether the tokens, or the sentences, that no auditor was asked about reach the current size."""
        if self._boundary.unit is Unit.TOKENS:
            return tape.fresh_tokens >= self._size
        return len(sentence_ends(tape.fresh_text)) >= self._size

    def reach(self, tape: Tape) -> int:
        """The tape offset at which a full chunk ends: behind all that waits, or behind its last whole sentence."""
        if self._boundary.unit is Unit.TOKENS:
            return tape.end
        ends = sentence_ends(tape.fresh_text)
        return tape.fresh_start + ends[-1] if ends else tape.end

    def learn(self, risk: float) -> None:
        """Take the risk, P(0.5) + P(1), of the last verdict into account."""
        if risk < self._calm:
            self._size = min(float(self._boundary.max), self._size * self._boundary.growth)
        else:
            self._size = float(self._boundary.first)


def sentence_ends(text: str) -> list[int]:
    """Offsets behind the sentences of a text."""
    return [match.end() for match in SENTENCE_END.finditer(text)]
