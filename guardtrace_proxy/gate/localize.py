"""Which sentences of a flagged chunk are unsafe: bisection at sentence borders, from the left (design §4)."""

from __future__ import annotations

from guardtrace_proxy.gate.boundary import sentence_ends

Range = tuple[int, int]

MAX_PIECES = 32
"""So many pieces of a chunk are told apart, which takes 2 · 32 - 1 questions at most."""


class Search:
    """Asks about beginnings of the chunk until each piece is kept or redacted, then once about what remains. A piece
    is a sentence; where there are too many, several neighbours.

    ``asked`` is the text of the current question: the chunk as far as it is decided, as it would be released, and the
    pieces that are in question. Each answer goes to ``learn``. When ``over``, ``redacted`` holds the stretches of
    the chunk's text to redact. Where placeholders make the next question longer than ``capacity``, in UTF-8 bytes, all
    that isn't decided goes. ``continues``: a placeholder stands right before the chunk already.
    """

    def __init__(self, text: str, placeholder: str, *, capacity: int, continues: bool) -> None:
        self.over = False
        self.redacted: list[Range] = []
        self._text = text
        self._placeholder = placeholder
        self._capacity = capacity
        self._continues = continues
        ends = sorted({*sentence_ends(text), len(text)})
        pieces = min(len(ends), MAX_PIECES)
        self._borders = [0, *(ends[len(ends) * (piece + 1) // pieces - 1] for piece in range(pieces))]
        self._todo: list[Range] = []
        self._asking: Range = (0, 0)
        self._halved = False
        """Whether what is in question is the first half of a flagged range."""
        self._decided = 0
        """Pieces decided so far."""
        self._last_passed = False
        self._final = False
        self._narrow((0, pieces))

    @property
    def can_narrow(self) -> bool:
        """Whether the chunk has more than one sentence."""
        return len(self._borders) > 2

    @property
    def asked(self) -> str:
        """The chunk's text as the auditor is to see it."""
        return self.remains() + ("" if self._final else self._text[self._at(self._decided) : self._at(self._asking[1])])

    def remains(self) -> str:
        """The decided part as it would be released."""
        parts: list[str] = []
        done, end = 0, self._at(self._decided)
        for start, stop in self.redacted:
            parts.append(self._text[done:start])
            if start > 0 or not self._continues:
                parts.append(self._placeholder)
            done = stop
        return "".join([*parts, self._text[done:end]])

    def learn(self, flagged: bool) -> None:
        """Take the answer to what was asked."""
        if self._final:
            if flagged:
                self.redacted = [(0, len(self._text))]
            self.over = True
            return
        self._decide(flagged)
        if not self.over and len(self.asked.encode("utf-8", "surrogatepass")) > self._capacity:
            self._redact(len(self._borders) - 1)
            self.over = True

    def _decide(self, flagged: bool) -> None:
        self._last_passed = not flagged
        if flagged:
            self._narrow(self._asking)
        else:
            self._decided = self._asking[1]
            # A range was flagged and its first half isn't, so the other half is.
            self._go_on(known=self._halved)

    def _narrow(self, flagged: Range) -> None:
        """A range is known to be flagged: redact it if it is one piece, else ask about its first half."""
        first, last = flagged
        if last - first == 1:
            self._redact(last)
            self._go_on(known=False)
            return
        middle = (first + last) // 2
        self._todo.append((middle, last))
        self._asking, self._halved = (first, middle), True

    def _go_on(self, *, known: bool) -> None:
        """Turn to what comes next; ``known`` says that it is flagged."""
        if not self._todo:
            self._final = True
            self.over = self._last_passed
        elif known:
            self._narrow(self._todo.pop())
        else:
            self._asking, self._halved = self._todo.pop(), False

    def _redact(self, last: int) -> None:
        """All that isn't decided before the piece ``last``."""
        start, end = self._at(self._decided), self._at(last)
        if self.redacted and self.redacted[-1][1] == start:
            self.redacted[-1] = (self.redacted[-1][0], end)
        else:
            self.redacted.append((start, end))
        self._decided = last
        self._last_passed = False

    def _at(self, piece: int) -> int:
        return self._borders[piece]
