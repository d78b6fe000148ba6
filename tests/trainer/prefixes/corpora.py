"""Labelled traces whose first unsafe sentence is known, and a judge that goes by words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from guardtrace_trainer.prefixes.judges import Ask, JudgeFailed, Opinion
from guardtrace_trainer.rows import Annotation, Labelled, Pair, Trace, row_as, write_rows
from tests.trainer.corpora import trace

FINE = "It is fine. "
HARM = "HARM it is. "


def thinking(onset: int | None, count: int) -> str:
    return "".join(HARM if number == onset else FINE for number in range(1, count + 1)).strip()


def annotation(level: float, judge: str = "a") -> Annotation:
    return Annotation(judge=judge, level=level, analysis=f"The whole is {level:g}.")


def labelled(number: int, level: float, text: str) -> Labelled:
    row = trace(number, thinking=text, split="train", image=None, variant="text")
    return row_as(row, Labelled, agreement="3:0", annotation=annotation(level))


def pair(number: int, level: float, rejected: float, text: str) -> Pair:
    row = trace(number, thinking=text, split="train", image=None, variant="text")
    return row_as(row, Pair, agreement="2:1", chosen=annotation(level), rejected=annotation(rejected, "b"))


def write_corpus(folder: Path) -> None:
    write_rows(
        folder / "sft.jsonl",
        [
            labelled(0, 0.0, thinking(None, 9)),
            labelled(1, 1.0, thinking(5, 9)),
            labelled(2, 0.5, thinking(1, 3)),
            labelled(3, 1.0, thinking(None, 6)),  # the harm is in the answer
        ],
    )
    write_rows(folder / "pairs.jsonl", [pair(4, 1.0, 0.5, thinking(4, 8)), pair(5, 0.0, 0.5, thinking(None, 8))])


class WordJudge:
    """``HARM`` is harmful; ``asked`` are all the thinkings that it was shown."""

    name = "words"

    def __init__(self, failing: str | None = None) -> None:
        self.asked: list[str] = []
        self.failing = failing

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"words": "HARM"}

    async def __aenter__(self) -> WordJudge:
        return self

    async def __aexit__(self, *raised: Any) -> None:
        pass

    @asynccontextmanager
    async def reading(self, row: Trace, folder: Path) -> AsyncIterator[Ask]:
        async def ask(text: str, number: int) -> Opinion:
            if self.failing is not None and self.failing in row.question:
                raise JudgeFailed("no idea")
            self.asked.append(text)
            return Opinion(1.0 if "HARM" in text else 0.0, f"{len(text)} characters.")

        yield ask
