"""The search for unsafe sentences: what it asks, what it redacts, and how many questions that takes."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.gate.localize import MAX_PIECES, Search

HIDE = "[hidden]"
ROOMY = sys.maxsize


def run(sentences: list[str], unsafe: set[int], *, continues: bool = False) -> tuple[Search, list[str]]:
    """An auditor that flags every text with an unsafe sentence in it."""
    search = Search(" ".join(sentences), HIDE, capacity=ROOMY, continues=continues)
    asked = []
    while not search.over:
        asked.append(search.asked)
        search.learn(any(sentences[index] in search.asked for index in unsafe))
    return search, asked


def test_the_unsafe_sentence_alone_goes() -> None:
    search, asked = run(["One is fine.", "Two is bad.", "Three is fine.", "Four is fine."], {1})
    assert search.remains() == f"One is fine.{HIDE} Three is fine. Four is fine."
    assert asked == [
        "One is fine. Two is bad.",
        "One is fine.",
        f"One is fine.{HIDE} Three is fine. Four is fine.",
    ]


def test_what_remains_is_judged_once_more_when_the_last_sentence_goes() -> None:
    search, asked = run(["Fine.", "Bad."], {1})
    assert asked[-1] == search.remains() == f"Fine.{HIDE}"


def test_all_goes_when_what_remains_is_still_flagged() -> None:
    search = Search("Fine. Bad.", HIDE, capacity=ROOMY, continues=False)
    while not search.over:
        search.learn(True)
    assert search.redacted == [(0, len("Fine. Bad."))]
    assert search.remains() == HIDE


def test_a_run_before_the_chunk_has_its_placeholder_already() -> None:
    search, _ = run(["Bad.", "Fine."], {0}, continues=True)
    assert search.remains() == " Fine."


def test_one_sentence_has_nothing_to_narrow() -> None:
    assert not Search("Only one.", HIDE, capacity=ROOMY, continues=False).can_narrow
    assert Search("One. Two", HIDE, capacity=ROOMY, continues=False).can_narrow


@given(st.integers(2, 24), st.data())
def test_exactly_the_unsafe_sentences_go_and_few_questions_are_asked(count: int, data: st.DataObject) -> None:
    sentences = [f"Sentence number {index}." for index in range(count)]
    unsafe = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    search, asked = run(sentences, unsafe)
    remains = search.remains()
    for index, sentence in enumerate(sentences):
        assert (sentence in remains) is (index not in unsafe)
    assert len(asked) <= 1 + len(unsafe) * (2 * math.ceil(math.log2(count)) + 1)
    # Whatever is released was part of a text that passed, as it is released.
    assert any(remains.startswith(text) or text == remains for text in asked) or remains == HIDE


@pytest.mark.parametrize("count", [MAX_PIECES, MAX_PIECES + 1, 1000])
def test_of_many_sentences_neighbours_share_a_fate_so_that_questions_are_bounded(count: int) -> None:
    sentences = [f"Sentence number {index}." for index in range(count)]
    every_other, asked = run(sentences, set(range(0, count, 2)))
    assert len(asked) <= 2 * MAX_PIECES - 1
    assert not any(sentence in every_other.remains() for sentence in sentences[::2])
    one, asked = run(sentences, {count // 2})
    left = [sentence for sentence in sentences if sentence in one.remains()]
    assert count - math.ceil(count / MAX_PIECES) <= len(left) < count
    assert len(asked) <= 2 * math.log2(MAX_PIECES) + 1


def test_what_is_undecided_goes_where_a_question_would_not_fit_into_an_audit() -> None:
    chunk = "Fine. Bé. Fine. Fine. Bé. Fine. Bé."
    hide = "[a placeholder longer than any sentence]"
    search = Search(chunk, hide, capacity=len(chunk.encode()) + len(hide), continues=False)
    passed = []
    while not search.over:
        assert len(search.asked.encode()) <= len(chunk.encode()) + len(hide)
        if "B" not in search.asked:
            passed.append(search.asked)
        search.learn("B" in search.asked)
    assert search.remains() == f"Fine.{hide} Fine. Fine.{hide}"
    assert f"Fine.{hide} Fine. Fine." in passed


@given(st.text(alphabet="ab. \n!", min_size=1, max_size=60), st.lists(st.booleans(), max_size=80))
def test_every_search_ends_whatever_the_answers(text: str, answers: list[bool]) -> None:
    search = Search(text, HIDE, capacity=ROOMY, continues=False)
    for flagged in [*answers, *[True] * 200]:
        if search.over:
            break
        assert search.asked
        search.learn(flagged)
    assert search.over
    assert all(0 <= start < end <= len(text) for start, end in search.redacted)
