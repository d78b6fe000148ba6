"""Where text stands in the events of the Responses API, and what is no text by its exact shape.

Sources: the types of openai-python 3.57, vLLM 0.33 (``vllm/entrypoints/openai/responses``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from guardtrace_proxy.wire.chat_schema import Name, Padding, Short, is_of_type
from guardtrace_proxy.wire.events import Event, Phase, SpanKind
from guardtrace_proxy.wire.media import refuse_media
from guardtrace_proxy.wire.strings import PLAIN_KEY, Path, is_encrypted, strings_below

Slot = tuple[str | int, ...]
"""Where a client adds a text up: output index, item id, index of its part, and what it is."""


class Place(NamedTuple):
    """A string of an event. ``where`` leads to it in the event's JSON."""

    where: Path
    slot: Slot
    text: str
    phase: Phase
    kind: SpanKind


class TextOf(NamedTuple):
    """What a delta, a done event or a part says: the key of its text, what that is, and whose phase."""

    key: str
    name: str
    phase: Phase
    kind: SpanKind = SpanKind.TEXT


OUTPUT_TEXT = "output_text"
PARTS = {
    "output_text": TextOf("text", OUTPUT_TEXT, Phase.ANSWERING),
    "refusal": TextOf("refusal", "refusal", Phase.ANSWERING),
    "reasoning_text": TextOf("text", "reasoning_text", Phase.THINKING),
    "summary_text": TextOf("text", "summary_text", Phase.THINKING),
}
"""By a part's type."""
ARGUMENTS = TextOf("arguments", "arguments", Phase.ANSWERING, SpanKind.ARGUMENTS)
INPUT = TextOf("input", "input", Phase.ANSWERING, SpanKind.ARGUMENTS)
CALL_NAME = TextOf("name", "name", Phase.ANSWERING, SpanKind.ARGUMENTS)
CALLS = {"function_call": ARGUMENTS, "custom_tool_call": INPUT}
"""By an item's type: calls that the client runs."""
_FAMILIES = {
    "response.output_text": PARTS["output_text"],
    "response.refusal": PARTS["refusal"],
    "response.reasoning_text": PARTS["reasoning_text"],
    "response.reasoning_summary_text": PARTS["summary_text"],
    "response.function_call_arguments": ARGUMENTS,
    "response.custom_tool_call_input": INPUT,
}
DELTAS = {f"{family}.delta": text._replace(key="delta") for family, text in _FAMILIES.items()}
DONES = {f"{family}.done": text for family, text in _FAMILIES.items()}
TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
LIFECYCLE = TERMINAL | {"response.created", "response.in_progress", "response.queued"}

MAX_IDENT = 128
Ident = Annotated[str, Meta(max_length=MAX_IDENT, pattern=r"^[!-~]*\Z")]
_IDENT = re.compile(rf"[!-~]{{0,{MAX_IDENT}}}")
_WORD = re.compile(r"[A-Za-z0-9_.:-]{0,64}")
LABELS = frozenset({"type", "id", "item_id", "call_id", "object", "status", "role", "phase"})
"""Keys whose short strings say what something is."""
ECHOED = frozenset(
    """
    instructions metadata tools tool_choice text prompt reasoning truncation user safety_identifier prompt_cache_key
    prompt_cache_options prompt_cache_retention service_tier image moderation_request
    """.split()
)
"""Fields of a response that repeat the request, which the auditor has read. What isn't in the request, and is more than
a word, is text."""
ONLY_ASKED = frozenset({"instructions", "metadata", "prompt", "tools"})
"""Those of which servers fill in nothing of their own but a tool's type."""
MAX_OWN_WORDS = 8
"""Words in another of them that the request doesn't have: its defaults. Of more a text could be made."""
COUNTS = frozenset({"usage", "tool_usage"})


class Likely(Struct, forbid_unknown_fields=True, gc=False):
    token: Name | None = None
    logprob: float | None = None
    bytes: list[int] | None = None


class Sampled(Likely, forbid_unknown_fields=True, gc=False):
    top_logprobs: list[Likely] | None = None


class IncompleteDetails(Struct, forbid_unknown_fields=True, gc=False):
    reason: Short | Annotated[str, Meta(max_length=32, pattern="^[a-z_]*$")] | None = None


class Delta(Struct, forbid_unknown_fields=True, gc=False):
    """A delta of the usual shape."""

    type: str
    delta: str
    item_id: Ident | None = None
    output_index: int = 0
    content_index: int | None = None
    summary_index: int | None = None
    sequence_number: int = -1
    logprobs: list[Sampled] | None = None
    obfuscation: Padding | None = None


decode_delta = msgspec.json.Decoder(Delta).decode


class ResponsesEvent(Event, gc=False):
    """An event of this API. ``delta`` is one of the usual shape; of others there is ``content``, with the text that
    stands at each place; ``twins`` said the same as some of these before. ``strips``: it holds encrypted reasoning,
    which doesn't pass."""

    type: str = ""
    delta: Delta | None = None
    content: dict[str, Any] = msgspec.field(default_factory=dict)
    slots: dict[Path, Slot] = msgspec.field(default_factory=dict)
    twins: dict[Slot, Slot] = msgspec.field(default_factory=dict)
    strips: bool = False


class Terms(NamedTuple):
    """What the request settles about its reply. ``keeps_encrypted``: encrypted reasoning passes. ``echoed``: the
    strings of the fields that the reply repeats."""

    keeps_encrypted: bool = False
    echoed: frozenset[str] = frozenset()


