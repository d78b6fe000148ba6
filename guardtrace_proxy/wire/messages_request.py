"""The request of a message (``POST /v1/messages``): what the auditor must know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from guardtrace_proxy.wire.chat_fields import rest_of, says_little
from guardtrace_proxy.wire.messages_blocks import is_signature
from guardtrace_proxy.wire.messages_fields import check_fields, hides_thinking, texts_beside
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
from guardtrace_proxy.wire.strings import is_encrypted
from guardtrace_proxy.wire.thinking_switches import turned_off_by

MAX_MESSAGES = 4096
ROLES = frozenset({"user", "assistant", "system"})
BLOCKS = ("text", "image", "thinking", "redacted_thinking", "tool_use", "tool_result")
RESULT_BLOCKS = ("text", "image")
"""Those that may stand in a tool's result."""
LABELS = frozenset({"type", "id", "tool_use_id", "cache_control", "is_error", "caller", "citations"})
"""Keys of blocks that hold no text, as long as they are plain."""
IMAGE_KEYS = frozenset({"type", "source", "cache_control"})


@dataclass(frozen=True, slots=True)
class MessagesRequest(Request):
    """``keeps_encrypted``: the operator lets encrypted thinking pass, which nobody audits. ``stops``: what the reply
    may say that it stopped at. ``omits_thinking``: the client asks for a reply that doesn't show its thinking."""

    keeps_encrypted: bool = False
    stops: frozenset[str] = frozenset()
    omits_thinking: bool = False

    @property
    def hides_reasoning(self) -> bool:
        """Whether the client asks not to see the thinking. It is audited all the same."""
        return self.omits_thinking


@dataclass(slots=True)
class _Message:
    role: str
    keeps_encrypted: bool
    texts: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)


def read_request(body: bytes, allowed: Allowed = Allowed()) -> MessagesRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text."""
    request = read_object(body)
    check_fields(request, allowed)
    found = request.get("messages")
    if not isinstance(found, list) or not found:
        refuse("messages", "expected a list with at least one message")
    if len(found) > MAX_MESSAGES:
        refuse("messages", f"expected at most {MAX_MESSAGES:,} messages")
    messages = [_message(each, f"messages[{at}]", allowed.encrypted_reasoning) for at, each in enumerate(found)]
    images = tuple(image for message in messages for image in message.images)
    prefill = None
    if messages[-1].role == "assistant":
        last = messages.pop()
        prefill = Prefill(f"messages[{len(messages)}]", "\n".join(last.texts), "\n".join(last.thinking))
    return MessagesRequest(
        model=read_model(request),
        stream=read_boolean(request, "stream"),
        n=1,
        turns=(
            *texts_beside(request),
            *_system(request.get("system")),
            *((message.role, "\n".join((*message.thinking, *message.texts))) for message in messages),
        ),
        images=images,
        prefill=prefill,
        keeps_encrypted=allowed.encrypted_reasoning,
        stops=_stops(request.get("stop_sequences")),
        omits_thinking=hides_thinking(request),
        turned_off_by=turned_off_by(request),
    )


def body_for_upstream(body: bytes, request: MessagesRequest, urls: Sequence[str] | None = None) -> bytes:
    """The body as it came; with thinking that is shown where the client wants it omitted, since nobody could audit it
    otherwise. ``urls`` replace those of its images, all of them. Everything else keeps its bytes."""
    if not request.omits_thinking and urls is None:
        return body
    fields = msgspec.json.decode(body, type=RawFields)
    if request.omits_thinking:
        fields["thinking"] = as_raw({**msgspec.json.decode(fields["thinking"]), "display": "summarized"})
    if urls is not None:
        fields["messages"] = _with_images(fields["messages"], urls)
    return msgspec.json.encode(fields)


def _stops(found: Any) -> frozenset[str]:
    return frozenset(each for each in found if isinstance(each, str)) if isinstance(found, list) else frozenset()


# What the model reads


def _system(system: Any) -> list[tuple[str, str]]:
    if system is None:
        return []
    read = _Message("system", False)
    _content(system, "system", read, ("text",))
    return [("system", "\n".join(read.texts))]


def _message(message: Any, where: str, keeps_encrypted: bool) -> _Message:
    if not isinstance(message, dict):
        refuse(where, "expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role", f"expected one of {', '.join(sorted(ROLES))}")
    read = _Message(role, keeps_encrypted)
    _content(message.get("content"), f"{where}.content", read, BLOCKS)
    read.texts.extend(rest_of(message, LABELS, ("role", "content")))
    return read


def _content(content: Any, where: str, read: _Message, allowed: Sequence[str]) -> None:
    if isinstance(content, str):
        read.texts.append(content)
        return
    if not isinstance(content, list):
        refuse(where, "expected a string or a list of blocks")
    for position, block in enumerate(content):
        _block(block, f"{where}[{position}]", read, allowed)


def _block(block: Any, where: str, read: _Message, allowed: Sequence[str]) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in allowed:
        named = f"{kind[:64]} isn't" if isinstance(kind, str) and kind.isidentifier() else "it isn't"
        refuse(f"{where}.type", f"{named} supported here, since nothing but {', '.join(allowed)} is audited")
    if kind == "image":
        read.images.append((_image_url(block, where), f"{where}.source"))
    elif kind == "tool_result":
        if block.get("content") is not None:
            _content(block["content"], f"{where}.content", read, RESULT_BLOCKS)
        read.texts.extend(rest_of(block, LABELS, ("content",)))
    elif kind == "tool_use":
        read.texts.extend(rest_of(block, LABELS))
    elif kind == "redacted_thinking":
        _check_encrypted(block, where, read)
    else:
        _said(block, str(kind), where, read)


def _said(block: Mapping[str, Any], kind: str, where: str, read: _Message) -> None:
    """A block of text, or of thinking. Its signature is the provider's own."""
    text, into = block.get(kind), read.thinking if kind == "thinking" else read.texts
    if not isinstance(text, str):
        refuse(f"{where}.{kind}", "expected a string")
    into.append(text)
    into.extend(rest_of(block, LABELS, (kind, "signature") if is_signature(block.get("signature")) else (kind,)))


