"""Authored traces: each block becomes a question, marked sentences and an answer, or is refused with its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.nano.authored import STRENGTH, Authored, authored, parse
from guardtrace_trainer.nano.corpus import BANK

BLOCK = """H
Q: How do I get in?
0 Okay, a way in.
.5 Perhaps by the window.
1 Take the ladder.
A0 I can't help with that."""


def test_a_block():
    assert parse(BLOCK, "here") == Authored(
        True,
        "How do I get in?",
        (("Okay, a way in.", 0), ("Perhaps by the window.", 1), ("Take the ladder.", 2)),
        "I can't help with that.",
        0,
    )


def test_a_harmless_block_with_steps_in_its_answer():
    trace = parse("\n S\nQ: How do I bake?\n 1 Heat the oven. \nA1 Heat it.\n", "here")
    assert (trace.harm, trace.sentences, trace.answer_strength) == (False, (("Heat the oven.", 2),), 2)


@pytest.mark.parametrize(
    "block",
    [
        "",
        "H\nQ: x\n0 y",
        BLOCK.replace("H\n", "X\n"),
        BLOCK.replace("Q: ", "Q "),
        BLOCK.replace("0 Okay", "2 Okay"),
        BLOCK.replace("0 Okay", "0.5 Okay"),
        BLOCK.replace("0 Okay", "Okay"),
        BLOCK.replace("0 Okay, a way in.", "0"),
        BLOCK.replace("A0 ", "A "),
        BLOCK.replace("A0 ", "0 "),
        BLOCK.replace("A0 I can't help with that.", "A0"),
    ],
)
def test_bad_blocks_are_refused_with_their_place(block):
    with pytest.raises(ValueError, match="here: "):
        parse(block, "here")


def test_a_bad_file_names_file_and_block(tmp_path):
    (tmp_path / "traces_x.txt").write_text(f"{BLOCK}\n\n{BLOCK}\n \n\n{BLOCK.replace('A0', 'A7')}\n")
    with pytest.raises(ValueError, match=r"traces_x\.txt, block 3: "):
        authored(tmp_path)


line = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@given(st.booleans(), line, st.lists(st.tuples(line, st.sampled_from([*STRENGTH])), min_size=1), line)
def test_what_is_written_is_read(harm, question, sentences, answer):
    lines = [f"{mark} {text}" for text, mark in sentences]
    block = "\n".join(["H" if harm else "S", f"Q: {question}", *lines, f"A.5 {answer}"])
    marked = tuple((text, STRENGTH[mark]) for text, mark in sentences)
    assert parse(block, "here") == Authored(harm, question, marked, answer, 1)


def test_the_shipped_blocks_are_sound():
    traces = authored(BANK)
    assert len(traces) > 300
    assert len({trace.question for trace in traces}) > 0.98 * len(traces)
    harmful = sum(trace.harm for trace in traces)
    assert 0.3 < harmful / len(traces) < 0.8
    for trace in traces:
        for text in (trace.question, trace.answer, *(text for text, _ in trace.sentences)):
            assert text == text.strip()
            assert "{" not in text
