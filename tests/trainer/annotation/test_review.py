"""Experts: three votes an item, the majority counts, and what becomes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.annotation.review import (
    Review,
    decide,
    expert_pairs,
    in_shown_order,
    keep_reviews,
    read_reviews,
    review_of,
    take_copies,
    tally,
    version,
)
from guardtrace_trainer.annotation.stratify import Pick
from guardtrace_trainer.rows import LEVELS, Labelled, Pair, RowError, read_rows, write_rows
from guardtrace_trainer.steps import Journal, StepError
from tests.trainer.corpora import annotations, vote

level = st.sampled_from(LEVELS)
orders = st.permutations(LEVELS)
ITEM = vote(0, 0, 0.5, 1)


def reviews(item, *levels):
    return [review_of(item, f"expert {number}", level) for number, level in enumerate(levels)]


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ((), "waiting"),
        ((1, 1), "waiting"),
        ((1, 1, 1), 1),
        ((0, 0.5, 0.5), 0.5),
        ((0, 0.5, 1), "divided"),
        ((0, 0.5, 1, 1), "divided"),
        ((0, 0, 1, 1), "divided"),
        ((0, 0.5, 1, 1, 1), 1),
        ((0, 0, 0.5, 1, 1), "divided"),
    ],
)
def test_the_count(given, outcome):
    found = tally([ITEM], reviews(ITEM, *given))
    assert found.waiting == ([ITEM.id] if outcome == "waiting" else [])
    assert found.divided == ([ITEM.id] if outcome == "divided" else [])
    assert found.levels == ({} if isinstance(outcome, str) else {ITEM.id: outcome})


@given(st.lists(level, max_size=7), st.randoms())
def test_the_count_is_sound_whatever_the_order(given, random):
    votes = reviews(ITEM, *given)
    random.shuffle(votes)
    found = tally([ITEM], votes)
    assert len(found.levels) + len(found.waiting) + len(found.divided) == 1
    if found.levels:
        assert len(given) >= 3
        assert 2 * Counter(given)[found.levels[ITEM.id]] > len(given)


def test_an_expert_has_one_vote():
    twice = [review_of(ITEM, "Kim", 0), review_of(ITEM, " kim ", 1), review_of(ITEM, "Ola", 1)]
    assert tally([ITEM], twice).waiting == [ITEM.id]


def test_votes_on_other_text_dont_count():
    changed = vote(0, 0, 0.5, 1, thinking="Something else was thought here.")
    assert tally([changed], reviews(ITEM, 1, 1, 1)).waiting == [ITEM.id]
    assert version(ITEM) == version(vote(0, votes=annotations(0, 0.5, 1)[::-1]))


@given(orders, level, st.integers(0, 9))
def test_chosen_is_the_experts_level_and_rejected_the_farthest(levels, decided, seed):
    item = vote(0, *levels)
    (pair,) = expert_pairs(item, decided, Pick(seed))
    assert (pair.id, pair.origin, pair.agreement) == (item.id, "expert", "1:1:1")
    assert pair.chosen.level == decided
    assert abs(pair.rejected.level - decided) == (0.5 if decided == 0.5 else 1.0)
    assert {pair.chosen, pair.rejected} < set(item.votes)

    both = expert_pairs(item, decided, Pick(seed), "both")
    assert [one.chosen for one in both] == [pair.chosen] * 2
    assert {one.rejected for one in both} == set(item.votes) - {pair.chosen}
    assert len({one.id for one in both} | {item.id}) == 3
    assert pair.rejected in {one.rejected for one in both}


def test_of_two_that_are_equally_far_either_may_go():
    rejected = Counter(expert_pairs(vote(n, 0, 0.5, 1), 0.5, Pick())[0].rejected.level for n in range(100))
    assert min(rejected[0], rejected[1]) > 30


def test_the_shown_order_says_nothing_of_the_judges():
    firsts = Counter(in_shown_order(vote(number, 0, 0.5, 1))[0].judge for number in range(300))
    assert min(firsts[judge] for judge in "abc") > 70
    assert in_shown_order(ITEM) == in_shown_order(vote(0, votes=ITEM.votes[::-1]))


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_rows(tmp_path / "experts.jsonl", [vote(number, 0, 0.5, 1) for number in range(6)])
    return tmp_path


def test_decided_items_go_by_their_split(corpus):
    items = [vote(number, 0, 0.5, 1) for number in range(6)]
    said = [(0, 0, 1), (1, 1, 0), (0, 0.5, 1), (0, 1), (0.5, 0.5, 0.5), ()]
    for item, levels in zip(items, said, strict=True):
        keep_reviews(corpus, reviews(item, *levels))
    found, manifest = decide(corpus)
    pairs = read_rows(corpus / "expert_pairs.jsonl", Pair)
    assert [(row.id, row.chosen.level, row.rejected.level) for row in pairs] == [
        (items[0].id, 0, 1),
        (items[1].id, 1, 0),
    ]
    (test,) = read_rows(corpus / "expert_test.jsonl", Labelled)
    assert (test.id, test.split, test.origin, test.annotation.level) == (items[4].id, "test", "expert", 0.5)
    assert found.divided == [items[2].id]
    assert manifest.counts == {
        "items": 6,
        "decided": 3,
        "waiting": 2,
        "divided": [items[2].id],
        "votes": 14,
        "votes_on_other_versions": 0,
        "levels": {"0": 1, "0.5": 1, "1": 1},
    }

    keep_reviews(corpus, [review_of(items[3], "expert 9", 1)])
    assert decide(corpus, reject="both")[1].counts["decided"] == 4
    assert len(read_rows(corpus / "expert_pairs.jsonl", Pair)) == 6


def test_a_vote_that_is_changed_and_one_that_is_repeated(corpus):
    keep_reviews(corpus, [review_of(ITEM, "Kim", 0)])
    keep_reviews(corpus, [review_of(ITEM, "Kim", 0)])
    assert (corpus / "reviews.jsonl").read_bytes().count(b"\n") == 1
    keep_reviews(corpus, [review_of(ITEM, "Kim", 1)])
    assert [one.level for one in read_reviews(corpus)] == [1]


def test_items_on_which_judges_agree_are_refused(tmp_path):
    write_rows(tmp_path / "experts.jsonl", [vote(1, 0, 0.5, 1), vote(0, 0, 0, 1)])
    with pytest.raises(RowError, match=r"experts\.jsonl, line 2, row q000-text-m, field votes: expected three differ"):
        decide(tmp_path)


def test_a_broken_line_of_votes(corpus):
    (corpus / "reviews.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(StepError, match=r"reviews\.jsonl, line 1: "):
        decide(corpus)


def test_what_is_withdrawn_in_a_copy_counts_no_more(tmp_path):
    ann, bo, cy = reviews(ITEM, 1, 1, 0)
    keep_reviews(tmp_path, [cy])  # on the screen
    take_copies(tmp_path, [ann, bo])
    assert read_reviews(tmp_path) == [cy, ann, bo]
    corrected = review_of(ITEM, bo.expert, 0.5)
    take_copies(tmp_path, [corrected])
    assert read_reviews(tmp_path) == [cy, corrected]
    take_copies(tmp_path, [])
    assert read_reviews(tmp_path) == [cy]


def test_copies_are_not_taken_while_somebody_votes(tmp_path):
    with Journal(tmp_path / "reviews.jsonl", Review), pytest.raises(StepError, match="is in use"):
        take_copies(tmp_path, reviews(ITEM, 1))


def test_without_copies_nothing_is_written(tmp_path):
    take_copies(tmp_path, [])
    assert not list(tmp_path.iterdir())
