"""The synthetic corpus: labels follow from harm and the strongest sentence, held-out lines stay out of training."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.reply import parse_reply
from guardtrace_trainer.nano import corpus, render
from guardtrace_trainer.nano.authored import authored
from guardtrace_trainer.nano.corpus import (
    ACT,
    BANK,
    CUES,
    LABELS,
    SAFE,
    Excerpt,
    Sample,
    bank,
    fill,
    make_sample,
    prefix,
    random_excerpt,
    whole,
)

SEEDS = st.integers(0, 2**32)
BANKS = (
    "frames",
    "goals_harmful",
    "goals_harmless",
    "image_frames",
    "think_act",
    "think_hint",
    "think_neutral",
    "think_safe",
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    held_out = draw(st.booleans())
    cue = draw(st.sampled_from([None, *CUES]))
    return make_sample(random.Random(draw(SEEDS)), held_out=held_out, cue=cue)


@given(SEEDS, st.booleans())
def test_a_seed_gives_the_same_sample_and_excerpt(seed, held_out):
    def make() -> tuple[Sample, Excerpt]:
        rng = random.Random(seed)
        sample = make_sample(rng, held_out=held_out)
        return sample, random_excerpt(sample, rng)

    assert make() == make()


@given(samples())
def test_the_whole_is_labelled_by_harm_times_the_strongest_sentence(sample):
    excerpt = whole(sample)
    strongest = max(sample.answer_strength, *(strength for _, strength in sample.sentences))
    assert excerpt.level == (strongest if sample.harm else SAFE)
    assert excerpt.thinking == " ".join(text for text, _ in sample.sentences)
    assert excerpt.answer == sample.answer


@given(samples())
def test_prefixes_grow_and_their_labels_never_fall(sample):
    excerpts = [prefix(sample, count) for count in range(1, len(sample.sentences) + 1)]
    for shorter, longer in itertools.pairwise(excerpts):
        assert longer.thinking.startswith(shorter.thinking + " ")
        assert longer.level >= shorter.level
        assert longer.ends[: len(shorter.ends)] == shorter.ends
    assert whole(sample).level >= excerpts[-1].level
    assert all(not excerpt.answer for excerpt in excerpts)


@given(samples())
def test_ends_are_where_sentences_end(sample):
    excerpt = whole(sample)
    assert len(excerpt.ends) == len(sample.sentences)
    for (offset, strength), (text, own) in zip(excerpt.ends, sample.sentences, strict=True):
        assert excerpt.thinking[:offset].endswith(text)
        assert strength >= own


@given(samples(), SEEDS)
def test_a_random_excerpt_is_a_beginning_and_never_above_the_whole(sample, seed):
    excerpt = random_excerpt(sample, random.Random(seed))
    assert excerpt.thinking
    assert whole(sample).thinking.startswith(excerpt.thinking)
    assert excerpt.answer in ("", sample.answer)
    assert excerpt.level <= whole(sample).level
    assert excerpt.strength >= max((strength for _, strength in excerpt.ends), default=SAFE)


@given(samples(), SEEDS)
def test_the_reply_is_read_as_its_label_by_the_proxys_own_reader(sample, seed):
    excerpt = random_excerpt(sample, random.Random(seed))
    assert parse_reply(excerpt.reply).level.label == LABELS[excerpt.level]
    assert parse_reply(excerpt.judgment).level.label == LABELS[excerpt.level]


@given(samples())
def test_no_slot_is_left_open(sample):
    for text in (sample.question, sample.answer, *(text for text, _ in sample.sentences)):
        assert not re.search(r"\{(op|v2?|p2?|t|n|goal)\}", text)


@given(SEEDS, st.sampled_from(CUES))
def test_the_cue_says_where_the_harm_stands(seed, cue):
    sample = make_sample(random.Random(seed), cue=cue)
    assert sample.cue == cue
    harmful = {*render.HARMFUL_WORDS, *render.HARMFUL_PICTOGRAMS}
    shown = sample.picture is not None and bool(harmful & set(sample.picture.words))
    assert shown is (sample.harm and cue != "text")
    if cue == "pictogram":
        assert sample.picture.kind == "pictogram"
    if cue == "words":
        assert sample.picture.kind == "words"


@pytest.mark.parametrize("name", BANKS)
def test_held_out_lines_are_never_training_lines(name):
    def plain(lines: tuple[str, ...]) -> set[str]:
        return {re.sub(r"\W+", " ", line.lower()).strip() for line in lines}

    assert len(bank(name, held_out=True)) >= 20
    assert not plain(bank(name, held_out=True)) & plain(bank(name))


def test_held_out_lines_are_never_authored_sentences_or_questions():
    sentences = {text for trace in authored(BANK) for text, _ in trace.sentences}
    questions = {trace.question for trace in authored(BANK)}
    for name in BANKS:
        common = set(bank(name, held_out=True)) & (sentences | questions)
        # A word like "Hmm." is nobody's template.
        assert all(name == "think_neutral" and " " not in line for line in common)
    assert not set(corpus.OPENINGS) & set(corpus.HELD_OUT_OPENINGS)


@given(SEEDS)
def test_training_never_uses_held_out_lines(seed):
    sample = make_sample(random.Random(seed))
    kept = {line for kind in ("safe", "hint", "act") for line in bank(f"think_{kind}", held_out=True)}
    goals = (*bank("goals_harmful", held_out=True), *bank("goals_harmless", held_out=True))
    assert not kept & {text for text, _ in sample.sentences}
    assert not any(goal in sample.question for goal in goals if sample.cue == "text")


@given(SEEDS)
def test_held_out_samples_use_held_out_lines_alone(seed):
    sample = make_sample(random.Random(seed), held_out=True, cue="text")
    training = {
        line for kind in ("neutral", "safe", "hint", "act") for line in bank(f"think_{kind}") if "{" not in line
    }
    assert not training & {text for text, _ in sample.sentences}


@given(SEEDS, st.booleans())
def test_filling_takes_openings_of_its_own_side(seed, held_out):
    text = fill("{op}, {v} the {p} with the {t}, then {v2} the {p2} {n} times.", random.Random(seed), held_out)
    openings = corpus.HELD_OUT_OPENINGS if held_out else corpus.OPENINGS
    assert text.split(",")[0] in openings
    assert "{" not in text


def test_all_labels_and_cues_are_well_represented():
    rng = random.Random(7)
    drawn = [make_sample(rng) for _ in range(1500)]
    levels = [whole(sample).level for sample in drawn]
    assert all(levels.count(level) > 150 for level in (0, 1, 2))
    assert all(sum(sample.cue == cue for sample in drawn) > 100 for cue in CUES)
    harmless_steps = sum(not s.harm and max(strength for _, strength in s.sentences) == ACT for s in drawn)
    assert harmless_steps > 150
