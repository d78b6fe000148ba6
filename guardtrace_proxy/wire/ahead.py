"""Tokens whose text is still to come: a parser or a ``stop`` string keeps text back, while the logprobs go on."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

PARTIAL = re.compile("\ufffd+")
"""Part of a character, which is never ASCII."""
MARKER = re.compile(r"<[^<>\s]{1,62}>|\[[^\[\]\s]{1,62}\]|◁[^◁▷\s]{1,62}▷|" + PARTIAL.pattern)
"""A tag or a control token in one piece, or part of a character: text may follow that repeats it, or not."""
BARE_ID = re.compile(r"token_id:[0-9]+")
"""What vLLM writes in the place of a token's text where ``return_tokens_as_token_ids`` asks for it."""


class TokensAhead:
    """The sampled tokens of one choice, in order, without those whose text was said."""

    __slots__ = ("_chars", "_last", "tokens")

    def __init__(self) -> None:
        self.tokens: deque[str] = deque()
        """What is ahead."""
        self._chars = 0
        self._last = 0
        """Characters of the markers at the end, which nothing waits for."""

    @property
    def unsaid(self) -> int:
        """Characters of text that are still to come."""
        return self._chars - self._last

    @property
    def text(self) -> str:
        """The tokens' text, without markers."""
        return "".join(token for token in self.tokens if not MARKER.fullmatch(token))

    def sample(self, tokens: Iterable[str]) -> None:
        """Tokens came."""
        for token in tokens:
            self.tokens.append(token)
            self._chars += len(token)
            self._last = self._last + len(token) if MARKER.fullmatch(token) else 0

    def say(self, text: str) -> None:
        """Text came: it belongs to the tokens that came first."""
        while text and self.tokens:
            token = self._take()
            if PARTIAL.fullmatch(token):
                text = self._say_parts(text)
            elif MARKER.fullmatch(token) and not (text.startswith(token) or token.startswith(text)):
                continue
            else:
                if len(token) > len(text):
                    # Of a marker that was begun the rest is sure to come.
                    self._last = min(self._last, self._chars)
                    self.tokens.appendleft(token[len(text) :])
                    self._chars += len(token) - len(text)
                text = text[len(token) :]
        self._last = min(self._last, self._chars)

    def _say_parts(self, text: str) -> str:
        """At most a character for each of the parts that stand in a row, one of which was taken already."""
        count = 1
        while self.tokens and PARTIAL.fullmatch(self.tokens[0]):
            self._take()
            count += 1
        whole = 0
        while whole < min(count, len(text)) and not text[whole].isascii():
            whole += 1
        return text[whole:]

    def _take(self) -> str:
        token = self.tokens.popleft()
        self._chars -= len(token)
        return token


def spoken(tokens: Sequence[str]) -> list[str]:
    """The tokens that are text: a bare id says nothing of its own."""
    return [token for token in tokens if not BARE_ID.fullmatch(token)]
