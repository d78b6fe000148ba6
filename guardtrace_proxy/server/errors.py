"""Errors as clients see them. The dialect of the route gives them their shape; without one it is OpenAI's.

Shape: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from guardtrace_proxy.wire.dialects import DIALECTS

WORD = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


class ApiError(Exception):
    """An answer that says what went wrong. ``param`` names the request's field, where one is to blame.

    ``is_logged``: it has a line of its own in the log already, or one stands for many of its kind.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        is_logged: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers
        self.is_logged = is_logged

    @property
    def code_word(self) -> str | int | None:
        """The code for the log, if it is a word: of an upstream it may be any text."""
        return self.code if not isinstance(self.code, str) or WORD.fullmatch(self.code) else "other"

    @property
    def fields(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def event(self, write: Callable[..., bytes]) -> bytes:
        """The error as an event of a stream whose status line has left; ``code`` then stands in for the status.

        ``write`` is the ``error`` of the dialect's writer.
        """
        return write(self.message, self.type, self.status if self.code is None else self.code, self.param)


def unauthorized() -> ApiError:
    """No tenant for this key; the message never repeats the key."""
    return ApiError(
        401,
        "No tenant has this API key. Send `Authorization: Bearer KEY` or `x-api-key: KEY` with a key that the operator "
        "gave you.",
        type="authentication_error",
        code="invalid_api_key",
    )


def no_route(method: str, path: str) -> ApiError:
    """A route that isn't audited is refused, so that nothing passes unread."""
    shown = path if len(path) <= 200 else path[:200] + "…"
    return ApiError(
        404,
        f"{method} {shown} is not served here: routes that aren't audited are refused. "
        f"Served: {', '.join(f'POST {dialect.route}' for dialect in DIALECTS)}, GET /v1/models, /healthz, /readyz.",
        code="unknown_url",
    )


def overloaded(limit: str) -> ApiError:
    """The server has as much to do as it can; ``limit`` is the setting that says so."""
    return ApiError(
        503,
        f"The proxy has as much to do as it may ({limit}). Try again soon.",
        type="server_error",
        code="overloaded",
        headers=((b"retry-after", b"1"),),
        is_logged=True,
    )


def shutting_down() -> ApiError:
    """The server was told to stop, and the time that it gives replies is over."""
    return ApiError(
        503,
        "The proxy is shutting down. Try again.",
        type="server_error",
        code="shutting_down",
        headers=((b"retry-after", b"1"),),
    )


def client_silent() -> ApiError:
    """The client began a request and didn't go on."""
    return ApiError(
        408,
        "The request's body didn't come in time (server.client_timeout_ms).",
        code="request_timeout",
        headers=((b"connection", b"close"),),
    )


def upstream_unreachable() -> ApiError:
    """The upstream can't be reached, or doesn't speak HTTP."""
    return ApiError(
        502, "The upstream model server can't be reached.", type="upstream_error", code="upstream_unreachable"
    )


def upstream_untrusted() -> ApiError:
    """The upstream's certificate is by nobody whom the proxy trusts, or not for its name, or out of date."""
    return ApiError(
        502,
        "The upstream model server can't be reached: its certificate isn't trusted (upstreams.*.ca_file).",
        type="upstream_error",
        code="upstream_unreachable",
    )


def upstream_unauthorized(headers: tuple[tuple[bytes, bytes], ...] = ()) -> ApiError:
    """The upstream wants another key than the proxy's own. By its status and words clients would take theirs to be
    wrong, which it never saw; and providers put a part of the key that they refuse into the message."""
    return ApiError(
        502,
        "The upstream model server doesn't take the proxy's own key (upstreams.*.api_key_env).",
        type="upstream_error",
        code="upstream_unauthorized",
        headers=headers,
    )


def upstream_silent() -> ApiError:
    """The upstream took the request and didn't answer in time."""
    return ApiError(
        504,
        "The upstream model server didn't answer in time (upstreams.*.read_timeout_ms).",
        type="upstream_error",
        code="upstream_timeout",
    )


def upstream_failed() -> ApiError:
    """The app behind the middleware raised before its reply began, or made none."""
    return ApiError(500, "The model server failed; its log says where.", type="upstream_error", code="upstream_failed")


def not_started() -> ApiError:
    """The middleware's settings or its auditor can't be used."""
    return ApiError(
        500,
        "The guard of this model server didn't start, so nothing is served; the server's log says why.",
        type="server_error",
        code="guard_not_started",
    )


def upstream_unreadable(what: str) -> ApiError:
    """The upstream answered, but not with what was asked for."""
    return ApiError(
        502,
        f"The upstream model server sent {what}, which can't be audited, so it isn't passed on.",
        type="upstream_error",
        code="upstream_unreadable",
    )
