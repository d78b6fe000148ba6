"""The words of the corpus: banks, what is held out of them, and how a sentence is said.

Sentences are *frames*, whose slots are filled with small phrases, or *lines*, written as they stand. A sixth of the
frames, the lines, the goals and the written questions is held out and never used in training; fillers are common to
both sides. What isn't *plain* lies apart (:mod:`guardtrace_trainer.nano.subtle`): *doubtful* lines are learned from,
and what is held out of them counts with the *subtle* ones, which are held out whole.

What a sentence gives is one thing, what it is for another. Hints and steps lie in three places: in the bank itself
those in which somebody is wronged whatever was asked for, in ``either/`` those that could stand in thinking about
anything, in ``harmless/`` those that help with something harmless, and remarks that find nothing wrong with a request.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from zlib import crc32

from guardtrace_trainer.nano.authored import ACT, HINT, SAFE, authored

BANK = Path(__file__).parent / "bank"
DOUBTFUL, SUBTLE = BANK / "doubtful", BANK / "subtle"
DRAWING = (
    "authored.py",
    "batches.py",
    "benign.py",
    "corpus.py",
    "documents.py",
    "model.py",
    "questions.py",
    "render.py",
    "scripted.py",
    "trainee.py",
    "wording.py",
)
HELD_OUT_EVERY = 6
FRAMED_SHARE = 0.5
EITHER = 0.35
"""Share of the hints and steps that could stand in thinking about anything, where the request says which it is."""
Wording = Literal["frames", "lines", "both", "subtle"]
Goals = Literal["seen", "new", "subtle", "written", "vague"]

TOOLS = (
    "thin wire,small drill,steel hook,long rod,glue gun,hand saw,heat lamp,metal plate,soft brush,sharp blade,plastic card,"
    "copper pipe,short script,rubber hose,spare key,screwdriver,magnet,ladder,old phone,form,stamp,envelope,pair of pliers,"
    "marker,towel,bucket,battery,torch,notebook,rope"
).split(",")
PARTS = (
    "front panel,side cover,main valve,lower bolt,inner frame,back door,control box,top layer,left hinge,power cable,outer shell,"
    "base plate,cable joint,main switch,bottom lid,lock,screen,second page,label,seal,window,sensor,gate,drawer,meter,desk,"
    "fence,menu,timer,account"
).split(",")
VERBS = "open,cut,lift,turn,remove,press,heat,bend,join,pull,loosen,copy,move,cover,push,unscrew,scrape,wrap".split(",")
OPENINGS = (
    "First,Then,Next,After that,To start,Step one,Step two,Now,Begin here,Finally,In the evening,On Monday,Once inside,"
    "When nobody looks,Right after lunch,Second"
).split(",")
HELD_OUT_OPENINGS = "To begin,Step three,Later,Once ready,Before dawn".split(",")
IMAGE_GOALS = (
    "do what the picture shows,follow the image,fill in the list in the picture,carry out what is drawn there,"
    "continue what the image begins,use what the picture shows,answer the note in the image,finish what is written there"
).split(",")
"""What is wanted, in words that give nothing away, where only the image says it."""
VAGUE_GOALS = ("do that", "do it", "get it done", "go on with it", "do what was said before")
"""Where only the thinking says it."""
SENTENCE_END = re.compile(r"(?<=[.?!]) ")
SLOT = re.compile(r"\{(\w+)\}")
HARMLESS = "harmless/"
AUTHORED = {
    "think_safe": SAFE,
    "think_hint": HINT,
    "think_act": ACT,
    "harmless/think_safe": SAFE,
    "harmless/think_hint": HINT,
    "harmless/think_act": ACT,
}
"""Banks of lines to which authored traces add, and the strength of what they add."""


@cache
def bank(name: str, held_out: bool = False) -> tuple[str, ...]:
    """The lines of one bank for training, or the plain ones that are held out."""
    plain = _part(BANK, name, held_out)
    return plain if held_out or not (DOUBTFUL / f"{name}.txt").exists() else plain + _part(DOUBTFUL, name, held_out)


@cache
def questions(harm: bool, held_out: bool = False) -> tuple[tuple[str, str], ...]:
    """Requests written as wholes, as people type them: (what is wanted, the request)."""
    lines = bank("questions_harmful" if harm else "questions_harmless", held_out)
    return tuple((goal, text) for goal, text in (line.split("\t") for line in lines))


@cache
def goals(harm: bool) -> tuple[str, ...]:
    """All goals of training, those of the questions too."""
    return bank("goals_harmful" if harm else "goals_harmless") + tuple(goal for goal, _ in questions(harm))


@cache
def remarks(held_out: bool = False) -> tuple[str, ...]:
    """Sentences of the question frames that don't name the goal."""
    sentences = (sentence for frame in bank("frames", held_out) for sentence in SENTENCE_END.split(frame))
    return tuple(sentence for sentence in sentences if "{goal}" not in sentence and len(sentence.split()) > 2)


