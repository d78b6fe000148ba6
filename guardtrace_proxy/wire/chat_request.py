"""The request of a chat completion: what the auditor must know of it, and what can't be followed and is refused.

Everything else in it goes to the upstream as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_MESSAGES = 4096
MAX_DEPTH = 64
MAX_CHOICES = 16
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH} levels."

UNFOLLOWED = {
    "chat_template": "it changes what the model reads, and the auditor wouldn't see it",
    "documents": "they reach the model through its template, and the auditor wouldn't see them",
    "prompt_embeds": "the auditor can't read embeddings",
    "mm_processor_kwargs": "the model would see other pixels than the auditor",
    "media_io_kwargs": "the model would see other pixels than the auditor",
    "echo": "the prompt would come back as if it were generated",
    "audio": "only text and images are audited",
}
"""Request fields that are refused, and why."""
TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking", "thinking_budget", "reasoning_effort"})
"""``chat_template_kwargs`` that only switch thinking."""


class RequestError(Exception):
    """A request that is refused with HTTP 400; ``param`` names the field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What was asked. ``turns`` are (role, text), ``images`` (URL, field), both in order.

    ``prefill`` is the beginning of the answer, where the last message is the assistant's.
    """

    model: str
    stream: bool
    n: int
    include_usage: bool
    turns: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]
    prefill: str | None


def read_request(body: bytes) -> ChatRequest:
    """Read a request; raises RequestError with the field's name, and never with any of its text."""
    request = _object(body)
    _refuse_unfollowed(request)
    model = request.get("model")
    if not isinstance(model, str) or not model:
        _refuse("model", "expected the model's name as a string")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "expected a list with at least one message")
    if len(messages) > MAX_MESSAGES:
        _refuse("messages", f"expected at most {MAX_MESSAGES:,} messages")
    turns: list[tuple[str, str]] = []
    images: list[tuple[str, str]] = []
    for position, message in enumerate(messages):
        turns.append(_turn(message, f"messages[{position}]", images))
    prefill = None
    if turns[-1][0] == "assistant" and len(turns) > 1:
        prefill = turns.pop()[1]
    stream = _boolean(request, "stream")
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        _refuse("stream_options", "expected an object")
    include_usage = stream and _boolean(options or {}, "include_usage", "stream_options.include_usage")
    return ChatRequest(model, stream, _count(request), include_usage, tuple(turns), tuple(images), prefill)


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
                _refuse(key[:64].encode("utf-8", "replace").decode(), "the key occurs twice in one object")
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


def _refuse_unfollowed(request: Mapping[str, Any]) -> None:
    for field, why in UNFOLLOWED.items():
        if request.get(field):
            _refuse(field, f"not supported, since {why}")
    kwargs = request.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        _refuse("chat_template_kwargs", "expected an object")
    for key in kwargs or {}:
        if key not in TEMPLATE_KWARGS:
            _refuse(f"chat_template_kwargs.{key[:64]}", "not supported, since it may change what the model reads")
    modalities = request.get("modalities")
    if modalities is not None and modalities != ["text"]:
        _refuse("modalities", 'only ["text"] is supported: nothing else is audited')
    for path, hides in _hidden_reasoning(request):
        if hides:
            _refuse(path, "hiding the reasoning is not yet supported: leave the field out")
    for field in ("continue_final_message", "add_generation_prompt", "add_special_tokens"):
        if field in request and not isinstance(request[field], bool):
            _refuse(field, "expected true or false")


def _hidden_reasoning(request: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """The ways in which servers are told to think in secret, which would keep the thinking from the auditor."""
    # Lenient servers take 0 and "false" for False too, so nothing passes but what is surely true.
    for field in ("include_reasoning", "separate_reasoning"):
        yield field, request.get(field) not in (None, True)
    reasoning = request.get("reasoning")
    if isinstance(reasoning, dict):
        yield "reasoning.exclude", bool(reasoning.get("exclude"))


def _turn(message: Any, where: str, images: list[tuple[str, str]]) -> tuple[str, str]:
    """The role and the text of a message; its images are added to ``images``."""
    if not isinstance(message, dict):
        _refuse(where, "expected an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        _refuse(f"{where}.role", f"expected one of {', '.join(sorted(ROLES))}")
    texts: list[str] = []
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    elif isinstance(content, list):
        for position, part in enumerate(content):
            _part(part, f"{where}.content[{position}]", texts, images)
    elif content is not None or role not in ("assistant", "function"):
        _refuse(f"{where}.content", "expected a string or a list of parts")
    for field in ("reasoning", "reasoning_content", "refusal", "name"):
        if isinstance(message.get(field), str):
            texts.append(message[field])
    for field in ("tool_calls", "function_call"):
        if message.get(field):
            texts.append(json.dumps(message[field], ensure_ascii=False))
    return role, "\n".join(texts)


def _part(part: Any, where: str, texts: list[str], images: list[tuple[str, str]]) -> None:
    if not isinstance(part, dict):
        _refuse(where, "expected an object with type")
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            _refuse(f"{where}.{kind}", "expected a string")
        texts.append(text)
    elif kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            _refuse(f"{where}.image_url.url", "expected the image's URL as a string")
        if part.get("uuid") is not None:
            _refuse(f"{where}.uuid", "not supported, since the model could see another image that is cached under it")
        images.append((url, f"{where}.image_url.url"))
    else:
        _refuse(f"{where}.type", "only text and image_url parts are supported: nothing else is audited")


def _boolean(fields: Mapping[str, Any], key: str, path: str | None = None) -> bool:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        _refuse(path or key, "expected true or false")
    return bool(value)


def _count(request: Mapping[str, Any]) -> int:
    n = request.get("n")
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        _refuse("n", f"expected an integer from 1 to {MAX_CHOICES}")
    return int(n)


def _refuse(param: str, what: str) -> NoReturn:
    raise RequestError(f"{param}: {what}.", param, "invalid_value")
