"""One query's prompts for a server whose tokenizer isn't at hand, and what fits its context.

Two measures. What a text likely takes is a careful guess, by which most of the context can be used; but dense text
(random letters, say) takes more, and a client can have it written. What it takes at most is one token a UTF-8 byte. The
first holds for a stream until the server refuses one of its prompts, from then on the second.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio.to_thread

from guardtrace_proxy.auditor.context import query_tokens
from guardtrace_proxy.auditor.prompt import Trace, Turn, user_text
from guardtrace_proxy.auditor.protocol import DoesNotFit
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_proxy.auditor.window import GAP, Conversation, Window, too_long

BYTES_GROWN_BY_QUOTING = 2
"""Quoting of labels and breaking up of control tokens make a text at most twice as long."""
LEAST_OF_ROOM = 4
"""However long a query is, one audit takes a quarter of the room beside it: a context of few tokens has little more."""
DENSITY_MARGIN = 1.1
"""A conversation without its oldest turns may be somewhat denser than the whole of it was."""

BYTES_A_LIKELY_TOKEN = 3
"""At most, of words."""
_LETTERS = (string.ascii_letters + " ").encode()

Count = Callable[[str], Awaitable[int | None]]
"""Tokens of a prompt with this user turn, images aside, or None where they can't be counted."""


def likely_tokens(text: str) -> int:
    """Words run to three letters a token, anything else to one a byte."""
    data = text.encode("utf-8", "surrogatepass")
    others = len(data.translate(None, delete=_LETTERS))
    return others + (len(data) - others) // BYTES_A_LIKELY_TOKEN + 1


def most_tokens(text: str) -> int:
    """One a byte, of the text as it is or as NFC, by which Qwen's tokenizer may see it."""
    if text.isascii():
        return len(text)
    return max(len(form.encode("utf-8", "surrogatepass")) for form in (text, unicodedata.normalize("NFC", text)))


class ServedPrompt:
    """The user turns about one query. ``tokens`` are those that a prompt may have, of which ``system`` go to the system
    prompt and ``images`` to the images. ``is_dense``: texts are measured by what they take at most.
    ``is_certain``: the query can't be too long, so what fits when it is dense is no more than the server takes.

    ``capacity``: bytes of unjudged text that likely fit whatever quoting makes of them, so the server is always asked.
    Where it refuses, they fit by what they take at most too, if quoting and NFC leave them alone. Text that grows, or a
    context of a few hundred tokens, may be outgrown then: the audit fails, and there is no verdict.
    """

    def __init__(self, turns: Sequence[Turn], tokens: int, system: int, images: int) -> None:
        """Raises DoesNotFit."""
        self._conversation = Conversation(turns)
        self._images = images
        self._fixed = system + images
        self._tokens = tokens
        self._limit = query_tokens(tokens)
        if self._fixed > self._limit:
            raise DoesNotFit("messages", "the images are more than the auditor's context takes: send fewer")
        self.is_dense = False
        self._window = Window()
        self._begin_with(self._fitted(likely_tokens, 1 / BYTES_A_LIKELY_TOKEN))

    def _begin_with(self, query: str, counted: int | None = None) -> None:
        """Have each prompt begin with this query, with so many tokens before any trace, if they were counted."""
        before = _before(query)
        likely, most = likely_tokens(before), self._fixed + most_tokens(before)
        self._query = query
        self.is_certain = counted is not None or most <= self._limit
        self._beside = self._fixed if counted is None else counted - likely
        self._before = most if counted is None and self.is_certain else self._beside + likely
        self.capacity = self._takes(self._tokens - self._beside - likely)

    def _takes(self, room: int) -> int:
        """The capacity, where so many tokens are likely to be left beside the query. It never grows with the query, so
        one that isn't certain has no more than the longest that is."""
        before = self._before if self.is_certain else self._limit
        dense = self._tokens - before - most_tokens(_text("", GAP, GAP))
        return max(1, min(room // BYTES_GROWN_BY_QUOTING, max(dense, room // LEAST_OF_ROOM)))

    async def measure(self, count: Count) -> None:
        """Have a query counted that may be too long: then without its older turns, where it is. What can't be counted
        passes by what it likely takes.

        Raises:
            DoesNotFit: the newest user turn with what follows it is too long by itself.
        """
        if self.is_certain:
            return
        counted = await count(_before(self._query))
        if counted is None or self._counts(counted):
            return
        density = DENSITY_MARGIN * (counted + self._images - self._fixed) / likely_tokens(_before(self._query))
        for query in await anyio.to_thread.run_sync(self._shorter, density):
            self._begin_with(query)
            if self.is_certain:
                return
            counted = await count(_before(query))
            if counted is None or self._counts(counted):
                return
        raise too_long()

    def _counts(self, counted: int) -> bool:
        """Reckon with the tokens that were counted, where they fit."""
        if counted + self._images > self._limit:
            return False
        self._begin_with(self._query, counted + self._images)
        return True

    def _shorter(self, density: float) -> list[str]:
        """What to begin with instead, the most promising first: without its oldest turns, as many as it takes where a
        likely token is so many; or where a byte is one; and the newest turns alone."""
        queries: dict[str, None] = {}
        with suppress(DoesNotFit):
            likely = self._fitted(lambda text: density * likely_tokens(text), density / BYTES_A_LIKELY_TOKEN)
            queries[likely] = None
        with suppress(DoesNotFit):
            queries[self._fitted(most_tokens, 1)] = None
        queries[self._conversation.newest] = None
        return [query for query in queries if query != self._query]

    def _fitted(self, measure: Callable[[str], float], least: float) -> str:
        """The query without the oldest turns that don't fit by this measure, by which a byte takes ``least`` at least.
        Raises DoesNotFit."""
        most_bytes = (self._limit - self._fixed) / least
        return self._conversation.fit(lambda query: self._fixed + measure(_before(query)) <= self._limit, most_bytes)

    def place(self, trace: Trace, tokens: int) -> str:
        """The user turn about a trace, as much of it as fits a prompt of so many tokens.

        Raises:
            AuditorFailure: what no verdict covers yet doesn't fit.
        """

        def build(thinking: str, answer: str) -> str | None:
            text = _text(self._query, thinking, answer)
            size = self._most(thinking, answer) if self.is_dense else self._beside + likely_tokens(text)
            return text if size <= tokens else None

        return self._window.place(trace, build)

    def _most(self, thinking: str, answer: str) -> int:
        """The labels count twice, which makes up for tokens that form where the texts meet, and for the template's."""
        return self._before + most_tokens(_text("", thinking, answer))


def _text(query: str, thinking: str, answer: str) -> str:
    return defuse_control_tokens(user_text(query, thinking, answer))


def _before(query: str) -> str:
    """What stands in a prompt before there is any trace."""
    return _text(query, GAP, GAP)
