"""From the parts of choices to the bytes of a reply, in one server's manner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.properties.alphabet import OCCURS_ONCE
from tests.properties.sent import ANSWER, Part, Path, Sent, Text

HEAD = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "thinker"}
CONTROL = "<|end|>"
TOKENS = ("logprobs",)
"""Where tokens stand that no field says."""
TEXT_HEAD = {**HEAD, "object": "text_completion"}


@dataclass
class Manner:
    """How a server writes."""

    ascii: bool
    compact: bool
    crlf: bool
    logprobs: bool
    early: bool
    """Whether they come in an event without text, before the text they belong to; ids with them."""
    token_ids: bool
    usage: str
    """none; end: a chunk of its own; finish: with the last finish; running: in every chunk."""
    role: str
    """none; first: in a chunk of its own; with: the first text; every: in each delta."""
    done: bool
    comments: bool
    nameless: bool
    """Azure begins with a chunk that names nothing."""
    alike: bool = False
    """Whether tokens come in the same bytes but for their text."""
    text_only: bool = False
    """Whether it is a completion: what would be content is ``text``, right in its choice."""

    def write(self, content: Any) -> bytes:
        data = json.dumps(content, ensure_ascii=self.ascii, separators=(",", ":") if self.compact else None).encode()
        return b"data: " + data + self.blank

    @property
    def blank(self) -> bytes:
        return b"\r\n\r\n" if self.crlf else b"\n\n"

    def end(self) -> Sent:
        return Sent("done", b"data: [DONE]" + self.blank)

    def error(self) -> Sent:
        """With what a provider found worth repeating: text, which mustn't pass."""
        error = {"message": "overloaded", "code": 503, "type": "x", "metadata": {"raw": chr(OCCURS_ONCE[-1])}}
        return Sent("error", self.write({"error": error}))


def usage_of(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}


def chunk_events(manner: Manner, order: list[list[Part]]) -> list[Sent]:
    """A streamed reply without what may go wrong with it."""
    events: list[Sent] = []
    if manner.nameless:
        events.append(Sent("chunk", manner.write({"choices": [], "created": 0, "id": "", "model": "", "object": ""})))
    seen: set[int] = set()
    produced = 0
    for number, parts in enumerate(order):
        for part in parts:
            _dress(manner, part, first=part.index not in seen, events=events)
            seen.add(part.index)
            produced += part.tokens
        last = number == len(order) - 1
        usage = usage_of(produced) if manner.usage == "running" or (manner.usage == "finish" and last) else None
        for early in _early(parts) if manner.early else ():
            events.append(_chunk(manner, [early], None, len(events)))
        events.append(_chunk(manner, parts, usage, len(events)))
        if manner.comments and number % 3 == 0:
            events.append(Sent("comment", b": ping" + manner.blank))
    if manner.usage == "end":
        usage = usage_of(produced)
        events.append(Sent("chunk", manner.write({**_head(manner), "choices": [], "usage": usage}), [], usage))
    if manner.done:
        events.append(manner.end())
    return events


@dataclass
class Hidden:
    """Tokens of a whole reply that no field says: ``before`` how many of its texts, between control tokens unless they
    go on where the last text ends."""

    text: str
    before: int
    goes_on: bool


def completion(manner: Manner, beats: dict[int, list[Part]], hidden: Mapping[int, Hidden]) -> Sent:
    """A reply that isn't streamed: the deltas of each choice put together. ``hidden``: by choice, where there is any."""
    choices, parts = [], []
    for index, deltas in beats.items():
        whole = Part(index, finish="stop")
        for delta in deltas:
            for text in delta.texts:
                _put_together(whole, text)
        _mark(manner, whole)
        if index in hidden:
            _hide(manner, whole, hidden[index])
        body: dict[str, Any] = {"role": "assistant", "content": None}
        calls = []
        for text in whole.texts:
            if text.path[0] == "tool_calls":
                if text.path[-1] == "name":
                    calls.append({"id": f"call_{text.path[1]}", "type": "function", "function": {}})
                calls[-1]["function"][text.path[-1]] = text.text
            elif text.path != TOKENS:
                for path in (text.path, *text.copies):
                    _put(body, path, text.text)
        if calls:
            body["tool_calls"] = calls
        said = {"text": body["content"] or ""} if manner.text_only else {"message": body}
        choices.append({"index": index, **said, **_beside(whole), "finish_reason": "stop"})
        parts.append(whole)
    usage = usage_of(9)
    head = TEXT_HEAD if manner.text_only else {**HEAD, "object": "chat.completion"}
    raw = manner.write({**head, "choices": choices, "usage": usage})
    return Sent("whole", raw[len(b"data: ") : -len(manner.blank)], parts, usage)


def _put_together(whole: Part, text: Text) -> None:
    for known in whole.texts:
        if known.path == text.path:
            known.text += text.text
            known.phases += text.phases
            return
    whole.texts.append(replace(text))
    whole.texts.sort(key=_place)


