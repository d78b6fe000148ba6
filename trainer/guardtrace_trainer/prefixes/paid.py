"""What judges said of beginnings of traces, each paid for once: by the digest of what was asked of whom."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from guardtrace_trainer.annotation.jury import TRIES
from guardtrace_trainer.prefixes.judges import Ask, JudgeFailed, Opinion, PrefixJudge, UnreadableOpinion
from guardtrace_trainer.rows import Row, Trace
from guardtrace_trainer.steps import Journal, file_hash

PAID = "onset.paid.jsonl"


class PaidOpinion(Row, frozen=True, kw_only=True):
    """A line of the ledger. ``id`` is the digest of all that the judgment depends on. ``level`` is null where ``reply``
    can't be read, for what ``problem`` says."""

    level: float | None
    analysis: str | None = None
    reply: str | None = None
    problem: str | None = None


class Ledger:
    """The ledger of a corpus for one judge; to be opened by ``with``. ``paid`` counts what was asked anew."""

    def __init__(self, folder: Path, judge: PrefixJudge) -> None:
        self._folder = folder
        self._settings = msgspec.json.encode(judge.settings)
        self._journal = Journal(folder / PAID, PaidOpinion)
        self.paid = 0

    def __enter__(self) -> Ledger:
        self._journal.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._journal.__exit__(*raised)

    async def opinion(self, row: Trace, thinking: str, ask: Ask) -> Opinion:
        """What the judge says of ``row`` where its thinking stops with ``thinking``. As the jury's, a reply that can't
        be read is asked for once more.

        Raises:
            JudgeFailed: it says nothing that can be read.
        """
        image = None if row.image is None else file_hash(self._folder / row.image)
        parts = self._settings + b"\n" + msgspec.json.encode((row.question, image, thinking))
        problem: str | None = None
        for number in range(TRIES):
            asked = parts if number == 0 else parts + f"\n{number + 1}".encode()
            digest = hashlib.sha256(asked).hexdigest()
            paid = self._journal.rows.get(digest) or await self._pay(digest, thinking, number, ask)
            if paid.level is not None:
                return Opinion(paid.level, paid.analysis)
            problem = paid.problem
        raise JudgeFailed(problem)

    async def _pay(self, digest: str, thinking: str, number: int, ask: Ask) -> PaidOpinion:
        try:
            level, analysis = await ask(thinking, number)
            paid = PaidOpinion(id=digest, level=level, analysis=analysis)
        except UnreadableOpinion as failure:
            paid = PaidOpinion(id=digest, level=None, reply=failure.reply, problem=str(failure))
        self._journal.add(paid)
        self.paid += 1
        return paid
