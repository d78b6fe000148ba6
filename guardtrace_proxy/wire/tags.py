"""Inline thinking tags in a choice's content, which may be split over chunks anywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from guardtrace_proxy.wire.events import Phase, Segment

ANSWER_TAGS = ("<answer>", "</answer>")
"""GLM-4.1V wraps its answer; the wrapping is no text."""


class TagPair(NamedTuple):
    """What opens and closes a thinking block. ``open`` is None where nothing does but the beginning."""

    open: str | None
    close: str


MAX_TAGS = 64
"""Tags of one choice. What stands between two is judged by itself, so a reply of nothing but tags would ask for an
audit every few characters; models think in one block, or in a few."""

KNOWN_PAIRS = (TagPair("<think>", "</think>"), TagPair("◁think▷", "◁/think▷"))
"""Qwen, DeepSeek, GLM and others; Kimi-VL."""


class TagReader:
    """Reads one choice's content. ``starts_open``: the prompt's template has opened the block already.

    A block that never closes is thinking to its end. Text before a bare closing tag was answer. Behind ``max_tags``
    tags, and the end of the block that stands open then, all others are text.
    """

    def __init__(self, pairs: tuple[TagPair, ...], starts_open: bool, max_tags: int = MAX_TAGS) -> None:
        self._closes = {pair.open: pair.close for pair in pairs if pair.open is not None}
        closes = tuple(pair.close for pair in pairs)
        self._outside = _tag_set((*self._closes, *closes, *ANSWER_TAGS))
        self._left = max_tags
        self._inside = _tag_set(closes) if starts_open else None
        """The tags that can end the block that stands open; None outside of one."""
        self._close = closes[0] if starts_open else None
        self._tail = ""

    def feed(self, text: str) -> list[Segment]:
        """The segments that are certain now; the beginning of what could become a tag waits."""
        return self._read(self._tail + text, final=False)

    def end(self) -> list[Segment]:
        """What waited waits for nothing any more."""
        return self._read(self._tail, final=True)

    def passes(self, text: str) -> bool:
        """Whether nothing waits and no tag can begin in ``text``: it is a segment by itself then."""
        if self._tail:
            return False
        # No generator, since this is asked for every token.
        for head in (self._inside or self._outside).heads:  # noqa: SIM110
            if head in text:
                return False
        return True

    @property
    def phase(self) -> Phase:
        """Of the text that comes next, unless a tag stands before it."""
        return Phase.THINKING if self._inside else Phase.ANSWERING

    @property
    def close(self) -> str | None:
        """The closing tag of the block that stands open."""
        return self._close

    def _read(self, text: str, final: bool) -> list[Segment]:
        segments: list[Segment] = []
        position = 0
        while position < len(text):
            tags = self._inside or self._outside
            certain = len(text) if final else len(text) - tags.waiting_length(text, position)
            found = tags.search(text, position)
            # A tag waits as well where it could still turn out to be part of an earlier or a longer one.
            if found is None or found.start() >= certain:
                self._add(segments, text[position:certain])
                position = certain
                break
            self._add(segments, text[position : found.start()])
            segments.append(self._pass_tag(found.group()))
            position = found.end()
        self._tail = text[position:]
        return segments

    def _add(self, segments: list[Segment], text: str) -> None:
        if text:
            segments.append(Segment(self.phase, text, False, self._close))

    def _pass_tag(self, tag: str) -> Segment:
        self._left -= 1
        if self._left <= 0:
            self._outside = _tag_set(())
        if self._inside:
            self._inside, self._close = None, None
            return Segment(Phase.THINKING, tag, True, tag)
        close = self._closes.get(tag)
        if close is None:
            return Segment(Phase.ANSWERING, tag, True)
        self._inside, self._close = _tag_set((close,)), close
        return Segment(Phase.THINKING, tag, True, close)


class _TagSet:
    """Tags that count at one time. ``search`` finds the earliest, the longest where several begin there."""

    def __init__(self, tags: tuple[str, ...]) -> None:
        pattern = "|".join(map(re.escape, sorted(tags, key=len, reverse=True)))
        self.search = re.compile(pattern or "(?!)").search  # which no text has
        self._tags = tags
        self.heads = tuple({tag[0] for tag in tags})
        self._longest = max(map(len, tags), default=1) - 1

    def waiting_length(self, text: str, start: int) -> int:
        """How many characters at the end of ``text`` from ``start`` could begin a tag."""
        tail = text[max(start, len(text) - self._longest) :]
        # Almost no token has the first character of a tag in it, and this runs for every one.
        if not any(head in tail for head in self.heads):
            return 0
        longest = 0
        for tag in self._tags:
            for length in range(min(len(tag) - 1, len(tail)), longest, -1):
                if tail.endswith(tag[:length]):
                    longest = length
                    break
        return longest


@lru_cache(maxsize=64)
def _tag_set(tags: tuple[str, ...]) -> _TagSet:
    return _TagSet(tags)


@dataclass(frozen=True, slots=True)
class ThinkingStyle:
    """Where an upstream's thinking stands: ``upstreams.*.thinking`` of the config.

    ``auto`` takes reasoning fields and known inline tags, and latches to the fields once one was seen. ``starts_open``:
    the prompt's template has opened the thinking tag. ``custom`` reads the operator's own ``open`` and ``close``.
    """

    style: Literal["auto", "field", "inline", "custom"] = "auto"
    starts_open: bool = False
    open: str | None = None
    close: str | None = None

    def misfit(self) -> str | None:
        """Why these can't stand together; None where they can."""
        if self.style == "custom" and self.close is None:
            return "style custom needs close, and open unless thinking starts open"
        if self.style == "custom" and self.open is None and not self.starts_open:
            return "style custom needs open, or starts_open: true where only a closing tag comes"
        if self.style != "custom" and (self.open is not None or self.close is not None):
            return "open and close are for style custom"
        if self.style == "field" and self.starts_open:
            return "starts_open has no effect with style field"
        return None

    def tag_reader(self, max_tags: int = MAX_TAGS) -> TagReader | None:
        """A reader for one choice's content; None where tags are text."""
        if self.style == "field":
            return None
        if self.style == "custom":
            assert self.close is not None
            return TagReader((TagPair(self.open, self.close),), self.starts_open, max_tags)
        return TagReader(KNOWN_PAIRS, self.starts_open, max_tags)
