"""ReasoningShield: an analysis and a judgment of 0, 0.5 or 1 on a reasoning trace, from text alone.

Layout: its prompt as system message, then ``Query: …`` and ``Thought: …``, a line each; at most 1,024 tokens; reply
``"Analysis": …`` and ``"Judgment": 0|0.5|1``. Sources: arXiv 2505.17244, the repository CosmosYi/ReasoningShield
(``reasoningshield_vllm.py``). It was made for the thinking; where an answer follows, as here, it stands behind it.
"""

from __future__ import annotations

from pathlib import Path

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.judge import read_judgment
from guardtrace_trainer.evaluation.guards.protocol import GuardVerdict, read_prompt, whole_reply

WHERE = "reasoningshield_prompt.txt of https://huggingface.co/ReasoningShield/ReasoningShield-1B"


class ReasoningShield:
    """Tells three levels; images are left out."""

    sees_images = False
    levels = True

    def __init__(self, client: Client, prompt: Path | None) -> None:
        self.system_prompt = read_prompt(prompt, "ReasoningShield", WHERE)
        self._client = client

    async def judge(self, item: Item) -> GuardVerdict:
        messages = [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": f"Query: {item.question}\nThought: {whole_reply(item)}"},
        ]
        return read_judgment(await self._client.ask(messages))
