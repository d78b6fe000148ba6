"""Tokens whose text is still to come: a parser or a ``stop`` string keeps text back, while the logprobs go on."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

PARTIAL = re.compile("\ufffd+")
"""Part of a character, which is never ASCII."""
MARKER = re.compile(r"<[^<>\s]{1,62}>|\[[^\[\]\s]{1,62}\]|◁[^◁▷\s]{1,62}▷|" + PARTIAL.pattern)
"""A tag or a control token in one piece, or part of a character: text may follow that repeats it, or not."""
BLANK = re.compile(r"[\sĠĊ▁]*")
"""Also as byte-level tokenizers and SentencePiece write them."""
_BYTES = re.compile(r"(?:bytes:)?(?:\\x[89a-f][0-9a-f])+")
"""How OpenAI writes tokens that are parts of a character."""
_PARTS = re.compile(f"{PARTIAL.pattern}|{_BYTES.pattern}")
BARE_ID = re.compile(r"token_id:[0-9]+")
"""What vLLM writes in the place of a token's text where ``return_tokens_as_token_ids`` asks for it."""

MAX_JUDGED = 32
"""Tokens that are judged by themselves and whose text may still come."""
MAX_PASSED = 64
"""Tokens that a text may pass over. What lies behind so many is judged by itself."""
MAX_COMPARED = 64
"""Characters of text that are compared with what lies behind such tokens, and ``LEAST_SAME`` have to be the same."""
LEAST_SAME = 3


class TokensAhead:
    """The sampled tokens of one choice, in order, without those whose text was said."""

    __slots__ = ("_chars", "_judged", "_last", "tokens")

    def __init__(self) -> None:
        self.tokens: deque[str] = deque()
        """What is ahead."""
        self._judged = 0
        """How many of them, from the first on, are judged as text of their own."""
        self._chars = 0
        self._last = 0
        """Characters of the markers at the end, which nothing waits for."""

    @property
    def unsaid(self) -> int:
        """Characters of text that are still to come, at most."""
        return self._chars - self._last

    @property
    def text(self) -> str:
        """The tokens' text, without markers and without what is judged."""
        tokens = islice(self.tokens, self._judged, None)
        return "".join(token for token in tokens if not MARKER.fullmatch(token))

    def sample(self, tokens: Iterable[str]) -> None:
        """Tokens came."""
        for token in tokens:
            self.tokens.append(token)
            size = _size(token)
            self._chars += size
            self._last = self._last + size if MARKER.fullmatch(token) else 0

    def judge(self) -> None:
        """All of them are judged as text of their own. The last ones stay, since their text may still come."""
        while len(self.tokens) > MAX_JUDGED:
            self._take()
        self._judged = len(self.tokens)
        self._last = min(self._last, self._chars)

    def say(self, text: str) -> bool:
        """Text came: it belongs to the tokens that came first. False where those say something else, or where it passes
        over some that nobody has judged. Parsers strip blanks, and some tokenizers lose one before a word: that is the
        same."""
        follows = True
        while text and self.tokens:
            token = self.tokens[0]
            if text.startswith(token):
                self._take()
                text = text[len(token) :]
            elif token.startswith(text):
                self._shorten(len(text))
                break
            elif _PARTS.match(token):
                text = self._say_parts(text)
            elif MARKER.fullmatch(token):
                self._take()
            elif not text.strip() and not BLANK.match(token).end():  # type: ignore[union-attr]
                return False
            else:
                same = next(at for at, (one, other) in enumerate(zip(token, text, strict=False)) if one != other)
                blank, blank_said = (BLANK.match(each, same).end() for each in (token, text))  # type: ignore[union-attr]
                if max(blank, blank_said) > same or _PARTS.match(token, same):
                    follows = follows and blank_said <= blank + 1
                    self._shorten(blank)
                    text = text[blank_said:]
                    continue
                position = self._find(text)
                if position is None:
                    return False
                follows = self._pass_over(position) and follows
        self._last = min(self._last, self._chars)
        return follows

    def _say_parts(self, text: str) -> str:
        """At most a character for each of the parts that stand in a row."""
        parts = ""
        while self.tokens and (found := _PARTS.match(self.tokens[0])):
            parts += found[0].removeprefix("bytes:")
            self._shorten(found.end())
        count, whole = len(decoded(parts)), 0
        while whole < min(count, len(text)) and not text[whole].isascii():
            whole += 1
        return text[whole:]

    def _find(self, text: str) -> int | None:
        """The token behind the first that the text goes on with."""
        bare = bared(text)[:MAX_COMPARED]
        tokens = [bared(token)[:MAX_COMPARED] for token in islice(self.tokens, MAX_PASSED + LEAST_SAME)]
        for position in range(1, len(tokens)):
            rest = "".join(tokens[position : position + MAX_COMPARED // 4])[:MAX_COMPARED]
            if rest == bare or (
                min(len(rest), len(bare)) >= LEAST_SAME and (rest.startswith(bare) or bare.startswith(rest))
            ):
                return position
        return None

    def _pass_over(self, count: int) -> bool:
        """Whether all of them that are text were judged."""
        unjudged = 0
        for _ in range(count):
            is_judged = self._judged > 0
            token = self._take()
            unjudged += not (is_judged or MARKER.fullmatch(token) or not token.strip())
        return not unjudged

    def _take(self) -> str:
        token = self.tokens.popleft()
        self._judged = max(0, self._judged - 1)
        self._chars -= _size(token)
        return token

    def _shorten(self, count: int) -> None:
        """Take the beginning of the first."""
        is_judged = self._judged > 0
        rest = self._take()[count:]
        # Of a marker that was begun the rest is sure to come.
        self._last = min(self._last, self._chars)
        if rest:
            self.tokens.appendleft(rest)
            self._judged += is_judged
            self._chars += _size(rest)


def _size(token: str) -> int:
    """The most that its text may have, for it may have lost a blank."""
    return len(token) + (not token[:1].isspace())


def decoded(text: str) -> str:
    """A text with the characters themselves, where OpenAI wrote their bytes."""
    return _BYTES.sub(_characters, text)


def _characters(escaped: re.Match[str]) -> str:
    return bytes.fromhex(escaped[0].removeprefix("bytes:").replace("\\x", "")).decode(errors="replace")


def bared(text: str) -> str:
    """A text or a token without blanks."""
    return BLANK.sub("", text)


def spoken(tokens: Sequence[str]) -> list[str]:
    """The tokens that are text: a bare id says nothing of its own."""
    return [token for token in tokens if not BARE_ID.fullmatch(token)]
