"""One choice of a reply as it is read: which of its strings are thinking, which tokens await their text."""

from __future__ import annotations

from collections.abc import Sequence

from guardtrace_proxy.wire.ahead import TokensAhead, spoken
from guardtrace_proxy.wire.events import ChoicePart, Found, MoreText, Phase, Segment, Span, SpanKind
from guardtrace_proxy.wire.tags import ThinkingStyle

TOKENS = ("logprobs",)
"""Path of a span that stands for tokens without their text."""
ESTIMATED_IN_AN_ID = 4
"""At most so many tokens of four bytes stand for one id: longer ones exist, but not many in a row."""


class ChoiceReader:
    """What is remembered of one choice between events. ``tagged`` is the field in which thinking tags may stand."""

    __slots__ = ("_has_sampled", "ahead", "latches", "tagged", "tags")

    def __init__(self, style: ThinkingStyle, tagged: str = "content") -> None:
        self.tagged = tagged
        self.tags = style.tag_reader()
        self.latches = style.style == "auto"
        self.ahead = TokensAhead()
        self._has_sampled = False

    def follow(
        self, found: list[Found], sampled: Sequence[str] | None, token_ids: Sequence[int] | None, finished: bool
    ) -> int:
        """Compare an event's texts with the tokens that were sampled: ``sampled`` are those of its logprobs; ids alone
        say nothing of their text's length. Returns how many characters are still to come for its tokens.

        Adds to ``found``: before the event's own, the text of tokens that it doesn't say; behind them, where the choice
        is ``finished``, that of tokens which now nothing will say.
        """
        has_ids = bool(token_ids)
        if sampled and not (texts := spoken(sampled)):
            sampled, has_ids = None, True
        if sampled is not None:
            self.ahead.sample(texts if sampled else ())
            self._has_sampled = True
        # Of all fields, since those that wait for it count the tape's characters in order.
        found[:0] = tokens_alone(self.ahead.compare([span.text for _, span in found]))
        if finished:
            found += self.take_never_said()
            return 0
        return self.ahead.unsaid if sampled is not None else int(has_ids and not found)

    def take_never_said(self) -> list[Found]:
        """What was sampled and will never be said, where nothing comes any more; all of it is forgotten."""
        found = tokens_alone(self.ahead.text)
        self.ahead = TokensAhead()
        self._has_sampled = False
        return found

    def rest(self, index: int) -> ChoicePart | None:
        """What could have become a tag, and tokens without text, where nothing comes any more. Tokens that have no text
        have an empty part: nobody need wait for it."""
        is_due, found = self._has_sampled, self.take_never_said()
        segments = self.segments(found, finished=True)
        spans = [span for _, span in found]
        return ChoicePart(index, spans, segments, tokens=_tokens(spans, None)) if segments or is_due else None

    def segments(self, found: Sequence[Found], finished: bool) -> list[Segment]:
        """The segments that are certain with these spans."""
        segments: list[Segment] = []
        for phase, span in found:
            if self.tags is None:
                segments.append(Segment(phase, span.text))
            elif span.kind is SpanKind.TEXT and span.path[-1] == self.tagged:
                segments += self.tags.feed(span.text)
            else:
                segments += self.tags.end()
                segments.append(Segment(phase, span.text))
                if phase is Phase.THINKING and self.latches:
                    self.tags = None
        if finished and self.tags is not None:
            segments += self.tags.end()
        return segments

    def takes(self, more: MoreText) -> bool:
        """Whether a text by itself is one segment by itself, of the phase that it claims."""
        if self.ahead.tokens:
            return False
        tags = self.tags
        if tags is None:
            # What was inside a tag is thinking no more once a field has brought some.
            return more.of.close is None
        if more.of.path[-1] != self.tagged:
            return not self.latches and tags.passes("")
        return tags.passes(more.text) and tags.phase is more.of.phase and tags.close == more.of.close

    def part(
        self,
        index: int,
        found: list[Found],
        finish_reason: str | None = None,
        token_ids: list[int] | None = None,
        has_role: bool = False,
        unsaid: int = 0,
    ) -> ChoicePart:
        """What an event says of this choice."""
        if not found and finish_reason is None:
            return ChoicePart(index, [], [], None, 0, has_role, unsaid)
        spans = [span for _, span in found]
        segments = self.segments(found, finish_reason is not None)
        return ChoicePart(index, spans, segments, finish_reason, _tokens(spans, token_ids), has_role, unsaid)


def tokens_alone(text: str) -> list[Found]:
    """What was sampled and never said, as text of the answer."""
    return [(Phase.ANSWERING, Span(TOKENS, text, SpanKind.OTHER))] if text.strip() else []


def _tokens(spans: list[Span], token_ids: list[int] | None) -> int:
    """Ruling 16: the length of ``token_ids``, else UTF-8 bytes / 4 rounded up, at least 1 where there is text. Ids
    count for at least a quarter of that: they may have come before their text, and one would stand for any."""
    tokens = 0
    for span in spans:
        text = span.text
        length = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        tokens += -(-length // 4)
    return max(len(token_ids), -(-tokens // ESTIMATED_IN_AN_ID)) if spans and token_ids else tokens
