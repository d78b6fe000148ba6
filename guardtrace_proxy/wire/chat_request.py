"""The request of a chat completion: what the auditor must know of it. What can't be followed is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardtrace_proxy.wire import chat_fields
from guardtrace_proxy.wire.chat_details import read_details, without_encrypted
from guardtrace_proxy.wire.chat_fields import rest_of, says_little
from guardtrace_proxy.wire.chat_images import replace_images
from guardtrace_proxy.wire.chat_schema import THINKING_FIELDS
from guardtrace_proxy.wire.request import (
    Allowed,
    Prefill,
    Request,
    read_boolean,
    read_count,
    read_include_usage,
    read_model,
    read_object,
    refuse,
)
from guardtrace_proxy.wire.thinking_switches import turned_off_by

MAX_MESSAGES = 4096
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

LABELS = frozenset({"id", "tool_call_id", "type", "cache_control", "prompt_cache_breakpoint"})
"""Keys of messages and parts that hold no text, as long as they are plain."""
IMAGE_KEYS = LABELS | {"image_url"}
MEDIA = frozenset({"audio", "file", "files", "image", "images", "image_url", "video", "videos"})
CONTINUES = ("prefix", "partial")
"""How DeepSeek, Mistral and Moonshot mark a message of the assistant's that is to be continued."""


@dataclass(frozen=True, slots=True)
class ChatRequest(Request):
    """``forced`` names the fields whose values would keep thinking from the audit, ``drops_encrypted``: there is
    reasoning that nobody can audit, and that may not pass. See :func:`body_for_upstream`."""

    include_usage: bool = False
    forced: tuple[str, ...] = ()
    drops_encrypted: bool = False

    @property
    def hides_reasoning(self) -> bool:
        """Whether the client asks not to see the thinking. It is audited all the same."""
        return any(chat_fields.FORCED[path].hides for path in self.forced)


@dataclass(slots=True)
class _Message:
    role: str
    keeps_encrypted: bool
    texts: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    drops_encrypted: bool = False

    def text(self) -> str:
        return "\n".join((*self.texts, *self.thinking, *self.others))


def read_request(body: bytes, allowed: Allowed = Allowed()) -> ChatRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text."""
    request = read_object(body)
    chat_fields.check_fields(request, allowed.fields)
    model = read_model(request)
    found = request.get("messages")
    if not isinstance(found, list) or not found:
        refuse("messages", "expected a list with at least one message")
    if len(found) > MAX_MESSAGES:
        refuse("messages", f"expected at most {MAX_MESSAGES:,} messages")
    images: list[tuple[str, str]] = []
    messages = [_message(each, f"messages[{at}]", images, allowed.encrypted_reasoning) for at, each in enumerate(found)]
    drops_encrypted = any(message.drops_encrypted for message in messages)
    prefill = None
    if messages[-1].role == "assistant":
        prefill = _prefill(request, found[-1], messages.pop(), f"messages[{len(messages)}]")
    stream = read_boolean(request, "stream")
    include_usage = read_include_usage(request, stream)
    return ChatRequest(
        model,
        stream,
        read_count(request),
        (*chat_fields.texts_beside(request), *((message.role, message.text()) for message in messages)),
        tuple(images),
        prefill,
        include_usage,
        tuple(chat_fields.forced_fields(request)),
        drops_encrypted,
        turned_off_by=turned_off_by(request),
    )


def body_for_upstream(body: bytes, request: ChatRequest, urls: Sequence[str] | None = None) -> bytes:
    """The body as the upstream gets it: as it came, unless thinking was to be kept from the audit, or has no
    place in it. ``urls`` replace those of its images, all of them."""
    body = chat_fields.force(body, request.forced)
    if request.drops_encrypted:
        body = without_encrypted(body)
    return body if urls is None else replace_images(body, urls)


def _prefill(request: Mapping[str, Any], found: Mapping[str, Any], message: _Message, where: str) -> Prefill:
    continues = request.get("continue_final_message") is True or any(found.get(key) is True for key in CONTINUES)
    return Prefill(where, "\n".join((*message.texts, *message.others)), "\n".join(message.thinking), continues)


def _message(message: Any, where: str, images: list[tuple[str, str]], keeps_encrypted: bool) -> _Message:
    """All that a message says; its images are added to ``images``."""
    if not isinstance(message, dict):
        refuse(where, "expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role", f"expected one of {', '.join(sorted(ROLES))}")
    read = _Message(role, keeps_encrypted)
    content = message.get("content")
    if isinstance(content, str):
        read.texts.append(content)
    elif isinstance(content, list):
        for position, part in enumerate(content):
            _part(part, f"{where}.content[{position}]", read.texts, images)
    elif content is not None or role not in ("assistant", "function"):
        refuse(f"{where}.content", "expected a string or a list of parts")
    for key, value in message.items():
        if key not in ("role", "content"):
            _beside_content(read, key, value, where)
    return read


def _beside_content(read: _Message, key: str, value: Any, where: str) -> None:
    if key in MEDIA and value:
        refuse(f"{where}.{key}", "only text and image_url parts are supported: nothing else is audited")
    if key in THINKING_FIELDS and isinstance(value, str):
        if value and value not in read.thinking:
            read.thinking.append(value)
    elif key == "reasoning_details" and isinstance(value, list):
        read.drops_encrypted = read_details(value, read.thinking, keeps_encrypted=read.keeps_encrypted)
    else:
        read.others.extend(rest_of({key: value}, LABELS))


def _part(part: Any, where: str, texts: list[str], images: list[tuple[str, str]]) -> None:
    if not isinstance(part, dict):
        refuse(where, "expected an object with type")
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            refuse(f"{where}.{kind}", "expected a string")
        texts.append(text)
        for key, value in part.items():
            if key in MEDIA and value:
                refuse(f"{where}.{key}", "expected in a part of its own")
            if key != kind:
                texts.extend(rest_of({key: value}, LABELS))
    elif kind == "image_url":
        images.append((_image_url(part, where), f"{where}.image_url.url"))
    else:
        refuse(f"{where}.type", "only text and image_url parts are supported: nothing else is audited")


def _image_url(part: Mapping[str, Any], where: str) -> str:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        refuse(f"{where}.image_url.url", "expected the image's URL as a string")
    if part.get("uuid") is not None:
        refuse(f"{where}.uuid", "not supported, since the model could see another image that is cached under it")
    for key, value in part.items():
        if value is not None and not (key in IMAGE_KEYS and (key == "image_url" or says_little(value))):
            refuse(f"{where}.{key[:64]}", "not supported, since it may change what the model sees")
    if isinstance(image, dict):
        for key, value in image.items():
            if value is not None and key != "url" and not (key == "detail" and says_little(value)):
                refuse(f"{where}.image_url.{key[:64]}", "not supported, since it may change what the model sees")
    return url
