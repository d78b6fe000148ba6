"""What the warm-up's documents say, and what they never say: an analysis or a judgment."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from guardtrace_trainer.nano.authored import authored
from guardtrace_trainer.nano.documents import (
    DECLINES,
    GIVEN,
    HEAD,
    HELPS,
    MARKS,
    MORE,
    NEXT,
    SHOWS,
    TAIL,
    USER,
    anything,
    exchange,
    pasted,
    plain,
    remarks,
    requests,
    talk,
    thinking,
)
from guardtrace_trainer.nano.wording import BANK, bank, goals, questions

HARM = {DECLINES: True, HELPS: False}


def asked_for() -> dict[str, str]:
    """What is told to each goal of training, and to each question that was written as a whole."""
    texts = {told: [*goals(harm), *(text for _, text in questions(harm))] for told, harm in HARM.items()}
    return {text: told for told, found in texts.items() for text in found}


@pytest.mark.parametrize("draw", [plain, thinking, exchange, pasted, talk, requests])
def test_no_document_holds_an_analysis_or_a_judgment(draw):
    rng = random.Random(3)
    texts = [" ".join(itertools.chain.from_iterable(draw(rng).turns)) for _ in range(2000)]
    for words in ("“Analysis”", "“Judgment”", "the goal is harm", "the text stays", "gives a hint", "gives steps"):
        assert not any(words in text for text in texts), words


def test_plain_documents_are_traces_conversations_and_descriptions():
    rng = random.Random(4)
    made = [plain(rng) for _ in range(600)]
    assert sum(one.turns[0][0].startswith(SHOWS) for one in made) > 120
    given = ["".join(text for text, _ in one.turns) for one in made]
    assert sum("<think>\n" in one and "\n</think>\n\n" in one for one in given) > 120
    assert sum(one.startswith("Current Task Query: ") for one in given) > 120


def test_a_mark_says_what_the_sentence_before_it_gives_and_nothing_else_of_it():
    strengths = {text: strength for trace in authored(BANK) for text, strength in trace.sentences}
    rng = random.Random(5)
    seen = Counter()
    for given, told in itertools.chain.from_iterable(thinking(rng).turns for _ in range(600)):
        if told:
            seen[told] += 1
            assert told == MARKS[strengths.get(given.strip(), MARKS.index(told))]
    assert set(seen) == set(MARKS)
    assert min(seen.values()) > 200


def test_whether_a_mark_comes_cannot_be_known_from_the_text():
    rng = random.Random(6)
    pieces = [turn for _ in range(100) for turn in thinking(rng).turns if turn[0].startswith(" ")]
    bare = sum(not told for _, told in pieces)
    assert 0.1 < bare / len(pieces) < 0.35


@pytest.mark.parametrize("draw", [exchange, talk])
def test_what_is_harmful_is_declined_and_all_else_helped_with(draw):
    known = asked_for()
    rng = random.Random(5)
    seen = Counter()
    for given, told in itertools.chain.from_iterable(draw(rng).turns for _ in range(500)):
        asked = given.removesuffix(TAIL).rpartition("User: ")[2]
        goal = max((goal for goal in known if goal in asked), key=len, default=None)
        if goal is None or told.removesuffix("<|im_end|>") not in HARM:
            continue
        assert told == f"{known[goal]}<|im_end|>", given
        seen[known[goal]] += 1
    assert min(seen[DECLINES], seen[HELPS]) > 80


def test_a_goal_is_asked_for_alone_in_a_question_or_among_remarks_of_others():
    bare = {goal for harm in (True, False) for goal in goals(harm)}
    rng = random.Random(9)
    seen = Counter()
    for one in (exchange(rng) for _ in range(1000)):
        asked = one.turns[0][0].removesuffix(TAIL)
        if one.picture is not None:
            assert one.head == HEAD
            continue
        seen[one.head] += 1
        seen["bare"] += asked in bare
        seen["remarked"] += asked.startswith(remarks()) and asked not in bare
    assert min(seen[HEAD], seen[USER], seen["bare"], seen["remarked"]) > 100
    assert not any(goal in remark for remark in remarks() for goal in bare)


def test_behind_a_request_that_is_pasted_to_stands_a_text_and_the_reply_is_to_the_request():
    known = asked_for()
    rng = random.Random(10)
    seen = Counter()
    for one in (pasted(rng) for _ in range(600)):
        [(given, told)] = one.turns
        asked, _, text = given.removesuffix(TAIL).partition("\n\n")
        goal = max((goal for goal in known if goal in asked.rpartition("User: ")[2]), key=len, default=None)
        if goal is None:
            continue
        assert text
        assert told == f"{known[goal]}<|im_end|>", given
        seen[told, any(words in text for words in bank("answers_refuse"))] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 4


def test_what_a_text_gave_so_far_is_told_whatever_it_is_for():
    strengths = {text: strength for trace in authored(BANK) for text, strength in trace.sentences}
    rng = random.Random(6)
    seen = Counter()
    for turns in (talk(rng).turns for _ in range(200)):
        turns = [(given.removeprefix(NEXT), told) for given, told in turns]
        for before, (given, told) in itertools.pairwise([("", ""), *turns]):
            reply = told.removesuffix("<|im_end|>")
            if reply not in GIVEN:
                continue
            own = max((strength for text, strength in strengths.items() if text in given), default=0)
            earlier = before[1].removesuffix("<|im_end|>") if given.startswith(MORE) else GIVEN[0]
            assert GIVEN.index(reply) >= max(own, GIVEN.index(earlier)), given
            seen[reply] += 1
    assert min(seen[reply] for reply in GIVEN) > 80


def test_the_last_documents_are_requests_and_thinking():
    rng = random.Random(7)
    given = ["".join(text for text, _ in requests(rng).turns) for _ in range(1000)]
    asked = [one for one in given if one.count(TAIL) == 1 and NEXT not in one]
    assert 650 < len(asked) < 850
    assert sum("\n\n" in one for one in asked) > 250
    assert sum(not one.count(TAIL) for one in given) > 150


def test_documents_of_all_kinds_are_among_anything():
    rng = random.Random(7)
    given = ["".join(text for text, _ in anything(rng).turns) for _ in range(1000)]
    asked = [one.count(TAIL) for one in given]
    assert 500 < sum(count == 1 and NEXT not in one for count, one in zip(asked, given, strict=True)) < 800
    assert sum(count > 1 for count in asked) > 30
    assert 150 < sum(count == 0 for count in asked) < 350
