"""A recorded trace as a server would stream it, a token an event.

A token is counted as the gate does where a server doesn't say: four bytes of UTF-8.
"""

from __future__ import annotations

import msgspec

TOKEN_BYTES = 4


def tokens_of(text: str) -> list[str]:
    """The text in pieces that count as one token each: at most four bytes of UTF-8, whole characters."""
    if text.isascii():
        return [text[start : start + TOKEN_BYTES] for start in range(0, len(text), TOKEN_BYTES)]
    pieces: list[str] = []
    size = TOKEN_BYTES
    for character in text:
        width = len(character.encode())
        if size + width > TOKEN_BYTES:
            pieces.append(character)
            size = width
        else:
            pieces[-1] += character
            size += width
    return pieces


def token_count(text: str) -> int:
    """How many tokens :func:`tokens_of` makes."""
    return -(-len(text) // TOKEN_BYTES) if text.isascii() else len(tokens_of(text))


def frames_of(thinking: str, answer: str, reasoning_field: str = "reasoning") -> list[bytes]:
    """The trace as chat-completion chunks of a token each, then the finish and ``[DONE]``.

    Chunks are numbered (``created``), so that no two are alike.
    """
    deltas = [
        {field: piece}
        for field, text in ((reasoning_field, thinking), ("content", answer))
        for piece in tokens_of(text)
    ]
    frames = [_frame(number, delta, None) for number, delta in enumerate(deltas)]
    return [*frames, _frame(len(frames), {}, "stop"), b"data: [DONE]\n\n"]


def _frame(number: int, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + msgspec.json.encode({"id": "replay", "created": number, "choices": [choice]}) + b"\n\n"
