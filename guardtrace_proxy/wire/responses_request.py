"""The request of a response (``POST /v1/responses``): what the auditor must know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_fields import rest_of, says_little
from guardtrace_proxy.wire.raw_json import RawFields, as_raw, begins
from guardtrace_proxy.wire.request import (
    Allowed,
    Prefill,
    Request,
    read_boolean,
    read_model,
    read_object,
    refuse,
)
from guardtrace_proxy.wire.responses_fields import ENCRYPTED, check_fields, texts_beside, wants_encrypted
from guardtrace_proxy.wire.responses_places import ECHOED
from guardtrace_proxy.wire.strings import is_encrypted
from guardtrace_proxy.wire.thinking_switches import turned_off_by

MAX_ITEMS = 4096
ROLES = frozenset({"system", "developer", "user", "assistant"})
TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}
"""By a part's type: where its text stands."""
LABELS = frozenset({"id", "call_id", "type", "status", "phase", "prompt_cache_breakpoint", "annotations", "logprobs"})
"""Keys of items and parts that hold no text, as long as they are plain."""
IMAGE_KEYS = frozenset({"type", "image_url", "detail", "prompt_cache_breakpoint"})
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
OUTPUTS = ("function_call_output", "custom_tool_call_output")
IMAGES_AT = {"message": "content", **dict.fromkeys(OUTPUTS, "output")}
"""By an item's type: where its images stand. Elsewhere none do."""
ITEMS = ("message", "reasoning", *CALLS, *OUTPUTS)
OPEN = ("in_progress", "incomplete")


@dataclass(frozen=True, slots=True)
class ResponsesRequest(Request):
    """``keeps_encrypted``: the operator lets encrypted reasoning pass, which nobody audits. ``echoed``: the strings of
    the fields that the reply repeats. ``forced``: the body is changed on its way, see :func:`body_for_upstream`."""

    keeps_encrypted: bool = False
    echoed: frozenset[str] = frozenset()
    forced: bool = False


@dataclass(slots=True)
class _Item:
    role: str
    texts: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    begins_reply: bool = False
    """Whether it is the beginning of the reply, where nothing comes after it."""
    is_open: bool = False
    """Whether the model goes on with it, rather than begin a new one."""


