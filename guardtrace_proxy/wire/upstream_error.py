"""What passes of an upstream's error: type, code and a bounded message, since providers put generated text there."""

from __future__ import annotations

from typing import Any

MAX_ERROR_CHARS = 500
MAX_WORD_CHARS = 64


def bounded_error(error: Any) -> dict[str, Any]:
    """``message``, ``type`` and ``code`` of an error in a stream."""
    fields = error if isinstance(error, dict) else {"message": error}
    message, kind, code = fields.get("message"), fields.get("type"), fields.get("code")
    return {
        "message": message[:MAX_ERROR_CHARS] if isinstance(message, str) else "The upstream reported an error.",
        "type": kind[:MAX_WORD_CHARS] if isinstance(kind, str) else "upstream_error",
        "code": code if isinstance(code, int) else code[:MAX_WORD_CHARS] if isinstance(code, str) else None,
    }
