"""Rules that drop a trace before the jury sees it, or after: each is a plain reading of the text, and has a name.

The paper screens on quality, category and class label (GuardTrace-VL, arXiv 2511.20994, section 3) without saying how;
these rules are ours. They read quality only. Whether an analysis contradicts its own judgment isn't read from its
surface: "it says that it is safe" stands in analyses of every level.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import Field

from guardtrace_proxy.wire.tags import KNOWN_PAIRS
from guardtrace_trainer.rows import Annotation, Trace, Vote
from guardtrace_trainer.settings import Settings

NGRAM = 12
"""Words whose repetition is counted: a loop of any length repeats some run of so many."""
CHARACTER_RUN = re.compile(r"(\S)\1{199}")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
"""Scripts without spaces count by the character."""
_TAGS = tuple(tag for pair in KNOWN_PAIRS for tag in pair if tag is not None)
_BROKEN = re.compile("\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f]|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2(?:\u20ac|\u0080)")
"""Undecodable bytes, stray control characters, and UTF-8 that was read as Latin-1 or Windows-1252."""


class Screening(Settings):
    """``screening`` of ``jury.yaml``: bounds of the rules. None turns one off; a least of 1 takes any text at all."""

    cut_thinking: bool = True
    cut_answer: bool = False
    filtered: bool = True
    min_thinking_words: int | None = Field(5, ge=1)
    min_answer_words: int | None = Field(1, ge=1)
    max_repeats: int | None = Field(10, ge=2)
    max_broken: int | None = Field(2, ge=0)
    tags_in_answer: bool = True
    min_analysis_words: int | None = Field(5, ge=1)


class Screened(Vote, frozen=True, kw_only=True):
    """A row that was dropped by ``rule``; ``votes`` is empty where the jury wasn't asked."""

    rule: str


def screen_trace(trace: Trace, screening: Screening) -> str | None:
    """The first rule that drops a trace before the jury sees it; None where none does."""
    return next(_rules_of_trace(trace, screening), None)


def screen_votes(votes: Sequence[Annotation], screening: Screening) -> str | None:
    """The first rule that drops a trace for what the jury wrote; None where none does."""
    for vote in votes:
        least = screening.min_analysis_words
        if least is not None and _too_short(vote.analysis, least):
            return "short analysis"
        if _loops(vote.analysis, screening.max_repeats):
            return "looping analysis"
        if _is_broken(vote.analysis, screening.max_broken):
            return "broken characters in analysis"
    return None


def _rules_of_trace(trace: Trace, screening: Screening) -> Iterator[str]:
    if screening.filtered and trace.finish_reason == "content_filter":
        yield "filtered by its server"
    if screening.cut_thinking and trace.finish_reason == "length" and not trace.answer:
        yield "thinking cut by length"
    if screening.cut_answer and trace.finish_reason == "length" and trace.answer:
        yield "answer cut by length"
    for name, text, least in (
        ("thinking", trace.thinking, screening.min_thinking_words),
        ("answer", trace.answer, screening.min_answer_words),
    ):
        if least is not None and not text.strip():
            yield f"empty {name}"
        if least is not None and least > 1 and _too_short(text, least):
            yield f"short {name}"
        if _loops(text, screening.max_repeats):
            yield f"looping {name}"
        if _is_broken(text, screening.max_broken):
            yield f"broken characters in {name}"
    if screening.tags_in_answer and any(tag in trace.answer for tag in _TAGS):
        yield "thinking tags in answer"


def _too_short(text: str, least: int) -> bool:
    words = _WORD.finditer(text)
    return sum(1 for _, _ in zip(range(least), words, strict=False)) < least


def _loops(text: str, bound: int | None) -> bool:
    """Whether a run of words, or one character, is repeated beyond the bound."""
    if bound is None:
        return False
    if CHARACTER_RUN.search(text):
        return True
    words = _WORD.findall(text)
    if len(words) < NGRAM + bound:
        return False
    grams = Counter(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    return max(grams.values()) > bound


def _is_broken(text: str, bound: int | None) -> bool:
    if bound is None:
        return False
    return sum(1 for _, _ in zip(range(bound + 1), _BROKEN.finditer(text), strict=False)) > bound
