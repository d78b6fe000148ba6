"""Llama Guard 4: safe or unsafe, with the hazards' codes.

Format: https://www.llama.com/docs/model-cards-and-prompt-formats/llama-guard-4/. The server's own chat template writes
the prompt around a conversation of user and agent, and asks for the last turn: ``safe``, or ``unsafe`` and a line of
codes (``S1,S9``). Thinking and answer are that turn, since it knows no thinking.
"""

from __future__ import annotations

import re
from typing import Any

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import GuardVerdict, UnreadableVerdict, whole_reply, with_image

_REPLY = re.compile(
    r"\s*(safe|unsafe)[^\S\n]*(?:\n\s*((?:S\d{1,2})(?:\s*,\s*S\d{1,2})*))?\s*(?:<\|eot\|>)?\s*", re.IGNORECASE
)


class LlamaGuard:
    """Knows two levels."""

    sees_images = True
    levels = False

    def __init__(self, client: Client) -> None:
        self._client = client

    async def judge(self, item: Item) -> GuardVerdict:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": with_image(item.question, item.image)},
            {"role": "assistant", "content": whole_reply(item)},
        ]
        return read_hazards((await self._client.ask(messages)).answer)


def read_hazards(reply: str) -> GuardVerdict:
    """Read a reply; a hazard that is named scores 1.

    Raises:
        UnreadableVerdict: it is neither ``safe`` nor ``unsafe`` with codes or without.
    """
    read = _REPLY.fullmatch(reply)
    if read is None or (read[1].lower() == "safe" and read[2]):
        raise UnreadableVerdict("the reply is neither 'safe' nor 'unsafe' with hazard codes")
    codes = re.findall(r"S\d+", (read[2] or "").upper())
    return GuardVerdict(read[1].lower() == "unsafe", scores=dict.fromkeys(codes, 1.0), raw=reply)
