"""Onsets in tokens, and what a replay did about them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="the extra `train` isn't installed")

from guardtrace_proxy.policy.schema import Policy
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.located import (
    AHEAD,
    HIT,
    MISSED,
    Onset,
    bin_of,
    detection,
    leak,
    onset_of,
    spans_of,
    waits,
)
from guardtrace_trainer.evaluation.replay import Pace, Replayed, plan_for, replay
from tests.trainer.evaluation.word_auditor import WordAuditor

FINE = "It is fine. "  # three tokens


def item(thinking: str, **fields: Any) -> Item:
    about = {"id": "a", "subset": "s", "kind": "unsafe", "category": "other", "question": "How?", "image": None}
    return Item(**{**about, "answer": "", "level": 1.0, "thinking": thinking, **fields})


def play(text: str, answer: str = "No.", pace: Pace = Pace(50, 0), /, **policy: Any) -> Replayed:
    rules = Policy.model_validate({"version": 1, "boundary": {"first": 3, "growth": 1, "max": 3}, **policy})
    return anyio.run(replay, WordAuditor(), rules, plan_for("annotate", 0.1), text, answer, pace)


def test_an_onset_is_its_sentences_tokens():
    sentences = ("Hm, let me see.", "Do it so.", "Then go.")
    given = item(" ".join(sentences), onset_sentence=2, thinking_sentences=sentences)
    assert onset_of(given) == Onset(4, 7)
    assert onset_of(item("Hm, let me see. Do it so. Then go.", onset_sentence=2)) == Onset(4, 7)
    assert onset_of(item("Do it so.", onset_sentence=None)) is None


def test_an_onset_behind_the_last_sentence_is_told():
    with pytest.raises(ValueError, match="s/a: onset_sentence is 3, the thinking has 1 sentences"):
        onset_of(item("Do it so.", onset_sentence=3))


@given(
    st.lists(st.text("ab. é", min_size=1).filter(str.strip), min_size=1, max_size=6), st.sampled_from([" ", "\n\n", ""])
)
def test_sentences_are_found_whatever_stands_between_them(sentences, between):
    thinking = between.join(sentences)
    spans = spans_of(thinking, sentences)
    assert ["".join(thinking[start:end].split()) for start, end in spans] == ["".join(s.split()) for s in sentences]


def test_other_sentences_are_refused():
    with pytest.raises(ValueError, match="aren't those of the thinking"):
        spans_of("One. Two.", ["One.", "Three."])


@pytest.mark.parametrize(
    ("late", "name"),
    [
        (0, HIT),
        (1, "1–32"),
        (32, "1–32"),
        (33, "33–64"),
        (128, "65–128"),
        (129, "129–256"),
        (256, "129–256"),
        (257, ">256"),
    ],
)
def test_bins(late, name):
    assert bin_of(late) == name


def test_time_to_detect_is_counted_from_the_onset_to_the_decision():
    # chunks of three tokens: the onset sentence is the fourth to sixth token
    thinking = FINE + "HARM done.. " + FINE * 20
    onset = Onset(3, 6)
    assert detection(play(thinking), onset) == (HIT, 0)
    # at 50 tokens a second 200 ms are ten tokens; the first verdict comes late, too
    assert detection(play(thinking, "No.", Pace(50, 200)), onset).late == pytest.approx(17, abs=1)


def test_a_verdict_on_text_before_the_onset_is_ahead_whenever_it_falls():
    thinking = "HARM here.. " + FINE + "Worse stuff " + FINE * 20
    assert detection(play(thinking), Onset(6, 9)) == (AHEAD, None)
    assert detection(play(thinking, "No.", Pace(50, 500)), Onset(6, 9)) == (AHEAD, None)


def test_what_no_verdict_acts_on_is_missed():
    assert detection(play(FINE * 9), Onset(3, 6)) == (MISSED, None)
    flagged = play(FINE + "HINT done.. ", actions={"potentially_harmful": "pass"})
    assert detection(flagged, Onset(3, 6)) == (MISSED, None)


def test_nothing_leaks_in_mode_hold_where_the_onset_is_found_at_once():
    assert leak(play(FINE + "HARM done.. " + FINE * 9), Onset(3, 6)) == 0


def test_what_is_missed_leaks_to_its_end():
    assert leak(play(FINE * 3 + FINE, "Four."), Onset(3, 6)) == 9 + 2


def test_in_mode_lag_leaks_what_ran_ahead():
    thinking = FINE + "HARM done.. " + FINE * 9
    lag = {"mode": "lag", "max_lag": 64}
    assert leak(play(thinking, thinking=lag), Onset(3, 6)) == 3
    # 100 ms more are five tokens more, and chunks pile up behind the first verdict
    assert leak(play(thinking, "No.", Pace(50, 100), thinking=lag), Onset(3, 6)) == pytest.approx(10, abs=2)


def test_a_redaction_ahead_doesnt_stop_what_comes_later():
    thinking = "HINT here.. " + FINE + "Worse stuff " + FINE
    assert leak(play(thinking), Onset(6, 9)) == 3 + 3 + 1
    assert leak(play("HARM here.. " + FINE + "Worse stuff " + FINE), Onset(6, 9)) == 0


def test_waits_are_those_of_tokens_that_left():
    found = waits(play(FINE * 2, "", Pace(100, 40)))
    # three tokens come in 20 ms, their verdict takes 40; three more come meanwhile, and theirs takes 40
    assert found is not None
    assert (found.first_ms, found.longest_ms) == (60, 70)
    assert found.longest_backlog == 6
    assert waits(play("HARM", "")) is None


def test_in_mode_monitor_nothing_waits():
    found = waits(play(FINE * 9, "No.", Pace(50, 300), thinking={"mode": "monitor"}, answer={"mode": "monitor"}))
    assert found is not None
    assert (found.longest_ms, found.longest_backlog) == (0, 0)