def _place(text: Text) -> int:
    """Where a text of a delta or message stands in the order in which it is said."""
    order = ("reasoning", "reasoning_content", "thinking", "reasoning_details", "content", "refusal", "tool_calls")
    return order.index(str(text.path[0])) if text.path[0] in order else len(order)


def _dress(manner: Manner, part: Part, *, first: bool, events: list[Sent]) -> None:
    """Role, logprobs and token ids."""
    if first and manner.role == "first":
        opening = Part(part.index, role=True, empty={"content": ""})
        events.append(_chunk(manner, [opening], None, len(events)))
    part.role = manner.role == "every" or (first and manner.role == "with")
    part.texts.sort(key=_place)
    _mark(manner, part)


def _mark(manner: Manner, part: Part) -> None:
    text = "".join(each.text for each in part.texts)
    if manner.token_ids and text:
        part.token_ids = [ord(char) if ord(char) in OCCURS_ONCE else ord(char) % 100 for char in text]
    if manner.logprobs and text:
        part.logprobs = _logprobs(manner, _tokens(text))


def _hide(manner: Manner, whole: Part, hidden: Hidden) -> None:
    """Tokens that are no part of the text, which is said in as many tokens as before."""
    runs = [_tokens(text.text) for text in whole.texts]
    before = len(runs) if hidden.goes_on else min(hidden.before, len(runs))
    runs.insert(before, [*([] if hidden.goes_on else [CONTROL]), *_tokens(hidden.text)])
    whole.logprobs = _logprobs(
        manner, [token for run in runs for token in (*run, *(() if hidden.goes_on else [CONTROL]))]
    )
    whole.texts.append(Text(TOKENS, hidden.text, ANSWER * len(hidden.text)))


def _tokens(text: str) -> list[str]:
    return [text[at : at + 100] for at in range(0, len(text), 100)]


def _logprobs(manner: Manner, tokens: list[str]) -> dict[str, Any]:
    return _side_by_side(tokens) if manner.text_only else {"content": [_sampled(each) for each in tokens]}


def _early(parts: list[Part]) -> list[Part]:
    """Logprobs and token ids, taken out of the parts they belong to."""
    moved = []
    for part in parts:
        if part.logprobs and part.texts and part.texts[0].path == ("content",):
            moved.append(Part(part.index, logprobs=part.logprobs, token_ids=part.token_ids, ahead=part))
            part.logprobs = part.token_ids = None
    return moved


def _chunk(manner: Manner, parts: list[Part], usage: dict[str, Any] | None, number: int) -> Sent:
    """Each event's bytes are its own: by ``obfuscation``, which OpenAI sends, or by its text, where they are alike."""
    choices = [_text_choice(part) if manner.text_only else _choice(part) for part in parts]
    content: dict[str, Any] = {**_head(manner), "choices": choices}
    if not (
        manner.alike and any(ord(char) in OCCURS_ONCE for part in parts for each in part.texts for char in each.text)
    ):
        content["obfuscation"] = f"{number:x}"
    if usage is not None or manner.usage == "running":
        content["usage"] = usage
    return Sent("chunk", manner.write(content), parts, usage)


def _choice(part: Part) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant"} if part.role else {}
    delta |= part.empty
    for text in part.texts:
        for path in (text.path, *text.copies):
            _put(delta, path, text.text, part.labels)
    return {"index": part.index, "delta": delta, **_beside(part), "finish_reason": part.finish}


def _text_choice(part: Part) -> dict[str, Any]:
    text = "".join(each.text for each in part.texts)
    return {"index": part.index, "text": text, **_beside(part), "finish_reason": part.finish}


def _head(manner: Manner) -> dict[str, Any]:
    return TEXT_HEAD if manner.text_only else HEAD


def _side_by_side(tokens: list[str]) -> dict[str, Any]:
    return {
        "text_offset": [0 for _ in tokens],
        "token_logprobs": [-0.1 for _ in tokens],
        "tokens": tokens,
        "top_logprobs": [{token: -0.1} for token in tokens],
    }


def _beside(part: Part) -> dict[str, Any]:
    return {"logprobs": part.logprobs} | ({"token_ids": part.token_ids} if part.token_ids is not None else {})


def _put(body: dict[str, Any], path: Path, text: str, labels: dict[str, Any] | None = None) -> None:
    if path[0] == "tool_calls":
        function = {str(path[-1]): text} | ({"arguments": ""} if path[-1] == "name" else {})
        body.setdefault("content", None)
        body["tool_calls"] = [{**(labels or {}), "function": function}]
    elif path[0] == "reasoning_details":
        body["reasoning_details"] = [{"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}]
    else:
        body[str(path[0])] = text


def _sampled(token: str) -> dict[str, Any]:
    """A token, which no server makes longer than a few words, and itself as its likeliest alternative."""
    likely = {"token": token, "logprob": -0.1, "bytes": list(token.encode())}
    return {**likely, "top_logprobs": [likely]}
