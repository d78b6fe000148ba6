"""Reading a guard's reply: ``“Analysis”: …`` then ``“Judgment”: 0 | 0.5 | 1``, in every spelling that was
seen.

A reply that doesn't hold one of the three judgments is unreadable, and never counts as 0.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from guardtrace_proxy.policy.levels import Level

_DECORATION = r"[\s\"'“”„‟«»‘’‚‛`´＂＇「」『』*_#>{\[(\\-]*"
_MARKS = r"[^\S\n]*[\"'“”„‟«»‘’‚‛`´＂＇「」『』*_\\]*[^\S\n]*"
_BEFORE_VALUE = rf"{_MARKS}[:：]{_MARKS}"
_JUDGMENT = re.compile(rf"judge?ment{_BEFORE_VALUE}", re.IGNORECASE)
_JUDGMENT_ENDS = re.compile(rf"judge?ment{_BEFORE_VALUE}\Z", re.IGNORECASE)
_ANALYSIS = re.compile(rf"analysis{_BEFORE_VALUE}", re.IGNORECASE)
_LINE_START = re.compile(_DECORATION)
_NUMBER = re.compile(r"0\.50*|[01](?:\.0+)?", re.ASCII)
_AFTER_NUMBER = re.compile(r"[\s\"'“”„‟«»‘’‚‛`´＂＇「」『』*_\\}\])]*(?:$|[.,;(–—][^\d½¼¾¹²³]*$)")
_FENCE = re.compile(r"\A```[a-z]*\s*\n?(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_THOUGHTS = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)


class UnreadableReply(Exception):
    """No judgment, or one that isn't 0, 0.5 or 1. The message never quotes the reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the guard said. ``analysis`` quotes what it judged: user text."""

    level: Level
    analysis: str | None


def parse_reply(text: str, *, truncated: bool = False) -> Reply:
    """Read a guard's reply; of several judgments the last one counts.

    ``truncated`` says that the reply stopped at its length limit: then a number that ends it may be the
    beginning of a longer one, and a judgment inside a line may be quoted from what was judged.

    Raises:
        UnreadableReply: there is no judgment, or the last one isn't exactly 0, 0.5 or 1.
    """
    text = _without_thoughts(text).lstrip("\ufeff \t\r\n")
    if not truncated and (fields := _json_object(text)) is not None:
        return _from_json(fields)
    labels = list(_JUDGMENT.finditer(text))
    own_line = [label for label in labels if _begins_line(text, label.start())]
    candidates = own_line or ([] if truncated else labels)
    if not candidates:
        raise UnreadableReply("the auditor's reply holds no judgment")
    label = candidates[-1]
    line, newline, _ = text[label.end() :].partition("\n")
    if truncated and not newline:
        raise UnreadableReply("the auditor's reply was cut off at its judgment")
    return Reply(_level(line), _analysis(text[: label.start()]))


def ends_at_judgment(text: str) -> bool:
    """Whether a reply, as far as it is written, goes on with the judgment's number."""
    return _JUDGMENT_ENDS.search(text) is not None


def _without_thoughts(text: str) -> str:
    """Drop what a thinking judge thought; an unclosed block is thoughts to its end."""
    rest = _THOUGHTS.sub("", text, count=1)
    _, closed, after = rest.rpartition("</think>")  # a template may have opened the block
    return after if closed else rest


def _begins_line(text: str, position: int) -> bool:
    start = text.rfind("\n", 0, position) + 1
    return _LINE_START.fullmatch(text, start, position) is not None


def _level(line: str) -> Level:
    number = _NUMBER.match(line)
    if number is None or _AFTER_NUMBER.match(line, number.end()) is None:
        raise UnreadableReply("the auditor's judgment is none of 0, 0.5 and 1")
    return Level(float(number[0]))


def _analysis(before: str) -> str | None:
    label = _ANALYSIS.search(before)
    if label is None:
        return None
    end = len(before)
    while end > label.end() and _LINE_START.fullmatch(before[end - 1]):
        end -= 1
    return before[label.end() : end].strip(" \t\r\n\",'”’*") or None


def _json_object(text: str) -> dict[str, Any] | None:
    """The reply as a JSON object, with its keys in lower case, or None where it isn't one with a judgment."""
    fence = _FENCE.match(text.strip())
    try:
        value = json.loads(fence[1] if fence else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    fields = {key.strip(" \"'“”*").lower(): value for key, value in value.items()}
    return fields if {"judgment", "judgement"} & fields.keys() else None


def _from_json(fields: dict[str, Any]) -> Reply:
    judgment = fields.get("judgment", fields.get("judgement"))
    if isinstance(judgment, bool) or not isinstance(judgment, (int, float, str)):
        raise UnreadableReply("the auditor's judgment is none of 0, 0.5 and 1")
    if isinstance(judgment, str):
        level = _level(judgment.strip(" \"'“”"))
    elif judgment in (0, 0.5, 1):
        level = Level(float(judgment))
    else:
        raise UnreadableReply("the auditor's judgment is none of 0, 0.5 and 1")
    analysis = fields.get("analysis")
    return Reply(level, analysis if isinstance(analysis, str) else None)
