"""How a reply opens whose beginning the request supplied: its thinking, its answer, and where the model goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from guardtrace_proxy.wire.events import Phase, Segment
from guardtrace_proxy.wire.request import Prefill
from guardtrace_proxy.wire.tags import ThinkingStyle


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a trace. ``style`` is the upstream's, for what the model writes after it."""

    thinking: str
    answer: str
    style: ThinkingStyle


def opening_of(prefill: Prefill, style: ThinkingStyle) -> Opening:
    """Split a prefill by its tags: what stands in a thinking block belongs to the thinking."""
    segments = _segments(prefill.content, style)
    thinking = "".join(text for phase, text, tag, _ in segments if phase is Phase.THINKING and not tag)
    answer = "".join(text for phase, text, tag, _ in segments if phase is Phase.ANSWERING and not tag)
    starts_open = style.starts_open
    if segments and _is_open(segments[-1]):
        starts_open = style.style != "field"
    elif prefill.continues and prefill.content:
        starts_open = False
    parts = [part for part in (prefill.thinking, thinking) if part]
    return Opening("\n".join(parts), answer, replace(style, starts_open=starts_open))


def leaves_open(prompt: str, style: ThinkingStyle) -> bool:
    """Whether a prompt ends inside a thinking block, as a template's own text may."""
    if style.style == "field":
        return False
    segments = _segments(prompt, style)
    return bool(segments) and _is_open(segments[-1])


def _segments(text: str, style: ThinkingStyle) -> list[Segment]:
    own = style.style == "custom"
    # Where no tag opens thinking, nothing but the one that closes it tells that a text began with some.
    begins = own and style.open is None and style.close is not None and style.close in text
    style = replace(style, style="custom" if own else "inline", starts_open=begins)
    tags = style.tag_reader(max_tags=len(text) + 1)  # a prompt may hold a long conversation, with all its blocks
    assert tags is not None
    return [*tags.feed(text), *tags.end()]


def _is_open(last: Segment) -> bool:
    return last.close is not None and not (last.tag and last.text == last.close)
