"""What a server that reads all of a prompt answers to the trial by which that is checked."""

from __future__ import annotations

from typing import Any

from guardtrace_proxy.auditor.seen_text import OPENING


def reply_to_trial(body: dict[str, Any]) -> dict[str, Any] | None:
    """None where the request is no trial."""
    messages = body.get("messages")
    content = messages[-1]["content"] if messages else None
    if not isinstance(content, str) or not content.startswith(OPENING):
        return None
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "x"}}
    return {"id": "trial", "choices": [choice], "usage": {"prompt_tokens": len(content.split()) + 20}}
