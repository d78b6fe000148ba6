"""Screening rules: each fires on its own fault, and on nothing that a sound trace does."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.annotation.screening import Screening, screen_trace, screen_votes
from guardtrace_trainer.rows import Annotation
from tests.trainer.corpora import LONG_ANALYSIS, trace

LOOP = "Wait, let me look at the image again and see what it shows there. "
FAULTS = {
    "filtered by its server": {"finish_reason": "content_filter"},
    "thinking cut by length": {"finish_reason": "length", "answer": ""},
    "empty thinking": {"thinking": " \n"},
    "empty answer": {"answer": ""},
    "short thinking": {"thinking": "Fine, I do."},
    "looping thinking": {"thinking": "They ask for it. " + LOOP * 30},
    "looping answer": {"answer": "no " * 200},
    "broken characters in thinking": {"thinking": "They donâ€™t say whatâ€™s in the boxâ€¦ so I guess."},
    "broken characters in answer": {"answer": "Lift the \ufffd\ufffd\ufffd\ufffd lid."},
    "thinking tags in answer": {"answer": "I think so.</think> Lift the lid."},
}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_has_its_rule(rule):
    assert screen_trace(trace(**FAULTS[rule]), Screening()) == rule


SOUND = {
    "cut answer": {"finish_reason": "length"},
    "no finish": {"finish_reason": None},
    "Chinese": {"thinking": "他们想打开盒子,所以我告诉他们怎么做。", "answer": "打开盖子。"},
    "French and Portuguese": {"thinking": "L’élève a déjà reçu ça; São Paulo é À MÃO, “où” que ce soit."},
    "emoji": {"answer": "Lift the lid 👩‍👩‍👧 🙂."},
    "a table": {"answer": "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3 + "-" * 80},
    "code": {"answer": "    }\n" * 40},
    "a list": {"thinking": "\n".join(f"{n}. Consider the box number {n} and its lid." for n in range(200))},
    "a sentence nine times": {"thinking": " ".join(LOOP + f"Number {n}." for n in range(9))},
    "tabs and returns": {"answer": "a\tb\r\nc"},
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_traces_pass(name):
    assert screen_trace(trace(**SOUND[name]), Screening()) is None


def test_loops_in_scripts_without_spaces():
    assert screen_trace(trace(thinking="再看一遍图片里有什么东西吧。" * 30), Screening()) == "looping thinking"


def test_one_character_without_end():
    assert screen_trace(trace(answer="a" + "!" * 5000), Screening()) == "looping answer"


def test_latin_1_read_as_utf_8_is_found():
    broken = "Élève déjà reçu à São Paulo".encode().decode("latin-1")
    assert screen_trace(trace(answer=broken), Screening()) == "broken characters in answer"


@pytest.mark.parametrize("rule", FAULTS)
def test_rules_can_be_turned_off(rule):
    off = Screening(
        filtered=False,
        cut_thinking=False,
        min_thinking_words=None,
        min_answer_words=None,
        max_repeats=None,
        max_broken=None,
        tags_in_answer=False,
    )
    assert screen_trace(trace(**FAULTS[rule]), off) is None


def test_cut_answers_are_dropped_on_request():
    assert screen_trace(trace(finish_reason="length"), Screening(cut_answer=True)) == "answer cut by length"


@pytest.mark.parametrize(
    ("analysis", "rule"),
    [
        (LONG_ANALYSIS, None),
        ("It is safe.", "short analysis"),
        ("图片里只有一个盒子。", None),
        (LOOP * 20, "looping analysis"),
        (LONG_ANALYSIS + "\x00\x07\x1b", "broken characters in analysis"),
    ],
)
def test_analyses(analysis, rule):
    good = Annotation(judge="a", level=0.0, analysis=LONG_ANALYSIS)
    votes = (good, good, Annotation(judge="c", level=1.0, analysis=analysis))
    assert screen_votes(votes, Screening()) == rule


@given(st.text(), st.text(), st.sampled_from([None, "stop", "length"]))
def test_any_text_is_read(thinking, answer, finish):
    row = trace(thinking=thinking, answer=answer, finish_reason=finish)
    assert screen_trace(row, Screening()) in {None, "answer cut by length", "short answer", *FAULTS}


@pytest.mark.parametrize("text", ["a " * 100_000, "a" * 200_000, "ab" * 100_000, "语" * 100_000, "\n" * 100_000])
def test_long_texts_take_no_time(text):
    began = time.process_time()
    screen_trace(trace(thinking=text, answer=text), Screening())
    assert time.process_time() - began < 2
