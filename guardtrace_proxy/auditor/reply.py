"""Reading a guard's reply: ``“Analysis”: …`` then ``“Judgment”: 0 | 0.5 | 1``, in every spelling that was seen.

The last line decides, or else the first: an analysis in between may quote whatever it judges, judgments too. Inside a
line a judgment in quotation marks is a quoted one, and a line behind a ``>`` is copied text. A reply without one of the
three judgments in these places is unreadable, and never counts as 0. Copied text where nothing else judges, a reply
that was cut off, and a first line that a later one may take back, may warn, and never clear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guardtrace_proxy.auditor.quotations import leaves_quote_open
from guardtrace_proxy.policy.levels import Level

_QUOTES = r"\"'“”„‟«»‘’‚‛`´＂＇「」『』"
_DECORATION = rf"[\s{_QUOTES}*_#>{{\[(\\-]*"
_MARKS = rf"(?:[^\S\n]|[{_QUOTES}*_\\])*"
_LABEL = rf"(?P<label>(?P<name>judge?ment{_MARKS})[:：]{_MARKS})"
_BEGINS_LINE = re.compile(_DECORATION + _LABEL, re.IGNORECASE)
_ENDS_SENTENCE = rf"[.!?…。！？][\s{_QUOTES}*_#>{{}}\[\]()-]*"
_BEGINS_SENTENCE = re.compile(_ENDS_SENTENCE + _LABEL, re.IGNORECASE)
_BEGINS_KEY = re.compile(rf"(?:{_ENDS_SENTENCE}|(?<!\\)[{_QUOTES}],\s*[{_QUOTES}]){_LABEL}", re.IGNORECASE)
"""Or a key of JSON that is written wrongly."""
_OPENS_JSON = re.compile(r"[\s`]*(?:json\s*)?\{", re.IGNORECASE)
_ANALYSIS = re.compile(rf"analysis{_MARKS}[:：]{_MARKS}", re.IGNORECASE)
_DECORATED = re.compile(_DECORATION)
_COPIED = re.compile(rf"[\s{_QUOTES}*_#{{\[(\\-]*(?<!-)>")
"""How a line of Markdown's quotations begins, and one that was quoted for the prompt; an arrow (``->``) is none."""
_NUMBER = re.compile(r"0\.50*|[01](?:\.0+)?", re.ASCII)
_AFTER_NUMBER = re.compile(rf"[\s{_QUOTES}*_\\}}\])]*(?:$|[.,;(–—][^\d½¼¾¹²³]*$)")
_MAY_WARN = re.compile(
    rf"judge?ment(?:[^\n:：=]{{0,20}}[:：=]{_MARKS}|{_MARKS}(?:is|of)\b{_MARKS}|(?:[^\w\n]|_){{1,20}})(?:0?[.,]5|1)",
    re.IGNORECASE,
)
"""A judgment of 0.5 or 1 as it may be written anywhere, quoted ones too: behind a colon, a verb, or marks alone."""
_CLOSING = "\"'“”„‟«»‘’‚‛`´＂＇「」『』*_\\}]) \t\r\n"
_FENCE = re.compile(r"\A```[a-z]*\s*\n?(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_THOUGHTS_END = "</think>"
_THOUGHTS = re.compile(rf"\A\s*<think>.*?(?:{_THOUGHTS_END}|\Z)", re.DOTALL)


class UnreadableReply(Exception):
    """No judgment, or one that isn't 0, 0.5 or 1. The message never quotes the reply."""


@dataclass(frozen=True, slots=True)
class GuardReply:
    """What the guard said. ``analysis`` quotes what it judged: user text. ``judged_first``: the judgment stands before
    the analysis."""

    level: Level
    analysis: str | None
    judged_first: bool = False


def parse_reply(text: str, *, truncated: bool = False) -> GuardReply:
    """Read a guard's reply by its last line, where a judgment may stand behind other sentences, or else by its first.

    ``truncated`` says that the reply stopped at its length limit: then a number that ends it may be the
    beginning of a longer one, and a judgment may be quoted from what was judged. So it may warn, and never clears.

    Raises:
        UnreadableReply: it neither ends nor begins with a judgment, or with one that isn't exactly 0, 0.5 or 1; or it
            says 0 and was cut off, or says it behind a ``>`` alone, or first and then perhaps otherwise.
    """
    reply = _read(text, truncated)
    if truncated and reply.level is Level.SAFE:
        raise UnreadableReply("the auditor's reply was cut off, and a judgment of 0 in it may be a quoted one")
    return reply


@dataclass(frozen=True, slots=True)
class _Judgment:
    """One that may be the reply's: its label, and where its line ends."""

    label: re.Match[str]
    end: int
    is_copied: bool = False
    is_first: bool = False


def _read(text: str, truncated: bool) -> GuardReply:
    text = text.lstrip("\ufeff \t\r\n")
    answer = _without_thoughts(text)
    if not truncated and (fields := _json_object(text) or _json_object(answer)) is not None:
        return _from_json(fields)
    found = _last_judgment(answer, truncated)
    if (found is None or found.is_copied) and answer == text:  # thoughts have no first line that counts
        found = _first_judgment(text) or found
    if found is None:
        raise UnreadableReply("the auditor's reply neither ends nor begins with a judgment")
    if truncated and "\n" not in answer[found.end :]:
        raise UnreadableReply("the auditor's reply was cut off at its judgment")
    level = _level(answer[found.label.end() : found.end])
    if level is Level.SAFE and found.is_copied:
        raise UnreadableReply("the auditor's judgment of 0 stands in copied text")
    if level is Level.SAFE and found.is_first and _MAY_WARN.search(answer, found.end):
        raise UnreadableReply("the auditor's reply begins with a judgment of 0 and has another one later")
    return GuardReply(level, _analysis(answer[: found.label.start("label")]), found.is_first)


def ends_at_judgment(text: str) -> bool:
    """Whether a reply, as far as it is written, goes on with the judgment's number."""
    label = _last_label(text, text.rfind("\n") + 1, len(text), own_line=False)
    return label is not None and label.end() == len(text)


def judgment_place(
    written: Sequence[int], reply: GuardReply, label: int, decode: Callable[[Sequence[int]], str]
) -> int | None:
    """Where in the tokens of a reply its judgment begins with the token ``label``; None where that isn't found."""
    places = [index for index, token in enumerate(written) if token == label]
    ordered = places if reply.judged_first else reversed(places)
    return next((index for index in ordered if ends_at_judgment(decode(written[:index]))), None)


def _last_label(text: str, start: int, end: int, *, own_line: bool) -> re.Match[str] | None:
    """The judgment's label in a line: it begins the line, or (not if ``own_line``) the last sentence that has one, if
    that isn't quoted."""
    begins_line = _BEGINS_LINE.match(text, start, end)
    if begins_line or own_line:
        return begins_line
    inside = _BEGINS_KEY if _OPENS_JSON.match(text) or _OPENS_JSON.match(text, start) else _BEGINS_SENTENCE
    label = max(inside.finditer(text, start, end), key=re.Match.end, default=None)
    return None if label is None or _is_quoted(text, start, label) else label


def _last_judgment(text: str, truncated: bool) -> _Judgment | None:
    end = len(text.rstrip(_CLOSING))
    start = text.rfind("\n", 0, end) + 1
    label = _last_label(text, start, end, own_line=truncated)
    return None if label is None else _Judgment(label, end, is_copied=_is_copied(text, start, end))


def _first_judgment(text: str) -> _Judgment | None:
    """It begins the first line of several, and isn't copied text."""
    end = text.find("\n")
    if end < 0 or _is_copied(text, 0, end):
        return None
    label = _last_label(text, 0, end, own_line=True)
    return None if label is None else _Judgment(label, end, is_first=True)


def _is_copied(text: str, start: int, end: int) -> bool:
    """Whether a line stands behind a ``>``, in a reply that doesn't as a whole."""
    if _COPIED.match(text, start, end) is None:
        return False
    return not all(_COPIED.match(line) for line in text.split("\n") if line.strip())


def _is_quoted(text: str, start: int, label: re.Match[str]) -> bool:
    """Whether a quotation is open at a label's colon, or ends behind it."""
    colon = label.end("name")
    if leaves_quote_open(text[start:colon]):
        return True
    is_written = label.end() < len(text)
    return is_written and leaves_quote_open(text[colon:].partition("\n")[0])


def _without_thoughts(text: str) -> str:
    """Drop what a thinking judge thought; an unclosed block is thoughts to its end, a quoted end is none."""
    rest = _THOUGHTS.sub("", text, count=1)
    end = len(rest)
    while (closed := rest.rfind(_THOUGHTS_END, 0, end)) >= 0:  # a template may have opened the block
        end = rest.rfind("\n", 0, closed) + 1
        if not leaves_quote_open(rest[end:closed]):
            return rest[closed + len(_THOUGHTS_END) :]
    return rest


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
    while end > label.end() and _DECORATED.fullmatch(before[end - 1]):
        end -= 1
    return before[label.end() : end].strip(" \t\r\n\",'”’*") or None


def _json_object(text: str) -> dict[str, Any] | None:
    """The reply as a JSON object, or None where it isn't one."""
    if text.lstrip()[:1] not in ("{", "`"):
        return None
    fence = _FENCE.match(text.strip())
    try:
        # Models break lines in strings.
        value = json.loads(fence[1] if fence else text, strict=False, object_pairs_hook=_with_plain_keys)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _with_plain_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with its keys in lower case. A quotation whose marks aren't escaped brings keys of its own, so of the
    judgments all are kept."""
    found: dict[str, Any] = {}
    for written, value in pairs:
        key = written.strip(" \"'“”*").lower().replace("judgement", "judgment")
        if key == "judgment":
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found


def _from_json(fields: dict[str, Any]) -> GuardReply:
    """The most severe of its judgments counts."""
    levels = [_json_level(judgment) for judgment in fields.get("judgment", ())]
    if not levels:
        raise UnreadableReply("the auditor's reply holds no judgment")
    analysis = fields.get("analysis")
    return GuardReply(max(levels), analysis if isinstance(analysis, str) else None, next(iter(fields)) == "judgment")


def _json_level(judgment: Any) -> Level:
    if isinstance(judgment, str):
        return _level(judgment.strip(" \"'“”"))
    if isinstance(judgment, bool) or judgment not in (0, 0.5, 1):
        raise UnreadableReply("the auditor's judgment is none of 0, 0.5 and 1")
    return Level(float(judgment))