def read_request(body: bytes, allowed: Allowed = Allowed()) -> ResponsesRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text."""
    request = read_object(body)
    check_fields(request, allowed)
    images: list[tuple[str, str]] = []
    items = _items(request.get("input"), images, allowed.encrypted_reasoning)
    prefill = None
    if items and items[-1].begins_reply:
        last = items.pop()
        prefill = Prefill(f"input[{len(items)}]", "\n".join(last.texts), "\n".join(last.thinking), last.is_open)
    return ResponsesRequest(
        model=read_model(request),
        stream=read_boolean(request, "stream"),
        n=1,
        turns=(*texts_beside(request), *((item.role, "\n".join((*item.thinking, *item.texts))) for item in items)),
        images=tuple(images),
        prefill=prefill,
        keeps_encrypted=allowed.encrypted_reasoning,
        echoed=frozenset(text for key in ECHOED & request.keys() for text in _strings(request[key])),
        forced=request.get("store") is None or (wants_encrypted(request) and not allowed.encrypted_reasoning),
        turned_off_by=turned_off_by(request),
    )


def body_for_upstream(body: bytes, request: ResponsesRequest, urls: Sequence[str] | None = None) -> bytes:
    """The body with ``store: false`` where it doesn't say so, and without a wish for encrypted reasoning that doesn't
    pass; ``urls`` replace those of its images, all of them. Everything else keeps its bytes."""
    if not request.forced and urls is None:
        return body
    fields = msgspec.json.decode(body, type=RawFields)
    fields["store"] = as_raw(False)
    if "include" in fields and not request.keeps_encrypted:
        include = msgspec.json.decode(fields["include"])
        fields["include"] = as_raw([each for each in include or () if each != ENCRYPTED])
    if urls is not None:
        fields["input"] = _with_images(fields["input"], urls)
    return msgspec.json.encode(fields)


# The input


def _items(found: Any, images: list[tuple[str, str]], keeps_encrypted: bool) -> list[_Item]:
    if isinstance(found, str):
        return [_Item("user", [found])]
    if not isinstance(found, list) or not found:
        refuse("input", "expected a string, or a list with at least one item")
    if len(found) > MAX_ITEMS:
        refuse("input", f"expected at most {MAX_ITEMS:,} items")
    return [_item(item, f"input[{position}]", images, keeps_encrypted) for position, item in enumerate(found)]


def _item(item: Any, where: str, images: list[tuple[str, str]], keeps_encrypted: bool) -> _Item:
    if not isinstance(item, dict):
        refuse(where, "expected an object")
    kind = item.get("type", "message")
    if kind == "message":
        return _message(item, where, images)
    if kind == "reasoning":
        return _reasoning(item, where, keeps_encrypted)
    if kind in CALLS:
        read = _Item("assistant")
        read.texts.extend(rest_of(item, LABELS))
        return read
    if kind in OUTPUTS:
        read = _Item("tool")
        _content(item.get("output"), f"{where}.output", read.texts, images)
        read.texts.extend(rest_of(item, LABELS, ("output",)))
        return read
    return refuse(f"{where}.type", f"only {', '.join(ITEMS)} are supported: nothing else is audited")


def _message(item: Mapping[str, Any], where: str, images: list[tuple[str, str]]) -> _Item:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role", f"expected one of {', '.join(sorted(ROLES))}")
    read = _Item(role, begins_reply=role == "assistant", is_open=item.get("status") in OPEN)
    _content(item.get("content"), f"{where}.content", read.texts, images)
    read.texts.extend(rest_of(item, LABELS, ("role", "content")))
    return read


def _reasoning(item: Mapping[str, Any], where: str, keeps_encrypted: bool) -> _Item:
    read = _Item("assistant", begins_reply=True, is_open=item.get("status") in OPEN)
    secret = item.get("encrypted_content")
    if secret and not (keeps_encrypted and isinstance(secret, str) and is_encrypted(secret)):
        refuse(f"{where}.encrypted_content", "the model would read it, and the auditor can't")
    for key in ("summary", "content"):
        if item.get(key) is not None:
            _content(item[key], f"{where}.{key}", read.thinking, None)
    read.thinking.extend(rest_of(item, LABELS, ("summary", "content", "encrypted_content")))
    return read


def _content(content: Any, where: str, texts: list[str], images: list[tuple[str, str]] | None) -> None:
    """Text, or parts. ``images`` is None where none may stand."""
    if isinstance(content, str):
        texts.append(content)
        return
    if not isinstance(content, list):
        refuse(where, "expected a string or a list of parts")
    for position, part in enumerate(content):
        _part(part, f"{where}[{position}]", texts, images)


def _part(part: Any, where: str, texts: list[str], images: list[tuple[str, str]] | None) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "input_image" and images is not None:
        images.append((_image_url(part, where), f"{where}.image_url"))
        return
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        allowed = "text and refusal" if images is None else "text, refusal and input_image"
        refuse(f"{where}.type", f"only {allowed} parts are supported: nothing else is audited")
    if not isinstance(part.get(key), str):
        refuse(f"{where}.{key}", "expected a string")
    texts.append(part[key])
    texts.extend(rest_of(part, LABELS, (key,)))


def _image_url(part: Mapping[str, Any], where: str) -> str:
    for key, value in part.items():
        if value is not None and not (key in IMAGE_KEYS and (key == "image_url" or says_little(value))):
            refuse(f"{where}.{key[:64]}", "not supported, since the auditor must see the image that the model sees")
    url = part.get("image_url")
    if not isinstance(url, str):
        refuse(f"{where}.image_url", "expected the image's URL as a string")
    return url


def _strings(value: Any) -> Iterator[str]:
    """All strings below a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _strings(inner)


# Images


def _with_images(found: msgspec.Raw, urls: Sequence[str]) -> msgspec.Raw:
    left = iter(urls)
    items = msgspec.json.decode(found, type=list[RawFields])
    for item in items:
        key = IMAGES_AT.get(msgspec.json.decode(item["type"]) if "type" in item else "message")
        if key is None or not begins(item[key], b"["):
            continue
        parts = msgspec.json.decode(item[key], type=list[RawFields])
        for part in parts:
            if msgspec.json.decode(part["type"]) == "input_image":
                part["image_url"] = as_raw(next(left))
        item[key] = as_raw(parts)
    if next(left, None) is not None:
        raise ValueError("more URLs than image parts: one would stay that wasn't audited")
    return as_raw(items)
