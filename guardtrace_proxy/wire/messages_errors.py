"""Errors of the Messages API: https://docs.claude.com/en/api/errors"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STATUSES = {415: 400, 422: 400, 502: 500, 503: 529}
"""Statuses that this API doesn't use, and those that stand for them."""
TYPES = frozenset(BY_STATUS.values())
BY_TYPE = {"content_filter": "invalid_request_error", "server_error": "api_error", "upstream_error": "api_error"}
BY_CODE = {
    "overloaded": "overloaded_error",
    "auditor_failure": "overloaded_error",
    "upstream_timeout": "timeout_error",
    "invalid_api_key": "authentication_error",
}


def messages_error(status: int, fields: Mapping[str, Any], request_id: str) -> tuple[int, bytes]:
    """The status and the body of an error before a reply."""
    status = STATUSES.get(status, status)
    kind = BY_STATUS.get(status) or (BY_STATUS[400] if status < 500 else BY_STATUS[500])
    if fields.get("type") in TYPES and status not in BY_STATUS:
        kind = str(fields["type"])
    message, param = str(fields["message"]), fields.get("param")
    if param and param not in message:
        message = f"{param}: {message}"  # there is no place for it but this
    return status, msgspec.json.encode(error_object(kind, message, request_id))


def error_type(type: str, code: str | int | None) -> str:
    """This API's type for an error in mid-stream, given in OpenAI's words or in its own."""
    if isinstance(code, int):
        code = STATUSES.get(code, code)
        return BY_STATUS.get(code, type if type in TYPES else "api_error")
    if code in BY_CODE:
        return BY_CODE[code]
    return type if type in TYPES else BY_TYPE.get(type, "api_error")


def error_object(type: str, message: str, request_id: str) -> dict[str, Any]:
    """The error, as it stands in a body and in an event."""
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": request_id}
