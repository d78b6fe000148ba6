"""What judges said of beginnings of traces, each paid for once: by the digest of what was asked of whom."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from guardtrace_trainer.prefixes.judges import Ask, PrefixJudge
from guardtrace_trainer.rows import Row, Trace
from guardtrace_trainer.steps import Journal, file_hash

PAID = "onset.paid.jsonl"


class Opinion(Row, frozen=True, kw_only=True):
    """A line of the ledger. ``id`` is the digest of all that the judgment depends on."""

    level: float
    analysis: str | None = None


class Ledger:
    """The ledger of a corpus for one judge; to be opened by ``with``. ``paid`` counts what was asked anew."""

    def __init__(self, folder: Path, judge: PrefixJudge) -> None:
        self._folder = folder
        self._settings = msgspec.json.encode(judge.settings)
        self._journal = Journal(folder / PAID, Opinion)
        self.paid = 0

    def __enter__(self) -> Ledger:
        self._journal.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._journal.__exit__(*raised)

    async def opinion(self, row: Trace, thinking: str, ask: Ask) -> Opinion:
        """What the judge says of ``row`` where its thinking stops with ``thinking``.

        Raises:
            JudgeFailed: it says nothing that can be read.
        """
        image = None if row.image is None else file_hash(self._folder / row.image)
        parts = msgspec.json.encode((row.question, image, thinking))
        digest = hashlib.sha256(self._settings + b"\n" + parts).hexdigest()
        known = self._journal.rows.get(digest)
        if known is not None:
            return known
        level, analysis = await ask(thinking)
        paid = Opinion(id=digest, level=level, analysis=analysis)
        self._journal.add(paid)
        self.paid += 1
        return paid
