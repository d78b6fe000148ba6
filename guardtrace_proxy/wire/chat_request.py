"""The request of a chat completion: what the auditor must know of it. What can't be followed is refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from guardtrace_proxy.wire import chat_fields
from guardtrace_proxy.wire.chat_fields import RequestError, is_plain, refuse
from guardtrace_proxy.wire.chat_spans import THINKING_FIELDS

MAX_MESSAGES = 4096
MAX_DEPTH = 64
MAX_CHOICES = 16
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH} levels."

LABELS = frozenset({"id", "tool_call_id", "type", "cache_control", "prompt_cache_breakpoint"})
"""Keys of messages and parts that hold no text, as long as they are plain."""
IMAGE_KEYS = LABELS | {"image_url"}
MEDIA = frozenset({"audio", "file", "files", "image", "images", "image_url", "video", "videos"})
CONTINUES = ("prefix", "partial")
"""How DeepSeek, Mistral and Moonshot mark a message of the assistant's that is to be continued."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The beginning of the reply, which the request itself supplies: the last message, where it is the assistant's.

    ``content`` may hold thinking between tags; ``thinking`` is what stood in reasoning fields. ``continues``: the
    request says that the model writes on where this ends, rather than begin a new message.
    """

    where: str
    content: str
    thinking: str = ""
    continues: bool = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What was asked. ``turns`` are (role, text), ``images`` (URL, field), both in order.

    ``forced`` names the fields whose values would keep thinking from the audit: :func:`body_for_upstream`.
    """

    model: str
    stream: bool
    n: int
    include_usage: bool
    turns: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]
    prefill: Prefill | None
    forced: tuple[str, ...] = ()

    @property
    def hides_reasoning(self) -> bool:
        """Whether the client asks not to see the thinking. It is audited all the same."""
        return any(chat_fields.FORCED[path].hides for path in self.forced)


@dataclass(slots=True)
class _Message:
    role: str
    texts: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join((*self.texts, *self.thinking, *self.others))


def read_request(body: bytes, allowed: Collection[str] = ()) -> ChatRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text.

    ``allowed`` are fields unknown here that the operator lets pass.
    """
    request = _object(body)
    chat_fields.check_fields(request, allowed)
    model = request.get("model")
    if not isinstance(model, str) or not model:
        refuse("model", "expected the model's name as a string")
    found = request.get("messages")
    if not isinstance(found, list) or not found:
        refuse("messages", "expected a list with at least one message")
    if len(found) > MAX_MESSAGES:
        refuse("messages", f"expected at most {MAX_MESSAGES:,} messages")
    images: list[tuple[str, str]] = []
    messages = [_message(message, f"messages[{position}]", images) for position, message in enumerate(found)]
    prefill = None
    if messages[-1].role == "assistant":
        prefill = _prefill(request, found[-1], messages.pop(), f"messages[{len(messages)}]")
    stream = _boolean(request, "stream")
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        refuse("stream_options", "expected an object")
    return ChatRequest(
        model,
        stream,
        _count(request),
        stream and _boolean(options or {}, "include_usage", "stream_options.include_usage"),
        (*_texts_beside(request), *((message.role, message.text()) for message in messages)),
        tuple(images),
        prefill,
        tuple(chat_fields.forced_fields(request)),
    )


def body_for_upstream(body: bytes, request: ChatRequest) -> bytes:
    """The body as the upstream gets it: as it came, unless thinking was to be kept from the audit."""
    return chat_fields.force(body, request.forced)


def _texts_beside(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tools, schemas and grammars as turns of their own, before the messages: the first to go where not all fits."""
    turns = []
    for key in chat_fields.TEXTS:
        value = request.get(key)
        if value and (key in ("tools", "functions") or not is_plain(value)):
            turns.append((key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return turns


def _prefill(request: Mapping[str, Any], found: Mapping[str, Any], message: _Message, where: str) -> Prefill:
    continues = request.get("continue_final_message") is True or any(found.get(key) is True for key in CONTINUES)
    return Prefill(where, "\n".join((*message.texts, *message.others)), "\n".join(message.thinking), continues)


def _object(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"The body isn't UTF-8: byte {error.start} can't be read.") from None
    try:
        request = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RequestError(f"The body isn't JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise RequestError(TOO_DEEP) from None
    except ValueError:
        raise RequestError("The body holds a number with too many digits.") from None
    if not isinstance(request, dict):
        raise RequestError("The body must be a JSON object.")
    _check_values(request)
    return request


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two servers may read different ones of two equal keys, and the auditor must see what the model sees."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                refuse(key[:64].encode("utf-8", "replace").decode(), "the key occurs twice in one object")
            seen.add(key)
    return found


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"The body holds {name}, which isn't JSON.")


def _check_values(request: dict[str, Any]) -> None:
    """Refuse what is too deep, and escapes that are half of a character: no tokenizer or JSON writer takes those."""
    stack: list[tuple[Any, int]] = [(request, 1)]
    while stack:
        current, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise RequestError(TOO_DEEP)
        if isinstance(current, str):
            _check_text(current)
        elif isinstance(current, list):
            stack.extend((child, depth + 1) for child in current)
        elif isinstance(current, dict):
            for key, child in current.items():
                _check_text(key)
                stack.append((child, depth + 1))


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("The body holds half of a surrogate pair, which is no character.") from None


def _message(message: Any, where: str, images: list[tuple[str, str]]) -> _Message:
    """All that a message says; its images are added to ``images``."""
    if not isinstance(message, dict):
        refuse(where, "expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role", f"expected one of {', '.join(sorted(ROLES))}")
    read = _Message(role)
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
        _add_details(value, read.thinking)
    else:
        _add_text(key, value, read.others)


def _add_details(details: list[Any], thinking: list[str]) -> None:
    """OpenRouter's reasoning in parts. Encrypted ones are for the provider alone."""
    for detail in details:
        for key in ("text", "summary"):
            text = detail.get(key) if isinstance(detail, dict) else None
            if isinstance(text, str) and text and not any(text in known for known in thinking):
                thinking.append(text)


def _add_text(key: str, value: Any, texts: list[str]) -> None:
    """Whatever else a message says: a template may show it to the model."""
    if not value or isinstance(value, (bool, int, float)) or (key in LABELS and is_plain(value)):
        return
    texts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


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
                _add_text(key, value, texts)
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
        if value is not None and not (key in IMAGE_KEYS and (key == "image_url" or is_plain(value))):
            refuse(f"{where}.{key[:64]}", "not supported, since it may change what the model sees")
    if isinstance(image, dict):
        for key, value in image.items():
            if value is not None and key != "url" and not (key == "detail" and is_plain(value)):
                refuse(f"{where}.image_url.{key[:64]}", "not supported, since it may change what the model sees")
    return url


def _boolean(fields: Mapping[str, Any], key: str, path: str | None = None) -> bool:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        refuse(path or key, "expected true or false")
    return bool(value)


def _count(request: Mapping[str, Any]) -> int:
    n = request.get("n")
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        refuse("n", f"expected an integer from 1 to {MAX_CHOICES}")
    return int(n)
