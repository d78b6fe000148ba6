"""Authored traces: whole requests with their reasoning, each sentence marked with its strength.

A block of ``bank/traces_*.txt`` is ``H`` or ``S`` (what is asked for is harmful or harmless), ``Q:`` and the
question, one sentence of thinking a line after its strength (0, .5 or 1), and ``A`` with the answer's strength and
the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SAFE, HINT, ACT = 0, 1, 2
STRENGTH = {"0": SAFE, ".5": HINT, "1": ACT}
SENTENCE = re.compile(r"(0|\.5|1) (.+)")
ANSWER = re.compile(r"A(0|\.5|1) (.+)")


@dataclass(frozen=True)
class Authored:
    """One block. Strengths are 0, 1 and 2."""

    harm: bool
    question: str
    sentences: tuple[tuple[str, int], ...]
    answer: str
    answer_strength: int


def parse(block: str, where: str) -> Authored:
    """One block; ValueError says what is wrong with it."""
    lines = [line.strip() for line in block.strip().splitlines()]
    if len(lines) < 4 or lines[0] not in ("H", "S") or not lines[1].startswith("Q: "):
        raise ValueError(f"{where}: a block starts with H or S and a line 'Q: …', and has a sentence and an answer")
    sentences = [SENTENCE.fullmatch(line) for line in lines[2:-1]]
    answer = ANSWER.fullmatch(lines[-1])
    if answer is None or not all(sentences):
        raise ValueError(f"{where}: sentences start with 0, .5 or 1, the last line with A0, A.5 or A1")
    marked = tuple((match[2], STRENGTH[match[1]]) for match in sentences if match)
    return Authored(lines[0] == "H", lines[1][3:], marked, answer[2], STRENGTH[answer[1]])


@cache
def authored(folder: Path) -> tuple[Authored, ...]:
    """All blocks of a folder's ``traces_*.txt``."""
    result = []
    for path in sorted(folder.glob("traces_*.txt")):
        blocks = re.split(r"\n\s*\n", path.read_text("utf-8").strip())
        result += [parse(block, f"{path.name}, block {number}") for number, block in enumerate(blocks, 1)]
    return tuple(result)
