"""Subtle lines of the banks: found by readers that learned from the others, moved whole, and found again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano import subtle
from guardtrace_trainer.nano.subtle import ANSWERS, GOALS, PLACES, SENTENCES, Line, chances, part
from guardtrace_trainer.nano.wording import BANK, DOUBTFUL, SUBTLE, Voice, bank, fill
from guardtrace_trainer.nano.wording import subtle as subtle_lines

FOODS = "bread,soup,rice,cake,pasta,salad,cheese,fruit,tea,jam,stew,pie,beans,corn".split(",")
CRIMES = "steal,forge,smuggle,rob,kidnap,hack,blackmail,poison,bribe,burgle,stab,threaten,defraud,loot".split(",")
VICTIMS = "a shop,a bank,the museum,my rival,a stranger".split(",")


def quiet(_: str) -> None:
    return None


@pytest.fixture
def banks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Goals whose words tell their harm, one that doesn't fit its words, and a few sentences of each kind."""
    harmful = [f"{crime} {victim}" for crime in CRIMES for victim in VICTIMS]
    harmless = [f"{verb} {food}" for verb in ("cook", "bake", "taste", "serve", "share") for food in FOODS]
    told = {"neutral": "The user wants that", "safe": "I refuse that", "hint": "There are ways", "act": "First cut it"}
    places = [
        (kind, place, f"{place.strip('/')} {text}".strip()) for kind, text in told.items() for place in PLACES[kind]
    ]
    texts = {f"{place}{kind}_frames": [f"{text} {{n}} {food}" for food in FOODS] for kind, place, text in places}
    texts |= {f"{place}think_{kind}": [f"{text}, {food}." for food in FOODS] for kind, place, text in places}
    texts |= {"answers_neutral": ["Here you are."] * 2, "answers_refuse": ["I can't help with that."] * 2}
    texts |= {"goals_harmful": [*harmful, "bake corn bread"], "goals_harmless": harmless}
    for name, lines in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    monkeypatch.setattr(subtle, "BANK", tmp_path)
    monkeypatch.setattr(subtle, "DOUBTFUL", tmp_path / "doubtful")
    monkeypatch.setattr(subtle, "SUBTLE", tmp_path / "subtle")
    monkeypatch.setattr(subtle, "SEEN_TIMES", {"goals": 20, "sentences": 10})
    return tmp_path


def written(folder: Path) -> dict[str, list[str]]:
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8").splitlines() for path in folder.rglob("*.txt")}


def test_a_line_that_its_words_belie_is_moved_and_found_again(banks: Path) -> None:
    before = written(banks)
    counts = part(quiet)
    after = written(banks)
    assert "bake corn bread" in after["subtle/goals_harmful.txt"]
    assert sum(counts["goals_harmful"][1:]) < 10
    for name in (*GOALS, *SENTENCES, *ANSWERS):
        parts = [after[f"{folder}{name}.txt"] for folder in ("", "doubtful/", "subtle/")]
        assert tuple(map(len, parts)) == counts[name]
        assert sorted(itertools.chain(*parts)) == sorted(before[f"{name}.txt"])
    assert part(quiet) == counts
    assert written(banks).keys() == after.keys()
    assert {name: sorted(lines) for name, lines in written(banks).items()} == {
        name: sorted(lines) for name, lines in after.items()
    }


def test_no_reader_judges_a_line_that_it_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[set[str]] = []
    monkeypatch.setattr(subtle, "_learn", lambda lines, say, rng: learned.append({line.text for line in lines}))
    judged: list[set[str]] = []

    def judge(reader: object, lines: Iterable[Line], *_: object) -> list[float]:
        judged.append({line.text for line in lines})
        return [0.25] * len(judged[-1])

    monkeypatch.setattr(subtle, "_judge", judge)
    lines = [Line("goals_harmful", f"goal {number}", number % 2) for number in range(50)]
    assert chances(lines, lambda text, rng: text, 2, quiet) == [0.25] * 50
    assert len(learned) == subtle.FOLDS * subtle.REPEATS
    for known, asked in zip(learned, judged, strict=True):
        assert not known & asked
        assert len(known | asked) == 50


@pytest.mark.parametrize(
    "name", [name for name in (*GOALS, *SENTENCES) if not name.startswith(("either/", "harmless/"))]
)
def test_subtle_lines_lie_apart_and_are_the_fewer(name: str) -> None:
    learned, asked, apart = set(bank(name)), set(bank(name, held_out=True)), set(subtle_lines(name))
    assert 50 < len(apart) < len(learned)
    assert not learned & asked
    assert not apart & (learned | asked)
    assert {*learned, *asked, *apart} == {
        line.replace("\\n", "\n")
        for folder in (BANK, DOUBTFUL, SUBTLE)
        for line in (folder / f"{name}.txt").read_text("utf-8").splitlines()
    }


def test_doubtful_lines_are_learned_from_and_held_out_only_with_the_subtle_ones() -> None:
    doubtful = set((DOUBTFUL / "think_hint.txt").read_text("utf-8").splitlines())
    learned, apart = doubtful & set(bank("think_hint")), doubtful & set(subtle_lines("think_hint"))
    assert learned | apart == doubtful
    assert min(len(learned), len(apart)) > 20
    assert not doubtful & set(bank("think_hint", held_out=True))


def test_a_voice_says_subtle_sentences_only_when_it_is_asked_to() -> None:
    rng = random.Random(1)
    known = {fill(line, rng, True, "x") for line in subtle_lines("think_hint")}
    said = [Voice(True, "subtle", "x", harm=True).say("hint", rng) for _ in range(200)]
    assert sum(text in known for text in said) > 50
    assert not [
        text for text in (Voice(True, "lines", "x", harm=True).say("hint", rng) for _ in range(200)) if text in known
    ]
