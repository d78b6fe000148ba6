"""Which lines of the bank can be told by their words: of *plain* lines readers of words and their neighbours, having
learned from the others, are sure; of *doubtful* ones less so; of *subtle* ones not. A network of this size learns the
subtle ones only by heart, at the cost of the plain ones, so they lie apart, in ``bank/subtle``: training does without
them. The doubtful ones, in ``bank/doubtful``, are learned from, too. The held-out sets are of plain lines, and have the
others by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from guardtrace_trainer.nano.authored import ACT, HINT, SAFE
from guardtrace_trainer.nano.model import HIDDEN
from guardtrace_trainer.nano.vocabulary import EMBEDDING_RMS, read_embeddings, token_ids
from guardtrace_trainer.nano.wording import BANK, DOUBTFUL, SUBTLE, fill

PLAIN, DOUBTFUL_FROM = 0.9, 0.7
"""Least chance that the readers give to a plain line's own class, and to a doubtful one's."""
FOLDS, REPEATS = 6, 3
FILTERS, INNER, LOST = 256, 128, 0.2
BATCH, LR, WEIGHT_DECAY = 64, 2e-3, 0.05
FEWEST_TOKENS = 3
GOALS = {"goals_harmless": 0, "goals_harmful": 1}
KINDS = {"neutral": SAFE, "safe": SAFE, "hint": HINT, "act": ACT}
PLACES = {
    "neutral": ("",),
    "safe": ("", "harmless/"),
    "hint": ("", "either/", "harmless/"),
    "act": ("", "either/", "harmless/"),
}
SENTENCES = {
    place + name: strength
    for kind, strength in KINDS.items()
    for place in PLACES[kind]
    for name in (f"{kind}_frames", f"think_{kind}")
}
"""Strength of each bank's sentences."""
ANSWERS = {"answers_neutral": SAFE, "answers_refuse": SAFE}
SEEN_TIMES = {"goals": 6, "sentences": 4}
"""How often a line is read in training, its slots filled anew each time."""
SAID = 3
"""How often a line is judged, likewise."""


class Line(NamedTuple):
    """A line of a bank, and its class."""

    bank: str
    text: str
    label: int


Say = Callable[[str, random.Random], str]


class Reader(nn.Module):
    """Three words at a time over the frozen embeddings, then the mean and the most of each filter."""

    words: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("words", read_embeddings() / EMBEDDING_RMS)
        self.filters = nn.Conv1d(HIDDEN, FILTERS, 3, padding=1)
        self.head = nn.Sequential(nn.Dropout(LOST), nn.Linear(2 * FILTERS, INNER), nn.GELU(), nn.Linear(INNER, classes))

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        """Logits [texts, classes]."""
        rows = [token_ids(text) for text in texts]
        length = max(FEWEST_TOKENS, *map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        there = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in rows])[..., None]
        found = F.gelu(self.filters((F.embedding(ids, self.words) * there).transpose(1, 2))).transpose(1, 2) * there
        logits: torch.Tensor = self.head(torch.cat([found.sum(1) / there.sum(1), found.amax(1)], 1))
        return logits


def part(log: Callable[[str], None]) -> dict[str, tuple[int, int, int]]:
    """Judge every line of the banks and move it where it belongs: (plain, doubtful, subtle) lines of each bank. Where a
    line lay before doesn't count."""
    goals, sentences = _lines(GOALS), _lines(SENTENCES | ANSWERS)

    def filled(text: str, rng: random.Random) -> str:
        return fill(text.replace("\\n", "\n"), rng, False, rng.choice(goals).text)

    judged = [
        *zip(goals, chances(goals, lambda text, _: text, SEEN_TIMES["goals"], log), strict=True),
        *zip(sentences, chances(sentences, filled, SEEN_TIMES["sentences"], log), strict=True),
    ]
    found = {(line.bank, line.text): chance for line, chance in judged}
    return {name: _write(name, found) for name in (*GOALS, *SENTENCES, *ANSWERS)}


def chances(lines: Sequence[Line], say: Say, times: int, log: Callable[[str], None]) -> list[float]:
    """The chance of each line's own class, as readers see it that learned from other lines: the mean of theirs."""
    torch.set_num_threads(1)
    found = [0.0] * len(lines)
    for repeat in range(REPEATS):
        order = list(range(len(lines)))
        random.Random(repeat).shuffle(order)
        for fold in range(FOLDS):
            rng = random.Random(f"{repeat} {fold}")
            torch.manual_seed(repeat * FOLDS + fold)
            asked = order[fold::FOLDS]
            others = [lines[at] for number, at in enumerate(order) if number % FOLDS != fold]
            reader = _learn(others * times, say, rng)
            for at, chance in zip(asked, _judge(reader, [lines[at] for at in asked], say, rng), strict=True):
                found[at] += chance / REPEATS
            log(f"readers: {repeat * FOLDS + fold + 1} of {REPEATS * FOLDS}")
    return found


def _learn(lines: list[Line], say: Say, rng: random.Random) -> Reader:
    reader = Reader(1 + max(line.label for line in lines))
    optimizer = torch.optim.AdamW(reader.parameters(), LR, weight_decay=WEIGHT_DECAY)
    rng.shuffle(lines)
    steps = len(lines) // BATCH
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / steps)
        batch = lines[step * BATCH : (step + 1) * BATCH]
        logits = reader([say(line.text, rng) for line in batch])
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.tensor([line.label for line in batch])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return reader.eval()


@torch.no_grad()
def _judge(reader: Reader, lines: Sequence[Line], say: Say, rng: random.Random) -> Iterable[float]:
    for line in lines:
        chances = reader([say(line.text, rng) for _ in range(SAID)]).softmax(1)
        yield float(chances[:, line.label].mean())


def _lines(banks: dict[str, int]) -> list[Line]:
    return [Line(name, text, label) for name, label in banks.items() for text in sorted(_all(name))]


def _all(name: str) -> list[str]:
    paths = (folder / f"{name}.txt" for folder in (BANK, DOUBTFUL, SUBTLE))
    return [line for path in paths if path.exists() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _write(name: str, chances: Mapping[tuple[str, str], float]) -> tuple[int, int, int]:
    parts: tuple[list[str], list[str], list[str]] = [], [], []
    for line in _all(name):
        chance = chances[name, line]
        parts[0 if chance >= PLAIN else 1 if chance >= DOUBTFUL_FROM else 2].append(line)
    for folder, lines in zip((BANK, DOUBTFUL, SUBTLE), parts, strict=True):
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    plain, doubtful, subtle = map(len, parts)
    return plain, doubtful, subtle