def places_of(event: Mapping[str, Any], terms: Terms) -> Iterator[Place]:
    """Every string of an event that could be text; raises TooDeep, and Media where it is none that can be judged."""
    kind = str(event.get("type"))
    text = DELTAS.get(kind) or DONES.get(kind)
    item, index = _item_of(event)
    for key, value in event.items():
        if text is not None and key == text.key and isinstance(value, str):
            yield Place((key,), (*item, index, text.name), value, text.phase, text.kind)
        elif key == "name" and text is not None and text.name == "arguments" and isinstance(value, str):
            yield Place((key,), (*item, 0, "name"), value, Phase.ANSWERING, SpanKind.ARGUMENTS)
        elif key == "item" and isinstance(value, dict):
            yield from _item(value, (key,), (item[0], ident_of(value)), terms)
        elif key == "part" and isinstance(value, dict):
            yield from _part(value, (key,), item, index)
        elif key == "response" and isinstance(value, dict):
            yield from _response(value, (key,), terms)
        elif not (_is_label(key, value) or is_logprobs(key, value) or _is_padding(key, value)):
            yield from _others(key, value, (), kind)


def places_of_response(response: Mapping[str, Any], terms: Terms) -> Iterator[Place]:
    """Every string of a whole reply that could be text; raises as ``places_of`` does."""
    yield from _response(response, (), terms)


def is_logprobs(key: str, value: Any) -> bool:
    """Whether these are logprobs of the usual shape."""
    return key == "logprobs" and is_of_type(value, list[Sampled] | None)


def tokens_of(logprobs: Any) -> str:
    """The text of logprobs of the usual shape."""
    return "".join(each.token or "" for each in msgspec.convert(logprobs, list[Sampled] | None) or ())


def _item_of(event: Mapping[str, Any]) -> tuple[Slot, int]:
    index = event.get("content_index", event.get("summary_index"))
    output = event.get("output_index")
    item = (output if isinstance(output, int) else 0, ident_of(event, "item_id"))
    return item, index if isinstance(index, int) else 0


def ident_of(fields: Mapping[str, Any], key: str = "id") -> str:
    """An item's id; "" where it has none."""
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _response(response: Mapping[str, Any], where: Path, terms: Terms) -> Iterator[Place]:
    for key, value in response.items():
        here = (*where, key)
        if key == "output" and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from _item(item, (*here, index), (index, ident_of(item)), terms)
                else:
                    yield from _below(item, (*here, index))
        elif key in ECHOED:
            found = [each for each in strings_below(value, here) if each[1] not in terms.echoed]
            are_words = len(found) <= MAX_OWN_WORDS and key not in ONLY_ASKED
            for inner, text in found:
                if not (are_words and _WORD.fullmatch(text)):
                    refuse_media(inner, text)
                    yield Place(inner, ("other",), text, Phase.ANSWERING, SpanKind.OTHER)
        elif not is_metadata(key, value):
            yield from _others(key, value, where)


def is_metadata(key: str, value: Any) -> bool:
    """Whether a field of a response or an item, other than those that repeat the request, holds no generated text."""
    if _is_label(key, value):
        return True
    if key in COUNTS:
        return value is None or not any(True for _ in strings_below(value, (key,)))
    if key == "incomplete_details":
        return is_of_type(value, IncompleteDetails | None)
    return key in ("model", "previous_response_id") and is_of_type(value, Name | None)


def _item(item: Mapping[str, Any], where: Path, at: Slot, terms: Terms) -> Iterator[Place]:
    kind = item.get("type")
    call = CALLS.get(str(kind))
    for key, value in item.items():
        here = (*where, key)
        if call is not None and key in (call.key, "name") and isinstance(value, str):
            text = call if key == call.key else CALL_NAME
            yield Place(here, (*at, 0, text.name), value, text.phase, text.kind)
        elif key in ("content", "summary") and kind in ("message", "reasoning") and isinstance(value, list):
            for index, part in enumerate(value):
                if isinstance(part, dict):
                    yield from _part(part, (*here, index), at, index)
                else:
                    yield from _below(part, (*here, index))
        elif key == "encrypted_content" and kind == "reasoning":
            if terms.keeps_encrypted and not (isinstance(value, str) and is_encrypted(value)):
                yield from _others(key, value, where)
        elif not (_is_label(key, value) or is_logprobs(key, value)):
            yield from _others(key, value, where, kind)


def _part(part: Mapping[str, Any], where: Path, item: Slot, index: int) -> Iterator[Place]:
    text = PARTS.get(str(part.get("type")))
    for key, value in part.items():
        if text is not None and key == text.key and isinstance(value, str):
            yield Place((*where, key), (*item, index, text.name), value, text.phase, text.kind)
        elif not (_is_label(key, value) or is_logprobs(key, value)):
            yield from _others(key, value, where, part.get("type"))


def _others(key: str, value: Any, where: Path, kind: Any = None) -> Iterator[Place]:
    """A field that nobody knows; ``kind`` is the type of what has it."""
    here = (*where, key)
    if not PLAIN_KEY.fullmatch(key):
        yield Place(here, ("other",), key, Phase.ANSWERING, SpanKind.OTHER)
    yield from _below(value, here, kind)


def _below(value: Any, where: Path, kind: Any = None) -> Iterator[Place]:
    refuse_media(where, value, kind)
    for inner, text in strings_below(value, where):
        yield Place(inner, ("other",), text, Phase.ANSWERING, SpanKind.OTHER)


def _is_label(key: str, value: Any) -> bool:
    return key in LABELS and isinstance(value, str) and _IDENT.fullmatch(value) is not None


def _is_padding(key: str, value: Any) -> bool:
    return key == "obfuscation" and is_of_type(value, Padding | None)
