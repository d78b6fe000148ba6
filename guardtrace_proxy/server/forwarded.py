"""Headers that pass through the proxy, each way: short allow-lists, since others may carry keys, cookies or text.

Trace context: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from guardtrace_proxy.server.asgi_io import Headers, Scope

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
MAX_TRACESTATE_CHARS = 512

VERSION = re.compile(r"[A-Za-z0-9.-]{1,32}", re.ASCII)
BETAS = re.compile(
    r"(?:context-1m|effort|extended-cache-ttl|fast-mode|fine-grained-tool-streaming|interleaved-thinking|output-128k|"
    r"prompt-caching|structured-outputs|token-efficient-tools)-[0-9]{4}-[0-9]{2}-[0-9]{2}",
    re.ASCII,
)
"""Anthropic's betas that steer the reply or name a cache. Others bring in what the auditor wouldn't see, or may."""
RETRY_HEADERS = {"retry-after", "retry-after-ms", "x-should-retry", "ratelimit"}
LIMIT_HEADERS = re.compile(r"(x-|anthropic-)?ratelimit-[a-z0-9-]{1,64}", re.ASCII)
MAX_PASSED = 32
MAX_VALUE_CHARS = 256


def to_upstream(scope: Scope) -> dict[str, str]:
    """``x-request-id``, the client's own if it is plain, else a new one (see :func:`with_own_id`); ``traceparent`` and
    ``tracestate``; ``anthropic-version``, and of ``anthropic-beta`` what is known."""
    asked = _values(scope, b"x-request-id")
    taken = len(asked) == 1 and REQUEST_ID.fullmatch(asked[0])
    headers = {"x-request-id": asked[0] if taken else secrets.token_hex(8)}
    parents, state = _values(scope, b"traceparent"), ",".join(_values(scope, b"tracestate"))
    if len(parents) == 1 and TRACEPARENT.fullmatch(parents[0]):
        headers["traceparent"] = parents[0]
        if state and _is_plain(state, MAX_TRACESTATE_CHARS):
            headers["tracestate"] = state
    versions = _values(scope, b"anthropic-version")
    if len(versions) == 1 and VERSION.fullmatch(versions[0]):
        headers["anthropic-version"] = versions[0]
    betas = [beta.strip() for value in _values(scope, b"anthropic-beta") for beta in value.split(",")]
    betas = [beta for beta in betas[:MAX_PASSED] if BETAS.fullmatch(beta)]
    if betas:
        headers["anthropic-beta"] = ",".join(betas)
    return headers


def with_own_id(headers: Mapping[str, str]) -> dict[str, str]:
    """The same headers for one request to the upstream, whose id is that of the client's with random digits behind it:
    model servers find replies by it, and mix up or stop those whose ids are equal."""
    return {**headers, "x-request-id": f"{headers['x-request-id']}-{secrets.token_hex(8)}"}


def with_another_id(headers: Mapping[str, str]) -> dict[str, str]:
    """The same headers for another try, while the upstream may still be at the one before."""
    begin, _, _ = headers["x-request-id"].rpartition("-")
    return with_own_id({**headers, "x-request-id": begin or headers["x-request-id"]})


def trace_id_of(headers: Mapping[str, str]) -> str | None:
    """The trace that a request for the upstream belongs to, if it belongs to one."""
    parent = headers.get("traceparent")
    return None if parent is None else parent.split("-")[1]


def to_client(headers: Mapping[str, str]) -> Headers:
    """What the upstream says about its limits and about trying again."""
    passed = [
        (name.lower().encode(), value.encode())
        for name, value in headers.items()
        if (name.lower() in RETRY_HEADERS or LIMIT_HEADERS.fullmatch(name.lower()))
        and _is_plain(value, MAX_VALUE_CHARS)
    ]
    return passed[:MAX_PASSED]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _is_plain(value: str, limit: int) -> bool:
    return len(value) <= limit and value.isascii() and value.isprintable()