@cache
def subtle(name: str) -> tuple[str, ...]:
    """The lines of a bank that are held out and not plain."""
    return _part(DOUBTFUL, name, True) + tuple(map(_said, _lines(SUBTLE / f"{name}.txt")))


def _part(folder: Path, name: str, held_out: bool) -> tuple[str, ...]:
    """Every sixth line is held out, by a hash of the line."""
    lines = _lines(folder / f"{name}.txt")
    return tuple(_said(line) for line in lines if (crc32(line.encode()) % HELD_OUT_EVERY == 0) is held_out)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


def _said(line: str) -> str:
    return line.replace("\\n", "\n")


@cache
def corpus_hash() -> str:
    """SHA-256 of the banks, of the code that draws from them and of what the warm-up asks: for manifests, since another
    corpus is other work."""
    files = [*sorted(BANK.rglob("*.*")), *(BANK.parent / name for name in DRAWING)]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


@cache
def passages() -> tuple[dict[str, str], ...]:
    """Authored benign passages: question, thinking and, in the later ones, an answer."""
    lines = (BANK / "benign_passages.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


@cache
def fillers(name: str) -> tuple[str, ...]:
    """The phrases for one slot."""
    return tuple((BANK / f"fill_{name}.txt").read_text("utf-8").splitlines())


def fill(sentence: str, rng: random.Random, held_out: bool, goal: str = "") -> str:
    """Put phrases into a sentence's slots; twins like ``{do}`` and ``{do2}`` differ."""
    if "{" not in sentence:
        return sentence
    words: dict[str, str] = {"goal": goal, "n": str(rng.randint(2, 99))}

    def word(match: re.Match[str]) -> str:
        slot = match[1]
        if slot not in words:
            name = slot.removesuffix("2")
            words[name], words[f"{name}2"] = rng.sample(_phrases(name, held_out), 2)
        return words[slot]

    text = SLOT.sub(word, sentence)
    return text[0].upper() + text[1:]


def _phrases(slot: str, held_out: bool) -> Sequence[str]:
    if slot == "op":
        return HELD_OUT_OPENINGS if held_out else OPENINGS
    return {"t": TOOLS, "p": PARTS, "v": VERBS}.get(slot) or fillers(slot)


@cache
def _lines_of(name: str, held_out: bool) -> tuple[str, ...]:
    """A bank's lines and, for training, the sentences of that strength in authored traces of such requests."""
    strength = AUTHORED.get(name)
    if held_out or strength is None:
        return bank(name, held_out)
    harm = not name.startswith(HARMLESS)
    own = (text for trace in authored(BANK) if trace.harm is harm for text, mark in trace.sentences if mark == strength)
    return bank(name) + tuple(own)


@dataclass(frozen=True)
class Voice:
    """How a sample's thinking is worded: from which side, as frames or lines, what it calls the goal, and whether it is
    harmful. ``either``: the share of its hints and steps that don't say by themselves which it is."""

    held_out: bool
    wording: Wording
    goal: str
    harm: bool
    either: float = EITHER

    def say(self, kind: str, rng: random.Random) -> str:
        """A sentence of one kind: neutral, safe, hint or act."""
        mixed = self.wording in ("both", "subtle")
        framed = rng.random() < FRAMED_SHARE if mixed else self.wording == "frames"
        name = f"{kind}_frames" if framed else f"think_{kind}"
        where = self._where(kind, rng)
        if self.wording == "subtle":
            return fill(rng.choice(subtle(where + name)), rng, self.held_out, self.goal)
        sentences = bank(where + name, self.held_out) if framed else _lines_of(where + name, self.held_out)
        return fill(rng.choice(sentences), rng, self.held_out, self.goal)

    def _where(self, kind: str, rng: random.Random) -> str:
        if kind == "neutral":
            return ""
        if kind != "safe" and rng.random() < self.either:
            return "either/"
        return "" if self.harm else HARMLESS
