"""Finds out how an upstream writes its thinking, by asking it something small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from guardtrace_proxy.server.errors import ApiError, upstream_unreadable
from guardtrace_proxy.server.settings import UpstreamSettings
from guardtrace_proxy.server.upstream import Upstream
from guardtrace_proxy.server.upstream_reply import UpstreamBroke
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.dialects import CHAT
from guardtrace_proxy.wire.events import Event, EventKind, MoreText, Phase
from guardtrace_proxy.wire.tags import KNOWN_PAIRS, ThinkingStyle

QUESTION = "How many r are there in strawberry? Think first, then answer with one number."
MAX_TOKENS = 2048
MAX_EVENT_BYTES = 1_048_576
REQUEST_ID = {"x-request-id": "guardtrace-check"}


@dataclass
class Finding:
    """What one request showed."""

    model: str
    events: int = 0
    where: str = "none seen"
    starts_open: bool | None = None
    """None where it is unknown."""
    finish_reason: str | None = None
    done: bool = False
    usage: str = "none"
    config: str | None = None
    """What to write as ``thinking``; None where it couldn't be found out."""
    unknown: str | None = None
    """Why it couldn't be, and what to do."""
    notes: list[str] = field(default_factory=list)


async def inspect_upstream(
    name: str, settings: UpstreamSettings, environ: Mapping[str, str], model: str | None, max_tokens: int = MAX_TOKENS
) -> Finding:
    """Ask the upstream once; raises ApiError where it can't be asked."""
    api_key = environ.get(settings.api_key_env) if settings.api_key_env else None
    upstream = Upstream(
        name,
        settings.base_url,
        api_key,
        ThinkingStyle("field"),
        ca_file=settings.ca_file,
        read_timeout_ms=settings.read_timeout_ms,
        api_key_header=settings.api_key_header,
    )
    await upstream.start()
    try:
        model = model or await _first_model(upstream)
        return _read(await _ask(upstream, model, max_tokens), model, max_tokens)
    finally:
        await upstream.aclose()


async def _first_model(upstream: Upstream) -> str:
    body, _ = await upstream.models(REQUEST_ID)
    listing = msgspec.json.decode(body, type=dict[str, object])
    data = listing.get("data")
    if isinstance(data, list) and data and isinstance(data[0], dict) and isinstance(data[0].get("id"), str):
        return str(data[0]["id"])
    raise upstream_unreadable("a list of models without a model; name one with --model")


async def _ask(upstream: Upstream, model: str, max_tokens: int) -> list[Event | MoreText]:
    request = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "max_tokens": max_tokens,
        "stream_options": {"include_usage": True},
    }
    stream = ChatStream(ThinkingStyle("field"), include_usage=True, max_event_bytes=MAX_EVENT_BYTES)
    events: list[Event | MoreText] = []
    async with upstream.ask(CHAT.path, msgspec.json.encode(request), REQUEST_ID) as reply:
        if "text/event-stream" not in reply.content_type:
            raise ApiError(502, "The upstream didn't stream although it was asked to (no text/event-stream).")
        try:
            while data := await reply.read():
                events += stream.feed(data)
            events += stream.end()
        except UpstreamBroke as error:
            raise upstream_unreadable("a reply that broke off") from error
    return events


def _read(events: list[Event | MoreText], model: str, max_tokens: int) -> Finding:
    finding = Finding(model, len(events))
    fields: Counter[str] = Counter()
    content = ""
    for event in events:
        finding.done = finding.done or event.kind is EventKind.DONE
        if event.kind is EventKind.ERROR:  # what came until then says nothing of how it writes
            told = msgspec.json.decode(event.raw.removeprefix(b"data: "), type=dict[str, dict[str, object]])
            raise ApiError(502, f"The upstream model server sent an error in its stream: {told['error']['message']}")
        if event.kind is EventKind.MALFORMED:
            finding.notes.append(f"an event of kind {event.kind.value} arrived")
        if event.usage is not None:
            finding.usage = ", ".join(f"{key} {value}" for key, value in event.usage.items() if isinstance(value, int))
        for part in event.parts:
            finding.finish_reason = part.finish_reason or finding.finish_reason
            for span, segment in zip(part.spans, part.segments, strict=False):
                if segment.phase is Phase.THINKING:
                    fields[str(span.path[1])] += 1
                elif span.path[-1] == "content":
                    content += span.text
    if _place(finding, fields, content):
        return finding
    is_readable = all(event.kind is not EventKind.MALFORMED for event in events)
    finding.unknown = _why_unknown(finding.finish_reason, content, is_readable, max_tokens)
    if finding.unknown is None:
        finding.starts_open, finding.config = False, "{style: auto}"
        finding.notes.append(
            "no thinking was seen: the model may not think, or only where a request field says so, or between tags of "
            "its own (`style: custom`)"
        )
    return finding


def _place(finding: Finding, fields: Counter[str], content: str) -> bool:
    """Write down where the thinking stands; whether any was seen."""
    if fields:
        finding.where = f"field {', '.join(fields)}"
        finding.starts_open, finding.config = False, "{style: field}"
        return True
    for pair in KNOWN_PAIRS:
        if pair.close not in content and (pair.open or "") not in content:
            continue
        finding.starts_open = pair.open is not None and pair.open not in content.split(pair.close)[0]
        finding.where = f"inline, {pair.open} … {pair.close}"
        finding.config = "{style: inline, starts_open: true}" if finding.starts_open else "{style: inline}"
        return True
    return False


def _why_unknown(finish_reason: str | None, content: str, is_readable: bool, max_tokens: int) -> str | None:
    """Why a reply without a tag or field doesn't show that the model didn't think; None where it does: text that ended
    by itself would have closed a block that the template opened."""
    if finish_reason == "length":
        return (
            "the reply stopped at its length limit before a tag or field of thinking came (at most "
            f"{max_tokens} tokens were asked for). Ask again with more: --max-tokens {4 * max_tokens}"
        )
    if not is_readable:
        return "part of the reply couldn't be read as a chat completion. See what the upstream sends"
    if finish_reason is None:
        return "the reply ended without a finish_reason. See the upstream's log, and ask again"
    if finish_reason != "stop":
        return f"the reply ended with finish_reason {finish_reason}, expected stop. Ask again, or another --model"
    if not content.strip():
        return "the reply ended and nothing was said in it. See the upstream's log, or ask another --model"
    return None
