"""The synthetic corpus: labels follow from harm and the strongest sentence, held-out lines stay out of training."""

from __future__ import annotations

import itertools
import random
import re

from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.reply import parse_reply
from guardtrace_trainer.nano import pictograms, render
from guardtrace_trainer.nano.authored import ACT, SAFE
from guardtrace_trainer.nano.corpus import (
    CUES,
    LABELS,
    Excerpt,
    Sample,
    make_sample,
    prefix,
    random_excerpt,
    whole,
)
from guardtrace_trainer.nano.wording import bank, goals, questions, subtle

SEEDS = st.integers(0, 2**32)
APART = ("either/", "harmless/")


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
    for (offset, strength, own), (text, marked) in zip(excerpt.ends, sample.sentences, strict=True):
        assert excerpt.thinking[:offset].endswith(text)
        assert strength >= own == marked


@given(samples(), SEEDS)
def test_a_random_excerpt_is_a_beginning_and_never_above_the_whole(sample, seed):
    excerpt = random_excerpt(sample, random.Random(seed))
    assert excerpt.thinking
    assert whole(sample).thinking.startswith(excerpt.thinking)
    assert excerpt.answer in ("", sample.answer)
    assert excerpt.level <= whole(sample).level
    assert excerpt.strength >= max((strength for _, strength, _ in excerpt.ends), default=SAFE)


@given(samples(), SEEDS)
def test_the_reply_is_read_as_its_label_by_the_proxys_own_reader(sample, seed):
    excerpt = random_excerpt(sample, random.Random(seed))
    assert parse_reply(excerpt.reply).level.label == LABELS[excerpt.level]
    assert parse_reply(excerpt.judgment).level.label == LABELS[excerpt.level]


@given(samples())
def test_no_slot_is_left_open(sample):
    for text in (sample.question, sample.answer, *(text for text, _ in sample.sentences)):
        assert not re.search(
            r"(?<![\w}])\{(op|v2?|p2?|t2?|n|goal|thing2?|person2?|place2?|time2?|do2?|doing2?)\}", text
        )


@given(SEEDS, st.sampled_from(CUES))
def test_the_cue_says_where_the_harm_stands(seed, cue):
    sample = make_sample(random.Random(seed), cue=cue)
    assert sample.cue == cue
    harmful = {*render.HARMFUL_WORDS, *pictograms.HARMFUL_PICTOGRAMS}
    shown = sample.picture is not None and bool(harmful & set(sample.picture.words))
    assert shown is (sample.harm and cue != "text")
    if cue == "pictogram":
        assert sample.picture.kind == "pictogram"
    if cue == "words":
        assert sample.picture.kind == "words"


@given(SEEDS)
def test_training_never_uses_held_out_lines(seed):
    sample = make_sample(random.Random(seed))
    names = ("think_safe", *(f"{where}think_{kind}" for where in ("", *APART) for kind in ("hint", "act")))
    kept = {line for name in names for line in bank(name, held_out=True)}
    held_out = {*bank("goals_harmful", held_out=True), *bank("goals_harmless", held_out=True)}
    assert not kept & {text for text, _ in sample.sentences}
    assert sample.goal not in held_out  # as a part of a longer one it may occur


def test_no_held_out_goal_is_wanted_by_a_question_of_training():
    trained = {*goals(True), *goals(False)}
    banks = ("goals_harmful", "goals_harmless")
    held_out = {line for name in banks for line in (*bank(name, held_out=True), *subtle(name))}
    assert not trained & held_out


def test_written_questions_are_drawn_from_their_own_side():
    rng = random.Random(9)
    written = {text for harm in (True, False) for _, text in questions(harm)}
    held_out = {text for harm in (True, False) for _, text in questions(harm, held_out=True)}
    trained = [make_sample(rng, cue="text").question for _ in range(1000)]
    assert 100 < sum(any(text in question for text in written) for question in trained) < 200
    assert not any(text in question for text in held_out for question in trained)
    for _ in range(50):
        sample = make_sample(rng, held_out=True, cue="text", of="written")
        assert any((sample.goal, text) in questions(sample.harm, True) and text in sample.question for text in held_out)


@given(SEEDS, st.sampled_from(["frames", "lines", "both"]))
def test_held_out_samples_use_held_out_wording_alone(seed, wording):
    sample = make_sample(random.Random(seed), held_out=True, cue="text", wording=wording)
    kinds = ("neutral", "safe", "hint", "act")
    names = [name for kind in kinds for name in (f"think_{kind}", f"{kind}_frames")]
    names += [f"{where}{name}" for where in APART for name in ("think_hint", "think_act", "hint_frames", "act_frames")]
    training = {line for name in names for line in bank(name) if "{" not in line}
    assert not training & {text for text, _ in sample.sentences}


@given(SEEDS, st.sampled_from(CUES[1:]))
def test_where_the_harm_is_in_an_image_no_sentence_gives_it_away(seed, cue):
    sample = make_sample(random.Random(seed), cue=cue, wording="lines")
    either = {line for kind in ("hint", "act") for line in bank(f"either/think_{kind}")}
    kinds = ("safe", "hint", "act")
    told = {line for kind in kinds for where in ("", "harmless/") for line in bank(f"{where}think_{kind}")}
    assert not {text for text, _ in sample.sentences} & (told - either - set(bank("think_neutral")))


@given(SEEDS)
def test_a_vague_request_names_no_goal_and_the_thinking_tells(seed):
    sample = make_sample(random.Random(seed), held_out=True, cue="text", of="vague", wording="lines")
    assert any(text in sample.question for text in bank("vague", held_out=True))
    where = "" if sample.harm else "harmless/"
    telling = [line for kind in ("safe", "hint", "act") for line in bank(f"{where}think_{kind}", held_out=True)]
    shapes = [re.sub(r"\\{\w+\\}", ".+", re.escape(line)) for line in telling]
    said = [*(text for text, _ in sample.sentences), sample.answer]
    assert any(re.match(shape, text, re.IGNORECASE) for shape in shapes for text in said)


def test_all_labels_and_cues_are_well_represented():
    rng = random.Random(7)
    drawn = [make_sample(rng) for _ in range(1500)]
    levels = [whole(sample).level for sample in drawn]
    assert all(levels.count(level) > 150 for level in (0, 1, 2))
    assert all(sum(sample.cue == cue for sample in drawn) > 100 for cue in CUES)
    harmless_steps = sum(not s.harm and max(strength for _, strength in s.sentences) == ACT for s in drawn)
    assert harmless_steps > 150
