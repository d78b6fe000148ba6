"""Beginnings of traces as rows: every level right, every analysis about the very beginning that it stands by."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from typer.testing import CliRunner

from guardtrace_trainer.prefixes.commands import app
from guardtrace_trainer.prefixes.curriculum import (
    Curriculum,
    beginnings,
    evened_pairs,
    evened_rows,
    labelled_prefixes,
    make_prefixes,
    pair_prefixes,
)
from guardtrace_trainer.prefixes.onset import NOT_MONOTONE, Onset, PrefixJudgment, find_onsets
from guardtrace_trainer.prefixes.sentences import prefix, split
from guardtrace_trainer.rows import Labelled, Pair, RowError, read_rows, write_rows
from tests.trainer.prefixes.corpora import WordJudge, labelled, pair, thinking, write_corpus
from tests.trainer.scripted import Said, Scripted

SETTINGS = st.builds(Curriculum, per_trace=st.integers(1, 8), mid_sentence=st.floats(0, 1), seed=st.integers(0, 9))


def onset_of(row: Labelled | Pair, onset: int | None, *judged: tuple[int, float]) -> Onset:
    judgments = [PrefixJudgment(sentences=n, level=level, analysis=f"{n} say {level:g}") for n, level in judged]
    return Onset(
        id=row.id,
        sentences=len(split(row.thinking)),
        onset=onset,
        why=None if onset else "unknown",
        judge="words",
        judgments=tuple(judgments),
    )


@given(st.integers(1, 20), st.data(), SETTINGS)
def test_a_beginning_is_safe_before_the_onset_and_has_the_label_from_it_on(count, data, settings):
    at = data.draw(st.integers(1, count))
    row = labelled(1, 0.5, thinking(at, count))
    sentences = split(row.thinking)
    found = beginnings(row, 0.5, onset_of(row, at), settings)
    assert 1 <= len(found) == min(settings.per_trace, count)
    assert len({begin.sentences for begin in found}) == len(found)
    for begin in found:
        assert begin.level == (0.5 if begin.sentences >= at else 0.0)
        assert row.thinking.startswith(begin.thinking)
        assert not begin.part or begin.sentences + 1 != at
        assert begin.part or begin.thinking == prefix(sentences, begin.sentences)
        assert ("HARM" in begin.thinking) == (begin.level > 0)
    assert at in {begin.sentences for begin in found}
    if settings.per_trace > 1 and at > 1:
        assert at - 1 in {begin.sentences for begin in found}


@given(st.integers(0, 20), SETTINGS)
def test_every_beginning_of_a_safe_trace_is_safe(count, settings):
    row = labelled(1, 0.0, thinking(None, count))
    found = beginnings(row, 0.0, None, settings)
    assert len(found) == min(settings.per_trace, count)
    assert {begin.level for begin in found} <= {0.0}


@given(st.integers(0, 20), SETTINGS)
def test_with_no_known_onset_only_the_first_sentence_is_used(count, settings):
    row = labelled(1, 1.0, thinking(None, count))
    for onset in (None, onset_of(row, None)):
        found = beginnings(row, 1.0, onset, settings)
        assert [(begin.sentences, begin.part, begin.level) for begin in found] == ([(1, "", 0.0)] if count > 1 else [])


def test_a_seed_gives_the_same_beginnings_and_another_gives_others():
    row = labelled(1, 0.0, thinking(None, 40))
    draws = [tuple(beginnings(row, 0.0, None, Curriculum(seed=seed))) for seed in (1, 1, *range(2, 8))]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 3


def test_beginnings_are_drawn_mostly_from_near_the_onset():
    distances = []
    for number in range(200):
        row = labelled(number, 1.0, thinking(20, 40))
        distances += [abs(b.sentences - 20) for b in beginnings(row, 1.0, onset_of(row, 20), Curriculum())]
    assert sum(distance <= 5 for distance in distances) > 0.7 * len(distances)


def test_a_row_has_the_judges_words_about_that_very_beginning_or_none():
    row = labelled(1, 1.0, thinking(2, 3))
    # the third was judged at another level than the trace's label
    onset = onset_of(row, 2, (1, 0.0), (2, 1.0), (3, 0.5))
    rows = list(labelled_prefixes(row, onset, Curriculum(per_trace=3, mid_sentence=0)))
    assert [(r.annotation.level, r.annotation.analysis, r.annotation.judge) for r in rows] == [
        (0.0, "1 say 0", "words"),
        (1.0, "2 say 1", "words"),
        (1.0, "", "prefix"),
    ]
    assert {(r.answer, r.origin, r.agreement) for r in rows} == {("", "prefix", "3:0")}
    assert [r.id for r in rows] == [f"{row.id}#p{n}" for n in (1, 2, 3)]


def test_a_beginning_that_ends_in_mid_sentence_has_no_words():
    row = labelled(1, 0.0, thinking(None, 30))
    onset = onset_of(row, None, *((n, 0.0) for n in range(1, 31)))
    rows = list(labelled_prefixes(row, onset, Curriculum(per_trace=30, mid_sentence=1)))
    torn = [r for r in rows if "+" in r.id]
    assert len(torn) > 20
    assert {r.annotation.analysis for r in torn} == {""}


def test_pairs_prefer_the_right_judgment_to_one_that_is_early_or_late():
    row = pair(1, 1.0, 0.5, thinking(2, 3))
    onset = onset_of(row, 2, (1, 0.0), (2, 1.0))
    first, second, third = pair_prefixes(row, onset, Curriculum(per_trace=3, mid_sentence=0))
    assert (first.chosen.analysis, first.rejected) == ("1 say 0", row.chosen)
    assert (second.chosen.analysis, second.rejected.level, second.rejected.analysis) == ("2 say 1", 0.0, "1 say 0")
    # nobody was asked about all three: both are bare
    assert (third.chosen.level, third.chosen.analysis, third.rejected.analysis) == (1.0, "", "")


def test_a_late_judgment_is_the_minoritys_where_that_overlooked_the_harm():
    row = pair(1, 1.0, 0.0, thinking(2, 3))
    early, late = pair_prefixes(row, onset_of(row, 2, (1, 0.0), (2, 1.0)), Curriculum(per_trace=2, mid_sentence=0))
    assert (early.chosen.analysis, early.rejected) == ("1 say 0", row.chosen)
    assert (late.chosen.analysis, late.rejected) == ("2 say 1", row.rejected)


@given(st.lists(st.sampled_from([(0.0, 0.5), (0.0, 1.0), (0.5, 0.0), (1.0, 0.0)]), max_size=30), st.integers(0, 9))
def test_pairs_are_as_often_against_early_judgments_as_against_late_ones(levels, seed):
    pairs = [pair(number, *both, "Fine.") for number, both in enumerate(levels)]
    kept = evened_pairs(pairs, seed)
    late = [one.chosen.level > 0 for one in kept]
    assert late.count(True) == late.count(False) == min(sum(c > 0 for c, _ in levels), sum(c == 0 for c, _ in levels))
    assert kept == [one for one in pairs if one in kept] == evened_pairs(pairs, seed)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=4), max_size=12), st.integers(0, 9)
)
def test_beginnings_of_safe_traces_are_at_most_as_many_as_unsafe_ones(traces, seed):
    rows = [
        msgspec.structs.replace(labelled(number, level, "Fine."), id=f"a#{number}#p{at}")
        for number, levels in enumerate(traces)
        for at, level in enumerate(levels)
    ]
    kept = evened_rows(rows, seed)
    beside = [row for row in rows if any(traces[int(row.id.split("#")[1])])]
    unsafe = sum(row.annotation.level > 0 for row in rows)
    assert [row for row in kept if row in beside] == beside
    assert len(kept) - len(beside) == min(unsafe, len(rows) - len(beside))
    assert kept == [row for row in rows if row in kept] == evened_rows(rows, seed)


def test_pairs_of_a_safe_trace_are_against_its_minority():
    row = pair(1, 0.0, 0.5, thinking(None, 6))
    pairs = list(pair_prefixes(row, None, Curriculum()))
    assert len(pairs) == 4
    assert {(p.chosen.level, p.rejected.level, p.chosen.analysis, p.rejected.analysis) for p in pairs} == {
        (0.0, 0.5, "", "")
    }


@given(st.integers(1, 12), st.data(), SETTINGS)
def test_both_of_a_pair_have_an_analysis_or_neither(count, data, settings):
    at = data.draw(st.none() | st.integers(1, count))
    level = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    row = pair(1, level, 1.0 if level == 0 else 0.0, thinking(at if level else None, count))
    judged = data.draw(st.lists(st.integers(1, count), unique=True))
    known = None if level == 0 else onset_of(row, at, *((n, level if at and n >= at else 0.0) for n in judged))
    for made in pair_prefixes(row, known, settings):
        assert bool(made.chosen.analysis) == bool(made.rejected.analysis)
        assert made.chosen.level == (level if at and "HARM" in made.thinking else 0.0)


def test_a_corpus_gets_its_prefixes(tmp_path: Path):
    write_corpus(tmp_path)
    find_onsets(tmp_path, WordJudge())
    said = CliRunner().invoke(app, ["prefixes", str(tmp_path), "--per-trace", "3", "--mid-sentence", "0", "--all"])
    assert said.exit_code == 0, said.output
    counts = json.loads(said.stdout)
    rows = read_rows(tmp_path / "sft_prefixes.jsonl", Labelled)
    pairs = read_rows(tmp_path / "pair_prefixes.jsonl", Pair)
    # three of each: of the safe one, of either with an onset, and of the one whose thinking is safe
    assert counts["sft"] == len(rows) == 3 + 3 + 3 + 3
    assert all(row.annotation.level == 0 for row in rows if row.id.startswith("q003"))
    assert counts["pairs"] == len(pairs) == 3 + 3
    assert counts["sft_with_analysis"] == sum(bool(row.annotation.analysis) for row in rows) > 0
    # of the pairs one is against a late judgment
    even = make_prefixes(tmp_path, Curriculum(per_trace=3, mid_sentence=0), again=True).counts
    assert (counts["pairs_against_late"], even["pairs_against_late"], even["pairs_against_early"]) == (1, 1, 1)
    # both with an onset are whole, and of the others there are as many as unsafe ones
    unsafe = sum(row.annotation.level > 0 for row in rows)
    assert even["sft"] == 3 + 3 + unsafe < counts["sft"]
    kept = read_rows(tmp_path / "sft_prefixes.jsonl", Labelled)
    assert kept == [row for row in rows if row in kept]


def test_a_first_sentence_that_the_judge_calls_unsafe_is_no_safe_beginning():
    row = labelled(1, 1.0, thinking(2, 4))
    judgments = tuple(PrefixJudgment(sentences=count, level=level) for count, level in ((1, 1.0), (2, 1.0), (3, 0.0)))
    taken_back = Onset(id=row.id, sentences=4, onset=None, why=NOT_MONOTONE, judge="j", judgments=judgments)
    assert beginnings(row, 1.0, taken_back, Curriculum()) == []
    unheard = msgspec.structs.replace(taken_back, judgments=judgments[1:])
    assert [begin.level for begin in beginnings(row, 1.0, unheard, Curriculum())] == [0.0]


def test_onsets_of_other_traces_are_refused(tmp_path: Path):
    write_corpus(tmp_path)
    with pytest.raises(RowError, match="`guardtrace-train data onset` makes it"):
        make_prefixes(tmp_path, Curriculum())
    find_onsets(tmp_path, WordJudge())
    write_rows(tmp_path / "pairs.jsonl", [])
    write_rows(tmp_path / "sft.jsonl", [labelled(1, 1.0, thinking(2, 3))])
    with pytest.raises(RowError, match="field sentences: 9 where the thinking has 3; run `data onset --again`"):
        make_prefixes(tmp_path, Curriculum())
    write_rows(tmp_path / "sft.jsonl", [labelled(7, 1.0, thinking(2, 3))])
    with pytest.raises(RowError, match="nothing about the unsafe trace 'q007-text-m'"):
        make_prefixes(tmp_path, Curriculum())


def test_a_judge_gives_its_words_where_its_level_is_the_right_one(tmp_path: Path):
    write_corpus(tmp_path)
    judge = WordJudge()
    find_onsets(tmp_path, judge)
    settings = Curriculum(mid_sentence=0)
    bare = make_prefixes(tmp_path, settings).counts
    with_words = make_prefixes(tmp_path, settings, judge, again=True).counts
    assert bare["sft_with_analysis"] < with_words["sft_with_analysis"]
    for row in read_rows(tmp_path / "sft_prefixes.jsonl", Labelled):
        assert bool(row.annotation.analysis) is (row.annotation.level != 0.5)  # which this judge never says
    paid = (tmp_path / "onset.paid.jsonl").read_bytes()
    make_prefixes(tmp_path, settings, judge, again=True)
    assert (tmp_path / "onset.paid.jsonl").read_bytes() == paid


@pytest.mark.parametrize(("status", "told"), [(402, "See to it and run the same command again"), (400, "no judgment")])
def test_a_judge_that_refuses_everything_leaves_no_bare_targets(tmp_path: Path, status: int, told: str):
    write_corpus(tmp_path)
    find_onsets(tmp_path, WordJudge())
    with Scripted(lambda body, number: Said(status=status, error="no credit left")) as server:
        judge = tmp_path / "judge.yaml"
        judge.write_text(f"name: gemma\nbase_url: {server.base_url}\nmodel: g\n", "utf-8")
        said = CliRunner().invoke(app, ["prefixes", str(tmp_path), "--judge", str(judge)])
    assert said.exit_code == 1
    assert told in said.output
    assert f"HTTP {status}: no credit left" in said.output
    assert not (tmp_path / "sft_prefixes.jsonl").exists()
