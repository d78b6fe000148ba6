"""Inline thinking tags in a choice's content, which may be split over chunks anywhere."""

from __future__ import annotations

from typing import NamedTuple

from guardtrace_proxy.wire.events import Phase, Segment

ANSWER_TAGS = ("<answer>", "</answer>")
"""GLM-4.1V wraps its answer; the wrapping is no text."""


class TagPair(NamedTuple):
    """What opens and closes a thinking block. ``open`` is None where nothing does but the beginning."""

    open: str | None
    close: str


KNOWN_PAIRS = (TagPair("<think>", "</think>"), TagPair("◁think▷", "◁/think▷"))
"""Qwen, DeepSeek, GLM and others; Kimi-VL."""


class TagReader:
    """Reads one choice's content. ``starts_open``: the prompt's template has opened the block already.

    A block that never closes is thinking to its end. Text before a bare closing tag was answer.
    """

    def __init__(self, pairs: tuple[TagPair, ...], starts_open: bool) -> None:
        self._pairs = {pair.open: pair.close for pair in pairs if pair.open is not None}
        self._closes = tuple(pair.close for pair in pairs)
        self._outside = (*self._pairs, *self._closes, *ANSWER_TAGS)
        self._inside: tuple[str, ...] = self._closes if starts_open else ()
        self._close: str | None = self._closes[0] if starts_open else None
        self._tail = ""

    def feed(self, text: str) -> list[Segment]:
        """The segments that are certain now; the beginning of what could become a tag waits."""
        return self._read(self._tail + text, final=False)

    def end(self) -> list[Segment]:
        """What waited waits for nothing any more."""
        return self._read(self._tail, final=True)

    def _read(self, rest: str, final: bool) -> list[Segment]:
        segments: list[Segment] = []
        while rest:
            tags = self._inside or self._outside
            at, tag = _first(rest, tags)
            certain = len(rest) if final else len(rest) - _waiting_length(rest, tags)
            # A tag waits as well where it could still turn out to be part of an earlier or a longer one.
            if tag is None or at >= certain:
                self._add(segments, rest[:certain])
                rest = rest[certain:]
                break
            self._add(segments, rest[:at])
            segments.append(self._pass_tag(tag))
            rest = rest[at + len(tag) :]
        self._tail = rest
        return segments

    def _add(self, segments: list[Segment], text: str) -> None:
        if text:
            phase = Phase.THINKING if self._inside else Phase.ANSWERING
            segments.append(Segment(phase, text, False, self._close))

    def _pass_tag(self, tag: str) -> Segment:
        if self._inside:
            self._inside, self._close = (), None
            return Segment(Phase.THINKING, tag, True, tag)
        close = self._pairs.get(tag)
        if close is None:
            return Segment(Phase.ANSWERING, tag, True)
        self._inside, self._close = (close,), close
        return Segment(Phase.THINKING, tag, True, close)


def _first(text: str, tags: tuple[str, ...]) -> tuple[int, str | None]:
    """The earliest tag in the text, the longest where several begin there."""
    best: tuple[int, str | None] = (len(text), None)
    for tag in tags:
        at = text.find(tag)
        if at >= 0 and (at < best[0] or (at == best[0] and len(tag) > len(best[1] or ""))):
            best = at, tag
    return best


def _waiting_length(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end could begin a tag."""
    longest = 0
    for tag in tags:
        for length in range(min(len(tag) - 1, len(text)), longest, -1):
            if text.endswith(tag[:length]):
                longest = length
                break
    return longest
