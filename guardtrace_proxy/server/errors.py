"""Errors as clients see them: OpenAI's error object, with the field's name where there is one.

Shape: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import msgspec


class ApiError(Exception):
    """An answer in OpenAI's error shape. ``param`` names the request's field, where one is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> bytes:
        """The JSON body."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    @property
    def event(self) -> bytes:
        """The error as an event of a stream whose status line has left; ``code`` then stands in for the status."""
        code = self.status if self.code is None else self.code
        error = {"message": self.message, "type": self.type, "param": self.param, "code": code}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


def unauthorized() -> ApiError:
    """No tenant for this key; the message never repeats the key."""
    return ApiError(
        401,
        "No tenant has this API key. Send `Authorization: Bearer KEY` with a key that the operator gave you.",
        type="authentication_error",
        code="invalid_api_key",
    )


def no_route(method: str, path: str) -> ApiError:
    """A route that isn't audited is refused, so that nothing passes unread."""
    shown = path if len(path) <= 200 else path[:200] + "…"
    return ApiError(
        404,
        f"{method} {shown} is not served here: routes that aren't audited are refused. "
        "Served: POST /v1/chat/completions, GET /v1/models, /healthz, /readyz.",
        code="unknown_url",
    )


def upstream_unreachable() -> ApiError:
    """The upstream can't be reached, or doesn't speak HTTP."""
    return ApiError(
        502, "The upstream model server can't be reached.", type="upstream_error", code="upstream_unreachable"
    )


def upstream_silent() -> ApiError:
    """The upstream took the request and didn't answer in time."""
    return ApiError(
        504,
        "The upstream model server didn't answer in time (upstreams.*.read_timeout_ms).",
        type="upstream_error",
        code="upstream_timeout",
    )


def upstream_unreadable(what: str) -> ApiError:
    """The upstream answered, but not with what was asked for."""
    return ApiError(
        502,
        f"The upstream model server sent {what}, which can't be audited, so it isn't passed on.",
        type="upstream_error",
        code="upstream_unreadable",
    )
