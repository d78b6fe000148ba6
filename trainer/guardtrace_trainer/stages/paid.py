"""What the oracle replied, each reply paid for once: by the digest of what was asked of whom."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.rows import Row
from guardtrace_trainer.steps import Journal

PAID = "mine.paid.jsonl"


class OracleReply(Row, frozen=True, kw_only=True):
    """A line of the ledger. ``id`` is the digest of all that the reply depends on."""

    answer: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Ledger:
    """The ledger in a folder of ``mine``, which outlives the step; to be opened by ``with``.

    Raises:
        StepError: another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder / PAID, OracleReply)

    def __enter__(self) -> Ledger:
        self._journal.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._journal.__exit__(*raised)

    async def reply(self, client: Client, messages: list[dict[str, Any]]) -> OracleReply:
        """The reply to ``messages``, from the ledger or from the model.

        Raises:
            EndpointFailure: there is none.
        """
        digest = hashlib.sha256(msgspec.json.encode((client.endpoint.settings(), messages))).hexdigest()
        known = self._journal.rows.get(digest)
        if known is not None:
            return known
        reply = await client.ask(messages)
        paid = OracleReply(
            id=digest,
            answer=reply.answer,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        self._journal.add(paid)
        return paid
