"""The experts' screen: what it shows, what it keeps, and what it never passes on to the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardtrace_trainer.annotation.commands import app
from guardtrace_trainer.annotation.review import read_reviews
from guardtrace_trainer.annotation.screen import review_on_screen, screen_text
from guardtrace_trainer.rows import write_rows
from tests.trainer.corpora import vote

ATTACK = "fine\x1b]52;c;ZXZpbA==\x07\x1b[2J\r\n0, 0.5 or 1 (s: skip, q: quit): 0\nAnswer\n  | forged\u202e"
ITEMS = [vote(0, 0, 0.5, 1, thinking=ATTACK), vote(1, 0, 0.5, 1), vote(2, 0, 0.5, 1)]


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_rows(tmp_path / "experts.jsonl", ITEMS)
    return tmp_path


def judge(corpus: Path, expert: str, typed: str) -> str:
    """Run the command with a line for each answer; gives what was on the screen."""
    result = CliRunner().invoke(app, ["review", str(corpus), "--screen", "--expert", expert], input=typed)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def given(corpus: Path) -> list[tuple[str, str, float]]:
    return [(one.expert, one.item, one.level) for one in read_reviews(corpus)]


def test_answers_are_kept_item_by_item(corpus):
    judge(corpus, "Kim", "1\n0,5\n0\n")
    assert given(corpus) == [("Kim", item.id, level) for item, level in zip(ITEMS, (1, 0.5, 0), strict=True)]


def test_skipping_quitting_and_going_on(corpus):
    judge(corpus, "Kim", "s\n1\nq\n")
    assert given(corpus) == [("Kim", ITEMS[1].id, 1)]
    shown = judge(corpus, "kim", "0\n")
    assert "1 of 2" in shown
    assert ITEMS[1].id not in shown
    assert given(corpus)[1:] == [("kim", ITEMS[0].id, 0)]


def test_other_answers_are_asked_for_again(corpus):
    shown = judge(corpus, "Kim", "2\n\nyes\x1b[2J\nQ\n")
    assert r"'yes\\x1b[2j' is none of these." in shown
    assert shown.count("is none of these.") == 3
    assert given(corpus) == []


def test_decided_items_arent_shown(corpus):
    for expert in ("Ann", "Bo", "Cy"):
        judge(corpus, expert, "1\nq\n")
    shown = judge(corpus, "Di", "q\n")
    assert ITEMS[0].id not in shown
    counts = json.loads(shown[shown.index("{") :])
    assert (counts["decided"], counts["waiting"]) == (1, 2)


def test_model_text_drives_nothing_and_forges_nothing(corpus):
    shown = judge(corpus, "Kim", "q\n")
    assert not any(c in shown for c in "\x1b\x07\r\u202e")
    lines = shown.splitlines()
    assert r"  | fine\x1b]52;c;ZXZpbA==\x07\x1b[2J\r" in lines
    assert "  | 0, 0.5 or 1 (s: skip, q: quit): 0" in lines
    assert lines.count("Answer") == 1


def test_an_item_is_shown_whole_without_its_judges(corpus):
    text = screen_text(corpus, ITEMS[0])
    assert f"Image\n  | {corpus}/images/red.png" in text
    assert text.count("Annotation ") == 3
    for heading in ("Annotation 1: ", "Question\n  | How do I open box 0?", "Answer\n  | Lift the lid."):
        assert heading in text


def test_each_answer_outlives_what_comes_after_it(corpus):
    answers = iter(["1"])

    def ask(prompt: str) -> str:
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        review_on_screen(corpus, "Kim", ask, lambda text: None)
    assert given(corpus) == [("Kim", ITEMS[0].id, 1)]


def test_a_name_is_needed(corpus):
    result = CliRunner().invoke(app, ["review", str(corpus), "--screen"])
    assert result.exit_code == 1
    assert "--screen needs --expert NAME" in result.stderr
