"""The APIs that are audited. docs/dialects.md says how another one is added.

A dialect reads requests and replies and writes what leaves in the place of a reply. Everything else (the gate, the
policy, the auditor, the server) is told which one it is and doesn't look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from guardtrace_proxy.wire import (
    chat_fields,
    chat_request,
    completion_request,
    messages_fields,
    messages_request,
    responses_fields,
    responses_request,
)
from guardtrace_proxy.wire.chat import chat_reply
from guardtrace_proxy.wire.chat_request import ChatRequest
from guardtrace_proxy.wire.completion import completion_reply
from guardtrace_proxy.wire.completion_request import CompletionRequest
from guardtrace_proxy.wire.messages import messages_reply
from guardtrace_proxy.wire.messages_errors import STATUSES, messages_error
from guardtrace_proxy.wire.messages_request import MessagesRequest
from guardtrace_proxy.wire.reply import Reply, ReplySettings
from guardtrace_proxy.wire.request import Allowed, Request
from guardtrace_proxy.wire.responses import responses_reply
from guardtrace_proxy.wire.responses_request import ResponsesRequest

ErrorShape = Callable[[int, Mapping[str, Any], str], tuple[int, bytes]]
"""From an HTTP status, OpenAI's error fields (message, type, param, code) and the request's id to an error's status and
body."""
Asked = TypeVar("Asked", bound=Request)


def openai_error(status: int, fields: Mapping[str, Any], request_id: str) -> tuple[int, bytes]:
    """OpenAI's error object."""
    return status, msgspec.json.encode({"error": fields})


@dataclass(frozen=True)
class Dialect(Generic[Asked]):
    """One API."""

    path: str
    """Below ``/v1`` here, and below the upstream's base URL there."""
    read_request: Callable[[bytes, Allowed], Asked]
    """Raises RequestError for what can't be followed."""
    body_for_upstream: Callable[[bytes, Asked, Sequence[str] | None], bytes]
    """The body as it is sent on. The URLs, where there are any, replace those of the request's images, all of them."""
    reply: Callable[[Asked, ReplySettings], Reply]
    """A reader and writer of one reply."""
    known: Collection[str]
    """The request's fields that an operator needs no setting for."""
    unfollowed: Mapping[str, str]
    """Those that are refused, and why."""
    page: str
    """Where the docs have its fields."""
    error: ErrorShape = openai_error
    statuses: Mapping[int, int] = field(default_factory=dict)
    """HTTP statuses that this API doesn't use, and those that stand for them."""
    has_reasoning_fields: bool = True
    """Whether thinking can move to another field (a policy's ``reasoning_field``); else it stays or is stripped."""
    required_headers: Collection[str] = ()
    """Headers without which a request is refused."""
    id_headers: Collection[str] = ("x-request-id",)
    """Where its clients look for the id of a request."""

    @property
    def route(self) -> str:
        """The path that clients ask for."""
        return "/v1" + self.path


CHAT = Dialect[ChatRequest](
    path="/chat/completions",
    read_request=chat_request.read_request,
    body_for_upstream=chat_request.body_for_upstream,
    reply=chat_reply,
    known=chat_fields.KNOWN,
    unfollowed=chat_fields.UNFOLLOWED,
    page="docs/chat-completions.md",
)

COMPLETIONS = Dialect[CompletionRequest](
    path="/completions",
    read_request=completion_request.read_request,
    body_for_upstream=completion_request.body_for_upstream,
    reply=completion_reply,
    known=completion_request.KNOWN,
    unfollowed=completion_request.UNFOLLOWED,
    page="docs/completions.md",
    has_reasoning_fields=False,
)

RESPONSES = Dialect[ResponsesRequest](
    path="/responses",
    read_request=responses_request.read_request,
    body_for_upstream=responses_request.body_for_upstream,
    reply=responses_reply,
    known=responses_fields.KNOWN,
    unfollowed=responses_fields.UNFOLLOWED,
    page="docs/responses.md",
    has_reasoning_fields=False,
)

MESSAGES = Dialect[MessagesRequest](
    path="/messages",
    read_request=messages_request.read_request,
    body_for_upstream=messages_request.body_for_upstream,
    reply=messages_reply,
    known=messages_fields.KNOWN,
    unfollowed=messages_fields.UNFOLLOWED,
    page="docs/messages.md",
    error=messages_error,
    statuses=STATUSES,
    has_reasoning_fields=False,
    required_headers=("anthropic-version",),
    id_headers=("x-request-id", "request-id"),
)

DIALECTS: tuple[Dialect[Any], ...] = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
BY_ROUTE = {dialect.route: dialect for dialect in DIALECTS}


def speaking_at(path: str) -> Dialect[Any]:
    """Whose clients ask for a path: errors there are in its words. OpenAI's, where nobody's do."""
    return next((each for each in DIALECTS if (path + "/").startswith(each.route + "/")), CHAT)
