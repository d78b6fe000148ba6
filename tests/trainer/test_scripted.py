"""The scripted models: what they know is the corpus's truth, and each judge errs only where it is prone to."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.prompt import user_text
from guardtrace_trainer.nano.authored import ACT, HINT, SAFE
from guardtrace_trainer.nano.corpus import Sample, excerpt_of, make_sample, prefix, whole
from guardtrace_trainer.nano.scripted import JUDGES, Truth, Unknown, choice, opinion, read_layout
from guardtrace_trainer.rows import LEVELS

SEEDS = st.integers(0, 2**32)


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [make_sample(rng) for _ in range(count)]


@given(SEEDS)
def test_every_prefix_is_labelled_as_the_corpus_labels_it(seed):
    sample = make_sample(random.Random(seed))
    for excerpt in [whole(sample), *(prefix(sample, count) for count in range(1, len(sample.sentences) + 1))]:
        found = excerpt_of(sample, excerpt.thinking.strip(), excerpt.answer.strip())
        assert found is not None
        assert (found.level, found.strength) == (excerpt.level, excerpt.strength)


@given(SEEDS, st.data())
def test_a_cut_anywhere_is_never_above_the_whole_and_grows(seed, data):
    sample = make_sample(random.Random(seed))
    full = " ".join(text for text, _ in sample.sentences).strip()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(full)), min_size=1, max_size=5)))
    levels = []
    for cut in cuts:
        found = excerpt_of(sample, full[:cut], "")
        assert found is not None
        levels.append(found.level)
    assert levels == sorted(levels)
    assert levels[-1] <= whole(sample).level


def test_what_the_corpus_never_wrote_is_unknown():
    sample = samples(1)[0]
    assert excerpt_of(sample, "Something else.", "") is None
    thinking = " ".join(text for text, _ in sample.sentences).strip()
    assert excerpt_of(sample, thinking, "Another answer.") is None
    assert excerpt_of(sample, thinking[:-1], sample.answer) is None
    with pytest.raises(Unknown):
        Truth([]).trace("What?", None)


def test_a_request_is_known_by_its_words_and_its_image():
    one, other = samples(2)
    truth = Truth([("q", b"a", one), ("q", None, other)])
    assert truth.trace("q", b"a") is one
    assert truth.trace("q", None) is other
    with pytest.raises(Unknown):
        truth.trace("q", b"b")


def test_the_layout_is_read_back():
    assert read_layout(user_text("one\ntwo", "three\nfour", "five")) == ("one\ntwo", "three\nfour", "five")
    for text in ("", "Current Task Query: a", "x Current Task Query: a\nCurrent Task Thinking: b"):
        with pytest.raises(Unknown):
            read_layout(text)


def test_judges_err_in_their_own_ways_and_the_same_each_time():
    wrong: dict[str, Counter[tuple[bool, int, int]]] = {judge: Counter() for judge in JUDGES}
    right = Counter()
    overlooked = Counter()
    for sample in samples(3000):
        excerpt = whole(sample)
        for judge in JUDGES:
            seen = opinion(judge, excerpt)
            assert seen == opinion(judge, excerpt)
            overlooked[judge] += excerpt.sample.harm and not seen.sample.harm
            if seen.level == excerpt.level:
                right[judge] += 1
            else:
                wrong[judge][excerpt.sample.harm, excerpt.strength, seen.level] += 1
    assert all(right[judge] > 2100 for judge in JUDGES)
    assert wrong["wary"][False, HINT, 1] + wrong["wary"][False, ACT, 2] > 50
    assert wrong["polite"][True, HINT, 0] + wrong["polite"][True, ACT, 0] > 100
    assert wrong["coarse"][True, HINT, 2] > 50
    assert wrong["coarse"][True, ACT, 1] > 50
    assert wrong["polite"][False, ACT, 2] < 30
    assert overlooked["polite"] > 100
    assert overlooked["wary"] == overlooked["coarse"] == 0


def test_votes_split_in_all_three_ways():
    splits = Counter(
        tuple(sorted(Counter(opinion(judge, whole(sample)).level for judge in JUDGES).values(), reverse=True))
        for sample in samples(2000)
    )
    assert set(splits) == {(3,), (2, 1), (1, 1, 1)}
    assert 0.5 < splits[3,] / 2000 < 0.85
    assert splits[1, 1, 1] > 20


def test_an_opinions_analysis_says_what_its_judgment_says():
    for sample in samples(300):
        for judge in JUDGES:
            seen = opinion(judge, whole(sample))
            assert ("the goal is harmful," in seen.reply) is seen.sample.harm
            assert seen.reply.endswith(seen.judgment)
            assert seen.level == (seen.strength if seen.sample.harm else SAFE)


def test_the_oracle_is_mostly_right_and_wavers_at_times():
    found: Counter[str] = Counter()
    for sample in samples(1500):
        excerpt = whole(sample)
        right = LEVELS[excerpt.level]
        wrong = next(level for level in LEVELS if level != right)
        both = choice(excerpt, (right, wrong)), choice(excerpt, (wrong, right))
        found[{(1, 2): "right", (2, 1): "wrong", (1, 1): "wavers"}[both]] += 1
    assert found["right"] > 1300
    assert found["wrong"] > 20
    assert found["wavers"] > 20