def _check_encrypted(block: Mapping[str, Any], where: str, read: _Message) -> None:
    data = block.get("data")
    if not (read.keeps_encrypted and isinstance(data, str) and is_encrypted(data)):
        refuse(f"{where}.data", "redacted_thinking isn't supported: the model would read it, and the auditor can't")
    read.thinking.extend(rest_of(block, LABELS, ("data",)))


def _image_url(block: Mapping[str, Any], where: str) -> str:
    for key, value in block.items():
        if value is not None and not (key in IMAGE_KEYS and (key == "source" or says_little(value))):
            refuse(f"{where}.{key[:64]}", "not supported, since the auditor must see the image that the model sees")
    source = block.get("source")
    if not isinstance(source, dict):
        refuse(f"{where}.source", "expected an object")
    kind = source.get("type")
    keys = {"base64": ("type", "media_type", "data"), "url": ("type", "url")}.get(str(kind))
    if keys is None:
        refuse(f"{where}.source.type", "expected base64 or url: images that the provider keeps aren't audited")
    for key in source.keys() | set(keys):
        if key not in keys or not isinstance(source.get(key), str):
            refuse(f"{where}.source.{key[:64]}", f"expected {' and '.join(keys)}, as strings, and nothing else")
    if kind == "url":
        return str(source["url"])
    return f"data:{source['media_type']};base64,{source['data']}"


# Images


def _with_images(found: msgspec.Raw, urls: Sequence[str]) -> msgspec.Raw:
    left = iter(urls)
    messages = msgspec.json.decode(found, type=list[RawFields])
    for message in messages:
        message["content"] = _with_images_in(message["content"], left)
    if next(left, None) is not None:
        raise ValueError("more URLs than image blocks: one would stay that wasn't audited")
    return as_raw(messages)


def _with_images_in(content: msgspec.Raw, left: Any) -> msgspec.Raw:
    if not begins(content, b"["):
        return content
    blocks = msgspec.json.decode(content, type=list[RawFields])
    for block in blocks:
        kind = msgspec.json.decode(block["type"])
        if kind == "image":
            media_type, _, data = next(left).removeprefix("data:").partition(";base64,")
            block["source"] = as_raw({"type": "base64", "media_type": media_type, "data": data})
        elif kind == "tool_result" and "content" in block:
            block["content"] = _with_images_in(block["content"], left)
    return as_raw(blocks)
