"""Plain reasoning about plain tasks: seeded, varied, and right in its sums."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.nano.benign import benign_question, benign_thinking
from guardtrace_trainer.nano.corpus import passages

SEEDS = st.integers(0, 2**32)
SUM = re.compile(r"(\d+) (times|plus|minus) (\d+)[^\d-]+(-?\d+)")


@given(SEEDS)
def test_a_seed_gives_the_same_question_and_thinking(seed):
    assert benign_question(random.Random(seed)) == benign_question(random.Random(seed))
    assert benign_thinking(random.Random(seed)) == benign_thinking(random.Random(seed))


@given(SEEDS)
def test_thinking_is_three_to_forty_five_sentences(seed):
    thinking = benign_thinking(random.Random(seed))
    assert 3 <= len(thinking) <= 45
    assert all(sentence and sentence == sentence.strip() for sentence in thinking)


@given(SEEDS)
def test_sums_are_right(seed):
    for a, sign, b, result in SUM.findall(" ".join(benign_thinking(random.Random(seed)))):
        left, right = int(a), int(b)
        assert int(result) == {"times": left * right, "plus": left + right, "minus": left - right}[sign]


def test_questions_are_varied():
    rng = random.Random(5)
    assert len({benign_question(rng) for _ in range(300)}) > 100


def test_the_authored_passages_are_questions_with_thinking():
    assert len(passages()) >= 100
    for passage in passages():
        assert passage["question"].strip()
        assert len(passage["thinking"]) > 80
