"""What the scripted upstream says, encoded once: one token an event, in vLLM's manner."""

from __future__ import annotations

import json
from itertools import cycle, islice

TOKEN_BYTES = 4
"""Every token is so long that the proxy's count without a tokenizer, bytes / 4, is one an event."""
THINKING_SHARE = 0.768
"""384 of 500 tokens: six full chunks of 64."""

PROSE = (
    "The train leaves at nine and takes forty minutes, so it is there at twenty to ten. "
    "Let me check that against the table. Forty minutes after nine is nine forty. The bus needs an hour. "
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
CREATED = 1_760_000_000


def thinking_tokens(tokens: int) -> int:
    """How many of a reply's tokens are thinking."""
    return round(tokens * THINKING_SHARE)


def events(tokens: int) -> list[bytes]:
    """A reply's events: the role, ``tokens`` with one token each, the finish, ``[DONE]``."""
    pieces = [PROSE[at : at + TOKEN_BYTES] for at in range(0, len(PROSE) - TOKEN_BYTES + 1, TOKEN_BYTES)]
    thinking = thinking_tokens(tokens)
    found = [_event({"role": "assistant", "content": ""})]
    for position, piece in enumerate(islice(cycle(pieces), tokens)):
        found.append(token_event(piece, position < thinking))
    return [*found, _event({}, "stop"), DONE]


def token_event(text: str, is_thinking: bool) -> bytes:
    """The event of one token."""
    return _event({"reasoning" if is_thinking else "content": text})


def http_chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    head = {
        "id": "chatcmpl-4f6d1f0c2b9e4c55a2c87a1de0b93d17",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": "Qwen/Qwen3-VL-8B-Thinking",
    }
    return b"data: " + json.dumps({**head, "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"
