"""Draws a whole case: policy, reply, and how time passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.completion import CompletionStream
from guardtrace_proxy.wire.reply import Reply
from tests.properties.alphabet import Alphabet
from tests.properties.dialects import DIALECTS, Writing, beats_of_choice
from tests.properties.draws import Draw, Source
from tests.properties.events import TOKENS, Hidden, Manner, chunk_events, completion
from tests.properties.sent import ANSWER, OTHER_TAG, TAG, THINKING, Case, Part, Sent, Text

MESSAGE = "This response was stopped by policy."
UNCHECKED = "This response could not be checked."
PLACEHOLDER = "[withheld by policy]"
ACTIONS = ("pass", "flag", "redact", "cut")


def draw_case(source: Source) -> Case:
    draw = Draw(source)
    policy = draw_policy(draw.section("policy"))
    dialect = draw.pick(*DIALECTS)
    alphabet = Alphabet()
    wicked = draw.pick(4, 0, 2, 10)
    choices = draw.pick(1, 1, 1, 2, 2, 3)
    beats = {
        index: beats_of_choice(Writing(draw.section(f"choice {index}"), dialect, alphabet, wicked), index)
        for index in range(choices)
    }
    manner = draw_manner(draw.section("manner"))
    texts = [text for parts in beats.values() for part in parts for text in part.texts]
    reply: Callable[[], Reply] | None = None
    include_usage, limit = draw.chance(50), draw.pick(1 << 20, 1 << 20, 1 << 20, 8000)
    if all(text.path == ("content",) for text in texts) and draw.section("dialect").chance(30):
        manner = replace(manner, text_only=True, role="none")
        policy = of_completions(policy)
        style = dialect.style()
        reply = lambda: CompletionStream(  # noqa: E731
            [style], choices, include_usage=include_usage, max_event_bytes=limit, model="asked-for"
        )
    whole = draw.chance(10)
    time = draw.section("time")
    if whole:
        unsaid = draw.section("unsaid")
        hides = manner.logprobs and unsaid.chance(60)
        hidden = {index: draw_hidden(Writing(unsaid, dialect, alphabet, wicked)) for index in beats if hides}
        events = [completion(manner, beats, hidden)]
        ending = "closed"
    else:
        order = interleaved(draw.section("order"), beats)
        events, ending = with_ending(draw.section("ending"), manner, chunk_events(manner, order))
        settle_tokens(events)
        settle_tags(events, dialect.starts_open)
    return Case(
        policy=policy,
        style=dialect.style(),
        tags=dialect.tags,
        starts_open=dialect.starts_open,
        choices=choices,
        include_usage=include_usage,
        capacity=draw.pick(4096, 200, 64),
        limit=limit,
        certain=draw.chance(20),
        events=events,
        ending=ending,
        whole=events[0].raw if whole else None,
        pieces=draw_pieces(time, events),
        audits=[
            (time.pick(0.0, 0.01, 0.2, 1.0, 3.0), time.pick(*["judge"] * 9, "fail", "SAFE", "MAYBE", "HARM"))
            for _ in range(time.number(1, 6))
        ],
        late=time.pick(0.0, 0.0, 0.03),
        ends_after=time.pick(0.0, 0.05, 0.7, 4.0) if ending == "stopped" else 0.0,
        reply=reply,
    )


def of_completions(policy: Policy) -> Policy:
    """What a policy means there: no text has another field, and none says that it refuses."""
    settings = policy.model_dump(mode="json", exclude_none=True, exclude={"extends"})
    if settings["reasoning_field"] != "strip":
        settings["reasoning_field"] = "as_is"
    if settings["cut_shape"] == "refusal":
        settings["cut_shape"] = "content_filter"
    return Policy.model_validate(settings)


def draw_policy(draw: Draw) -> Policy:
    def phase(*modes: str) -> dict[str, Any]:
        settings: dict[str, Any] = {"mode": draw.pick(*modes), "max_lag": draw.pick(8, 1, 3, 20)}
        if draw.chance(20):
            settings["actions"] = {"potentially_harmful": draw.pick(*ACTIONS), "harmful": draw.pick(*ACTIONS)}
        return settings

    first = draw.pick(4, 1, 2, 8, 16)
    return Policy.model_validate(
        {
            "version": 1,
            "thinking": phase("hold", "hold", "hold", "lag", "withhold", "monitor"),
            "answer": phase("hold", "hold", "hold", "lag", "monitor"),
            "boundary": {
                "unit": draw.pick("tokens", "tokens", "sentences"),
                "first": first,
                "growth": draw.pick(2.0, 1.0, 1.5),
                "max": first * draw.pick(1, 4),
                "max_hold_ms": draw.pick(500, 1, 100_000),
            },
            "thresholds": {
                "potentially_harmful": draw.pick(0.5, 0.3, 0.9),
                "harmful": draw.pick(0.5, 0.12, 0.95),
            },
            "actions": {
                "potentially_harmful": draw.pick("redact", *ACTIONS),
                "harmful": draw.pick("cut", "cut", *ACTIONS),
            },
            "messages": {"cut": MESSAGE, "auditor_failure": UNCHECKED, "redaction": PLACEHOLDER},
            "cut_shape": draw.pick("content_filter", "content_filter", "refusal", "error"),
            "reasoning_field": draw.pick("as_is", "as_is", "as_is", "reasoning", "reasoning_content", "strip"),
            "on_auditor_failure": draw.pick("cut", "hold", "release"),
            "hold_limit_ms": draw.pick(2000, 0, 400),
            "decision": {"confirmations": draw.pick(1, 1, 1, 2, 3)},
            "redaction": {"localize": draw.chance(30)},
            "expose": {"object": not draw.chance(20)},
        }
    )


def draw_manner(draw: Draw) -> Manner:
    return Manner(
        ascii=draw.chance(40),
        compact=draw.chance(50),
        crlf=draw.chance(10),
        logprobs=draw.chance(25),
        early=draw.chance(30),
        token_ids=draw.chance(25),
        usage=draw.pick("end", "none", "running", "finish"),
        role=draw.pick("first", "none", "with", "every"),
        done=draw.chance(85),
        comments=draw.chance(10),
        nameless=draw.chance(8),
        alike=draw.chance(60),
    )


def draw_hidden(writing: Writing) -> Hidden:
    return Hidden(writing.text(), writing.draw.number(0, 3), writing.draw.chance(30))


def interleaved(draw: Draw, beats: dict[int, list[Part]]) -> list[list[Part]]:
    """The parts of all choices in one order, now and then those of two choices in one event."""
    waiting = {index: list(parts) for index, parts in beats.items() if parts}
    order: list[list[Part]] = []
    while waiting:
        index = draw.pick(*waiting)
        together = [waiting[index].pop(0)]
        other = draw.pick(*waiting)
        if other != index and draw.chance(25):
            together.append(waiting[other].pop(0))
        waiting = {index: parts for index, parts in waiting.items() if parts}
        order.append(together)
    return order


def with_ending(draw: Draw, manner: Manner, events: list[Sent]) -> tuple[list[Sent], str]:
    """How the stream ends, well or not."""
    kind = draw.pick(*["well"] * 12, "truncated", "broken", "stopped", "error", "malformed", "done early")
    if kind == "well":
        return events, "closed"
    at = draw.number(0, len(events) - manner.done)
    if kind == "malformed":
        junk = draw.pick(b"data: {not json\n\n", b"data: [1]\n\n", b'data: {"choices": 5}\n\n', b"data: oops\n\n")
        # What comes behind it counts for nothing.
        ignored = [Sent("comment", event.raw) for event in events[at:]]
        return [*events[:at], Sent("malformed", junk), *ignored], "closed"
    if kind == "error":
        return [*events[:at], manner.error(), *([manner.end()] if draw.chance(60) else [])], "closed"
    if kind == "done early":
        return [*events[:at], manner.end()], "closed"
    kept = events[:at]
    if at < len(events) and draw.chance(40):
        # Behind "data: {" and before the line's end: neither whole nor another event.
        raw = events[at].raw
        if events[at].kind == "chunk":
            kept = [*kept, Sent("malformed", raw[: draw.number(8, len(raw) - 6)])]
    return kept, "closed" if kind == "truncated" else kind


def settle_tokens(events: list[Sent]) -> None:
    """Tokens whose text a broken stream leaves out are text of the answer themselves."""
    said = {id(part) for event in events for part in event.parts}
    for event in events:
        for part in event.parts:
            if part.ahead is not None and id(part.ahead) not in said:
                text = "".join(each.text for each in part.ahead.texts)
                part.ahead = replace(part.ahead, texts=[Text(TOKENS, text, ANSWER * len(text))])
                part.texts = part.ahead.texts


def settle_tags(events: list[Sent], starts_open: bool) -> None:
    """A tag that a broken stream leaves half is text."""
    last: dict[int, list[Text]] = {}
    for event in events:
        for part in event.parts:
            last.setdefault(part.index, []).extend(text for text in part.texts if text.inline)
    for texts in last.values():
        phases = "".join(text.phases for text in texts)
        said = "".join(text.text for text in texts)
        rest = len(phases) - len(phases.rstrip(phases[-1:] if phases[-1:] in (TAG, OTHER_TAG) else ""))
        if not rest or said[-1] in ">▷]":
            continue
        before = phases[: len(phases) - rest][-1:]
        inside = before == THINKING or (not before and starts_open)
        phase = THINKING if inside and phases[-1] == TAG else ANSWER
        for text in reversed(texts):
            kept = max(0, len(text.phases) - rest)
            rest -= len(text.phases) - kept
            text.phases = text.phases[:kept] + phase * (len(text.phases) - kept)


def draw_pieces(draw: Draw, events: list[Sent]) -> list[tuple[float, int]]:
    """By event, by several events, or cut anywhere."""
    total = sum(len(event.raw) for event in events)
    manner = draw.pick("events", "many", "anywhere")
    sizes: list[int] = []
    if manner == "anywhere":
        left = total
        while left:
            most = draw.pick(2000, 400, 60)
            sizes.append(min(left, most - draw.number(0, most - 1)))
            left -= sizes[-1]
    else:
        many = 1 if manner == "events" else draw.number(2, 6)
        raws = [len(event.raw) for event in events]
        sizes = [sum(raws[at : at + many]) for at in range(0, len(raws), many)]
    gaps = draw.pick((0.0,), (0.0, 0.05), (0.0, 0.05, 0.7), (0.3,))
    return [(draw.pick(*gaps), size) for size in sizes]
