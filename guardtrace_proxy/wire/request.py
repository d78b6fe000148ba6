"""What every dialect's request reader hands over, and what readers of requests share."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NoReturn

from guardtrace_proxy.wire.counts import holds_more

MAX_DEPTH = 64
MAX_CHOICES = 16
MAX_VALUES = 524_288
"""In objects and lists, an empty one counting for one: hundreds of thousands of parts, or a number for each word of a
vocabulary. Read in half a second at most, while nobody else is served."""

REPLY_NAMES = frozenset({"request_id", "rid"})
"""Fields by which model servers find replies, those of other clients too: SGLang stops every one whose name begins with
that of a client that left, and all begin with an empty one."""
FOR_OPERATORS = {"priority": "it may put this request before everybody else's"}
"""Fields that the operator alone can let pass, and why."""

TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH} levels."

Turns = tuple[tuple[str, str], ...]
"""(role, text), in order."""


class RequestError(Exception):
    """A request that is refused with HTTP 400; ``param`` names the field. The message holds none of its text."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def refuse(param: str, what: str) -> NoReturn:
    """Refuse the request for one field."""
    raise RequestError(f"{param}: {what}.", param, "invalid_value")


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
class Allowed:
    """What the operator lets pass (``upstreams.*``): ``fields`` that no table knows; ``encrypted_reasoning``, which
    the auditor can't read."""

    fields: Collection[str] = ()
    encrypted_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked. ``images`` are (URL, field), in order; ``n`` replies are wanted. ``turned_off_by`` is the path of
    the switch that turns thinking off, where one does."""

    model: str
    stream: bool
    n: int
    turns: Turns
    images: tuple[tuple[str, str], ...]
    prefill: Prefill | None
    _: KW_ONLY
    turned_off_by: str | None = None

    @property
    def hides_reasoning(self) -> bool:
        """Whether the client asks not to see the thinking. It is audited all the same."""
        return False

    @property
    def queries(self) -> tuple[Turns, ...]:
        """What the auditor is shown beside a reply. Of several queries each has ``n`` choices, in this order."""
        return (self.turns,)

    @property
    def choices(self) -> int:
        """How many choices the reply has."""
        return len(self.queries) * self.n


def read_object(body: bytes) -> dict[str, Any]:
    """The body's JSON object, without anything that two servers might read differently; raises RequestError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"The body isn't UTF-8: byte {error.start} can't be read.") from None
    _check_count(body)
    try:
        request = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # Python's own, of some
        raise RequestError(f"The body isn't JSON: {what} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise RequestError(TOO_DEEP) from None
    except ValueError:
        raise RequestError("The body holds a number with too many digits.") from None
    if not isinstance(request, dict):
        raise RequestError("The body must be a JSON object.")
    _check_values(request)
    return request


def check_known(
    request: Mapping[str, Any], known: Collection[str], unfollowed: Mapping[str, str], allowed: Collection[str]
) -> None:
    """Refuse the fields that can't be followed, with their reasons, and those that nobody knows; ``allowed`` are the
    operator's own, which pass."""
    for field, why in unfollowed.items():
        if request.get(field) is not None and (field in REPLY_NAMES or not _is_off(request[field])):
            refuse(field, f"not supported, since {why}")
    for field, value in request.items():
        if field not in known and field not in allowed and value is not None:
            why = FOR_OPERATORS.get(field, "not known here, and it may change what the model reads")
            refuse(field[:64], f"{why}: leave it out, or have the operator list it in the upstream's allow_fields")


def read_boolean(fields: Mapping[str, Any], key: str, path: str | None = None) -> bool:
    """A field that is true or false, and false where it isn't there."""
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        refuse(path or key, "expected true or false")
    return bool(value)


def read_count(request: Mapping[str, Any]) -> int:
    """The field ``n``."""
    n = request.get("n")
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        refuse("n", f"expected an integer from 1 to {MAX_CHOICES}")
    return int(n)


def read_model(request: Mapping[str, Any]) -> str:
    """The field ``model``."""
    model = request.get("model")
    if not isinstance(model, str) or not model:
        refuse("model", "expected the model's name as a string")
    return model


def read_include_usage(request: Mapping[str, Any], stream: bool) -> bool:
    """Whether ``stream_options`` ask for the usage of a stream."""
    options = request.get("stream_options")
    if options is not None and not isinstance(options, dict):
        refuse("stream_options", "expected an object")
    return stream and read_boolean(options or {}, "include_usage", "stream_options.include_usage")


def _is_off(value: Any) -> bool:
    return value is False or value == "" or value == []


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


def _check_count(body: bytes) -> None:
    """Refuse too many values before they are read."""
    if holds_more(body, MAX_VALUES):
        raise RequestError(f"The body holds more than {MAX_VALUES:,} values.")


def _check_values(request: dict[str, Any]) -> None:
    """Refuse what is too deep, and escapes that are half of a character: no tokenizer or JSON writer takes those."""
    level: list[Any] = [request]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, list):
                below += value
            elif isinstance(value, dict):
                below += value
                below += value.values()
        level = below
    if level:
        raise RequestError(TOO_DEEP)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("The body holds half of a surrogate pair, which is no character.") from None
