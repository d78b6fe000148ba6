"""The words of the corpus: what is held out stays apart, and slots are filled from their own lists."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.nano import wording
from guardtrace_trainer.nano.authored import authored
from guardtrace_trainer.nano.wording import BANK, SLOT, Voice, bank, fill, fillers, goals, passages, questions

KINDS = ("neutral", "safe", "hint", "act")
LINES = tuple(f"think_{kind}" for kind in KINDS)
FRAMES = tuple(f"{kind}_frames" for kind in KINDS)
APART_LINES = tuple(f"{where}/think_{kind}" for where in ("either", "harmless") for kind in ("hint", "act"))
APART_FRAMES = tuple(f"{where}/{kind}_frames" for where in ("either", "harmless") for kind in ("hint", "act"))
REMARKS = ("harmless/think_safe", "harmless/safe_frames")
QUESTIONS = ("questions_harmful", "questions_harmless")
GOALS = ("goals_harmful", "goals_harmless")
BANKS = ("frames", "image_frames", *GOALS, *QUESTIONS, *LINES, *FRAMES, *APART_LINES, *APART_FRAMES, REMARKS[0])
SLOTS = ("thing", "person", "place", "time", "do", "doing")
HANDWRITTEN = Path(__file__).parents[1] / "data" / "handwritten"
SEEDS = st.integers(0, 2**32)


def plain(line: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", line.lower()))


@pytest.mark.parametrize("name", BANKS)
def test_held_out_lines_are_never_training_lines(name):
    held_out, training = bank(name, held_out=True), bank(name)
    assert len(held_out) >= 20
    assert len(training) > 3 * len(held_out)
    assert not {plain(line) for line in held_out if len(plain(line)) > 2} & {plain(line) for line in training}


def test_held_out_lines_are_never_authored_sentences_or_questions():
    sentences = {text for trace in authored(BANK) for text, _ in trace.sentences}
    questions = {trace.question for trace in authored(BANK)}
    for name in BANKS:
        common = set(bank(name, held_out=True)) & (sentences | questions)
        # A word like "Hmm." is nobody's template.
        assert all(name == "think_neutral" and " " not in line for line in common)
    assert not set(wording.OPENINGS) & set(wording.HELD_OUT_OPENINGS)


def test_training_uses_no_hand_written_sentence():
    rows = [json.loads(line) for half in ("dev", "test") for line in (HANDWRITTEN / f"{half}.jsonl").open()]
    written = {plain(text) for row in rows for text in (row["question"], row["answer"], *row["thinking_sentences"])}
    written = {words for words in written if len(words) > 2}
    lines = [line for name in (*LINES, *FRAMES, *APART_LINES, *APART_FRAMES, *REMARKS) for line in bank(name)]
    lines += [text for harm in (True, False) for _, text in questions(harm)]
    texts = [text for trace in authored(BANK) for text, _ in trace.sentences]
    assert not written & {plain(text) for text in (*lines, *texts)}


def test_written_questions_have_goals_of_their_own():
    pairs = [pair for harm in (True, False) for held_out in (False, True) for pair in questions(harm, held_out)]
    assert len({goal for goal, _ in pairs}) > 0.98 * len({text for _, text in pairs}) > 900
    assert all(goal and text and not SLOT.search(goal + text) for goal, text in pairs)
    assert {goal for goal, _ in questions(True)} <= set(goals(True))
    assert not set(goals(True)) & set(goals(False))


@pytest.mark.parametrize("name", [*FRAMES, *APART_FRAMES, REMARKS[1]])
def test_frames_have_slots_that_can_be_filled(name):
    known = {*SLOTS, "goal", "n", "op", "t", "p", "v"}
    for frame in (*bank(name), *bank(name, held_out=True)):
        slots = {slot.removesuffix("2") for slot in SLOT.findall(frame)}
        assert slots
        assert slots <= known


@pytest.mark.parametrize("slot", SLOTS)
def test_fillers_are_many_and_have_no_slots(slot):
    assert len(set(fillers(slot))) >= 100
    assert not any("{" in phrase for phrase in fillers(slot))


@given(SEEDS, st.booleans())
def test_filling_takes_openings_of_its_own_side(seed, held_out):
    text = fill("{op}, {v} the {p} with the {t}, then {v2} the {p2} {n} times.", random.Random(seed), held_out)
    openings = wording.HELD_OUT_OPENINGS if held_out else wording.OPENINGS
    assert text.split(",")[0] in openings
    assert "{" not in text


@given(SEEDS)
def test_twins_differ_and_a_sentence_begins_with_a_capital(seed):
    text = fill("{do} and {do2}; {goal}", random.Random(seed), False, "bake a cake")
    first, second = text.removesuffix("; bake a cake").lower().split(" and ", 1)
    assert first != second
    assert text[0].isupper()


@given(SEEDS, st.sampled_from(KINDS), st.booleans())
def test_a_voice_keeps_to_its_wording(seed, kind, held_out):
    line = Voice(held_out, "lines", "bake a cake", harm=True).say(kind, random.Random(seed))
    assert line in wording._lines_of(f"think_{kind}", held_out) or "{" not in line
    framed = Voice(held_out, "frames", "bake a cake", harm=True).say(kind, random.Random(seed))
    assert framed not in bank(f"think_{kind}", held_out)


@given(SEEDS, st.sampled_from(["hint", "act"]), st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_a_voice_says_what_it_is_for_or_nothing_of_it(seed, kind, held_out, harm, either):
    line = Voice(held_out, "lines", "bake a cake", harm, either).say(kind, random.Random(seed))
    where = "either/" if either else "" if harm else "harmless/"
    known = wording._lines_of(f"{where}think_{kind}", held_out)
    assert line in known or any("{" in text and text.split("{")[0] in line for text in known)


def test_what_shows_its_purpose_shows_no_other():
    for kind in ("hint", "act"):
        for name in (f"think_{kind}", f"{kind}_frames"):
            texts = [
                {plain(line) for held_out in (False, True) for line in bank(where + name, held_out)}
                for where in ("", "either/", "harmless/")
            ]
            assert not texts[0] & texts[1]
            assert not texts[0] & texts[2]
            assert not texts[1] & texts[2]


def test_passages_are_long_and_plain():
    assert len(passages()) >= 300
    assert all(passage["question"] and len(passage["thinking"]) > 100 for passage in passages())
