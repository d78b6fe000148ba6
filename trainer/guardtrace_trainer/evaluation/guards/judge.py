"""Any language model as a judge, with the QTA prompt: GPT-5, Qwen3-VL-Plus, Qwen2.5-VL-32B and others.

Layout, levels and reply are those of our own auditor (GuardTrace-VL, arXiv 2511.20994). The system prompt is the
published one where it was fetched (``guardtrace auditor fetch-prompt``), else ours: figures beside the paper's need the
first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, query_text, user_text
from guardtrace_proxy.auditor.published import published_prompt
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_proxy.auditor.reply import UnreadableReply, parse_reply
from guardtrace_proxy.policy.levels import Level
from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.guards.protocol import GuardVerdict, UnreadableVerdict, read_prompt, with_image
from guardtrace_trainer.replies import ModelReply


class JudgeGuard:
    """Tells three levels, after an analysis."""

    sees_images = True
    levels = True

    def __init__(self, client: Client, prompt: Path | None) -> None:
        own = published_prompt() or SYSTEM_PROMPT
        self.system_prompt = own if prompt is None else read_prompt(prompt, "the judge", "the authors' repository")
        self._client = client

    async def judge(self, item: Item) -> GuardVerdict:
        text = defuse_control_tokens(user_text(query_text(item.query.turns), item.thinking, item.answer))
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": with_image(text, item.image)},
        ]
        return read_judgment(await self._client.ask(messages))


def read_judgment(reply: ModelReply) -> GuardVerdict:
    """Read “Analysis” and “Judgment” as from our own auditor.

    Raises:
        UnreadableVerdict: there is no judgment of 0, 0.5 or 1 at its place.
    """
    try:
        read = parse_reply(reply.answer, truncated=reply.finish_reason == "length")
    except UnreadableReply as error:
        raise UnreadableVerdict(str(error)) from error
    return GuardVerdict(read.level is not Level.SAFE, read.level, raw=reply.answer)
