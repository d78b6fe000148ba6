"""GuardReasoner-VL: reasons, then says of request and response whether they are harmful.

Layout: the instruction as system message; the user's message is the image, then ``Human user:`` and
``AI assistant:`` with their texts. Reply: ``<think>…</think><result>`` with ``Request: harmful|unharmful`` and
``Response: harmful|unharmful``. Sources: arXiv 2505.11049, the model card of yueliu1999/GuardReasoner-8B, and the
evaluation code of its successor, repository zzh-thu-22/GuardReasoner-Omni (``previous_version/eval``), which also reads
``none`` and ``harmless`` as unharmful. It knows no thinking: thinking and answer are the assistant's response, and the
word on the response counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import (
    GuardVerdict,
    UnreadableVerdict,
    read_prompt,
    whole_reply,
    with_image,
)

WHERE = "the INSTRUCTION of its repository https://github.com/yueliu1999/GuardReasoner-VL"
_RESULT = re.compile(r"<result>(.*?)(?:</result>|\Z)", re.DOTALL | re.IGNORECASE)
_JUDGED = re.compile(r"\b(request|response):\s*(harmful|unharmful|harmless|none)\b", re.IGNORECASE)


class GuardReasoner:
    """Knows two levels, of request and response apart."""

    sees_images = True
    levels = False

    def __init__(self, client: Client, prompt: Path | None) -> None:
        self.system_prompt = read_prompt(prompt, "GuardReasoner-VL", WHERE)
        self._client = client

    async def judge(self, item: Item) -> GuardVerdict:
        text = f"Human user:\n{item.question}\n\nAI assistant:\n{whole_reply(item)}\n\n"
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": with_image(text, item.image)},
        ]
        return read_result((await self._client.ask(messages)).answer)


def read_result(reply: str) -> GuardVerdict:
    """Read a reply behind its reasoning.

    Raises:
        UnreadableVerdict: there is no result, or it says nothing of the response.
    """
    result = _RESULT.search(reply.rpartition("</think>")[2])
    if result is None:
        raise UnreadableVerdict("the reply has no <result>")
    judged = {name.lower(): float(word.lower() == "harmful") for name, word in _JUDGED.findall(result[1])}
    if "response" not in judged:
        raise UnreadableVerdict("the result says nothing of the response")
    return GuardVerdict(judged["response"] > 0, scores=judged, raw=reply)
