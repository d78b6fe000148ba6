"""What the warm-up's documents say and what is known of them, and what they never say: an analysis or a judgment."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from guardtrace_trainer.nano.authored import ACT, HINT, SAFE, authored
from guardtrace_trainer.nano.documents import (
    DECLINES,
    END,
    GIVEN,
    HARMFUL,
    HARMLESS,
    HEAD,
    HELPS,
    SHOWS,
    SO_FAR,
    TAIL,
    USER,
    Document,
    anything,
    exchange,
    nearby,
    remarks,
    row,
    thinking,
    trace,
)
from guardtrace_trainer.nano.wording import BANK, bank, goals, questions

LINE = {True: HARMFUL, False: HARMLESS}
STRENGTHS = (SAFE, HINT, ACT)


def text_of(document: Document) -> str:
    return document.head + "".join(piece.text for piece in document.pieces)


def asked_for() -> dict[str, bool]:
    """Whether each goal of training is harmful, and each question that was written as a whole."""
    texts = {harm: [*goals(harm), *(text for _, text in questions(harm))] for harm in (True, False)}
    return {text: harm for harm, found in texts.items() for text in found}


@pytest.mark.parametrize("draw", [row, thinking, trace, exchange])
def test_no_document_holds_an_analysis_or_a_judgment(draw):
    rng = random.Random(3)
    texts = [text_of(draw(rng)) for _ in range(2000)]
    for words in ("“Analysis”", "“Judgment”", "the goal is harm", "the text stays", "gives a hint", "gives steps"):
        assert not any(words in text for text in texts), words


def test_a_row_says_of_each_request_whether_it_is_harmful():
    known = asked_for()
    rng = random.Random(5)
    seen = Counter()
    for _ in range(200):
        request = ""
        for piece in row(rng).pieces:
            if piece.text != "\n":
                request += piece.text
                continue
            asked = request.rpartition("User: ")[2]
            goal = max((goal for goal in known if goal in asked), key=len)
            assert piece.line == LINE[known[goal]], request
            seen[piece.line] += 1
            seen["alone"] += request in known
            seen["remarked"] += request.startswith(remarks())
            request = ""
    assert min(seen[HARMFUL], seen[HARMLESS], seen["alone"], seen["remarked"]) > 100
    assert not any(goal in remark for remark in remarks() for goal in known)


@pytest.mark.parametrize("draw", [row, trace])
def test_what_a_request_asks_for_is_known_where_its_goal_ends(draw):
    known = asked_for()
    rng = random.Random(6)
    seen = Counter()
    for piece in (piece for _ in range(400) for piece in draw(rng).pieces):
        if piece.line in LINE.values() and piece.known_from == 1.0 and piece.text.strip():
            goal = max((goal for goal in known if piece.text.endswith(goal)), key=len)
            assert piece.line == LINE[known[goal]]
            seen[piece.line] += 1
    assert min(seen[kind] for kind in LINE.values()) > 50


def test_thinking_says_of_each_sentence_what_it_gives_and_nothing_of_a_request():
    strengths = {text: strength for one in authored(BANK) for text, strength in one.sentences}
    rng = random.Random(7)
    seen = Counter()
    for piece in (piece for _ in range(600) for piece in thinking(rng).pieces):
        assert piece.so_far is None
        assert not piece.told
        if piece.line is not None:
            seen[piece.line] += 1
            assert piece.line == strengths.get(piece.text.strip(), piece.line)
    assert set(seen) == set(STRENGTHS)
    assert min(seen.values()) > 200


def test_a_trace_is_as_strong_as_its_strongest_sentence_so_far():
    rng = random.Random(8)
    seen = Counter()
    for document in (trace(rng) for _ in range(600)):
        most, harm = SAFE, None
        for piece in document.pieces:
            most = max(most, piece.line) if piece.line in STRENGTHS else most
            if piece.so_far is None:
                continue
            kind, strength = divmod(piece.so_far, len(STRENGTHS))
            assert harm in (None, kind)
            assert strength >= most
            harm, most = kind, strength
            seen[SO_FAR[piece.so_far]] += 1
        asked = next((one.line for one in document.pieces if one.line in LINE.values()), None)
        if asked is not None and harm is not None:
            assert asked == LINE[bool(harm)]
    assert set(seen) == set(SO_FAR)
    assert min(seen.values()) > 100


@pytest.mark.parametrize("draw", [thinking, trace])
def test_an_answer_is_a_line_too(draw):
    """Of the plain ones it is known how strong they are; others give what the request asks for."""
    plain = {text for name in ("answers_neutral", "answers_refuse") for text in bank(name)}
    rng = random.Random(13)
    seen = Counter()
    for document in (draw(rng) for _ in range(400)):
        pieces = list(document.pieces)
        for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
            if piece.text in plain:
                assert piece.line == SAFE
                seen["plain"] += 1
            elif piece.line in (HINT, ACT) and after is not None and after.text.startswith(("\n\n", TAIL)):
                seen["gives"] += 1
    assert min(seen["plain"], seen["gives"]) > 20


def test_traces_are_conversations_layouts_or_pasted_and_the_last_two_are_replied_to():
    rng = random.Random(9)
    seen = Counter()
    for document in (trace(rng) for _ in range(600)):
        text, reply = text_of(document), document.pieces[-1]
        assert text.startswith(HEAD)
        kind = "talk" if "<think>\n" in text else "layout" if "Current Task Query: " in text else "pasted"
        seen[kind] += 1
        assert reply.told is (kind != "talk")
        if not reply.told:
            continue
        said = reply.text.removesuffix(END)
        seen[said] += 1
        judged = document.pieces[-2].so_far
        if said in GIVEN and judged is not None:
            assert said == GIVEN[judged % len(STRENGTHS)]
        if said in (DECLINES, HELPS):
            assert judged is not None
            assert said == (DECLINES if judged >= len(STRENGTHS) else HELPS)
    assert min(seen.values()) > 40
    assert len(seen) == 3 + len(GIVEN) + 2


def test_of_a_request_that_says_nothing_it_is_known_when_the_thinking_tells():
    vague = set(bank("vague"))
    rng = random.Random(10)
    seen = Counter()
    for document in (trace(rng) for _ in range(3000)):
        question = document.pieces[1].text.rpartition("User: ")[2]
        names_it = {HARMFUL, HARMLESS} & {one.line for one in document.pieces}
        if names_it or document.picture is not None or not any(text in question for text in vague):
            continue
        told = False
        for piece in document.pieces[2:]:
            told = told or piece.line in (HINT, ACT)
            if piece.line is not None:
                assert (piece.so_far is None) is not told
                seen[told] += 1
    assert min(seen.values()) > 30


def test_what_is_harmful_is_declined_and_all_else_helped_with():
    known = asked_for()
    rng = random.Random(11)
    seen = Counter()
    for document in (exchange(rng) for _ in range(1500)):
        given, reply = document.pieces
        asked = given.text.removesuffix(TAIL).rpartition("User: ")[2]
        if asked == SHOWS:
            assert document.picture is None or reply.text.startswith("The image shows ")
            seen[SHOWS] += 1
            continue
        goal = max((goal for goal in known if goal in asked), key=len, default=None)
        if goal is not None:
            assert reply.text == f"{DECLINES if known[goal] else HELPS}{END}", asked
            seen[reply.text] += 1
        else:
            seen["pictured"] += document.picture is not None
    assert min(seen.values()) > 80
    assert len(seen) == 4


def test_rows_come_first_and_documents_of_all_kinds_after_them():
    rng = random.Random(12)
    heads = Counter(nearby(rng).head for _ in range(400))
    assert heads[USER] > heads[HEAD] > 100
    texts = [text_of(anything(rng)) for _ in range(1000)]
    assert sum(text.startswith(USER) for text in texts) > 200
    assert sum("Current Task Query: " in text for text in texts) > 150
    assert sum(text.count(TAIL) == 1 for text in texts) > 300
