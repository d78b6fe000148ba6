"""Tokens whose text is still to come: a parser or a ``stop`` string keeps text back, while the logprobs go on."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

    __slots__ = ("_chars", "_is_awaited", "_is_rest", "_judged", "_loses_blanks", "_marker_chars", "_taken", "tokens")

    def __init__(self) -> None:
        self.tokens: deque[str] = deque()
        """What is ahead."""
        self._judged = 0
        """How many of them, from the first on, are judged as text of their own."""
        self._is_rest = False
        """Whether the beginning of the first was said."""
        self._loses_blanks = False
        """Whether a token was seen that had lost the blank before it, so that others may have too."""
        self._is_awaited = False
        """Whether earlier events wait for the text of some."""
        self._taken: list[str] = []
        """What texts took that nobody has judged as text of its own."""
        self._chars = 0
        """The most characters that the text of all of them may have."""
        self._marker_chars = 0
        """Of these, those of the markers at the end, which nothing waits for."""

    @property
    def unsaid(self) -> int:
        """Characters of text that are still to come, at most. No text makes it more."""
        return self._chars - self._marker_chars if len(self.tokens) > self._judged else 0

    @property
    def text(self) -> str:
        """The tokens' text, without markers and without what is judged."""
        return decoded("".join(self._texts()))

    def _texts(self) -> Iterator[str]:
        tokens = islice(self.tokens, self._judged, None)
        return (token for token in tokens if not MARKER.fullmatch(token))

    def sample(self, tokens: Iterable[str]) -> None:
        """Tokens came."""
        for token in tokens:
            self.tokens.append(token)
            size = self._size(token)
            self._chars += size
            self._marker_chars = self._marker_chars + size if MARKER.fullmatch(token) else 0

    def compare(self, texts: Iterable[str]) -> str:
        """Texts came. Where one doesn't follow the tokens, all that was ahead is text of its own, before them."""
        self._taken.clear()
        follows = [self.say(text) for text in texts]
        alone = "" if all(follows) else self._judge()
        self._is_awaited = self.unsaid > 0
        return alone

    def _judge(self) -> str:
        """Judge what is ahead as text of its own, which is returned. The last tokens stay, since texts may still say
        them."""
        alone = decoded("".join((*self._taken, *self._texts())))
        while len(self.tokens) > MAX_JUDGED:
            self._take()
        self._judged = len(self.tokens)
        return alone

    def say(self, text: str) -> bool:
        """Text came: it belongs to the tokens that came first. False where those say something else, or where it passes
        over some that nobody has judged. Parsers strip blanks, and some tokenizers lose one before a word: that is the
        same."""
        # An index and no rest of the text, which would be copied for every token.
        position, follows = 0, True
        while position < len(text) and self.tokens:
            token = self.tokens[0]
            if text.startswith(token, position):
                self._take()
                position += len(token)
            elif len(text) - position < len(token) and token.startswith(text[position:]):
                self._take(len(text) - position)
                break
            elif _PARTS.match(token):
                position, is_said = self._say_parts(text, position)
                follows = follows and is_said
            elif MARKER.fullmatch(token):
                self._take()
            else:
                same = _same(token, text[position : position + len(token)])
                blank, blank_said = _end_of_blank(token, same), _end_of_blank(text, position + same) - position
                if max(blank, blank_said) > same or _PARTS.match(token, same):
                    if blank_said > blank:
                        follows = not same and blank_said == blank + 1 and self._has_lost_blank() and follows
                    self._take(blank)
                    position += blank_said
                    continue
                found = self._find(text[position : position + 2 * MAX_COMPARED])
                if found is None:
                    return False
                follows = self._pass_over(found) and follows
        return follows

    def _has_lost_blank(self) -> bool:
        """Whether the first token may have lost a blank that its text has. Then every token may have: what is still to
        come may be longer than was counted, so this is False where an event waits by the smaller count."""
        if self._is_rest or self.tokens[0][:1].isspace():
            return False
        if self._loses_blanks:
            return True
        self._loses_blanks = True
        self._chars += sum(not token[:1].isspace() for token in self.tokens)
        return not self._is_awaited

    def _say_parts(self, text: str, position: int) -> tuple[int, bool]:
        """Where the text goes on behind the parts that stand in a row, and whether it says what they say. It may have a
        character for each that isn't whole."""
        parts = ""
        while self.tokens and (found := _PARTS.match(self.tokens[0])):
            parts += found[0].removeprefix("bytes:")
            self._take(found.end())
        for char in decoded(parts):
            said = text[position : position + 1]
            if not PARTIAL.match(char) and char != said:
                return position, False
            position += bool(said) and not said.isascii()
        return position, True

    def _find(self, text: str) -> int | None:
        """The token behind the first with which ``text`` begins, of which a little is enough."""
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

    def _take(self, count: int | None = None) -> str:
        """Take the first, or its beginning."""
        token = self.tokens.popleft()
        self._chars -= len(token) if self._is_rest else self._size(token)
        # Of a marker that was begun the rest is sure to come.
        self._marker_chars = min(self._marker_chars, self._chars)
        taken, rest = (token, "") if count is None else (token[:count], token[count:])
        if not (self._judged or MARKER.fullmatch(token)):
            self._taken.append(taken)
        self._is_rest = bool(rest)
        if rest:
            self.tokens.appendleft(rest)
            self._chars += len(rest)
        else:
            self._judged = max(0, self._judged - 1)
        return token

    def _size(self, token: str) -> int:
        """The most that its text may have."""
        return len(token) + (self._loses_blanks and not token[:1].isspace())


def _same(one: str, other: str) -> int:
    """How many characters are the same, of two texts that differ."""
    return next(at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)


def _end_of_blank(text: str, start: int) -> int:
    blank = BLANK.match(text, start)
    return start if blank is None else blank.end()


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
