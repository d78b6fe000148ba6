"""Strata: every vote in exactly one, the same whatever the order, and chosen and rejected where they belong."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from guardtrace_trainer.annotation.commands import app
from guardtrace_trainer.annotation.stratify import Pick, Strata, agreement, majority, stratify
from guardtrace_trainer.rows import LEVELS, Labelled, Pair, RowError, Vote, read_rows, write_rows
from tests.trainer.corpora import annotations, vote

level = st.sampled_from(LEVELS)
votes = st.lists(st.tuples(level, level, level, st.sampled_from(["train", "test"])), max_size=12).map(
    lambda rows: [vote(number, *levels, split=split) for number, (*levels, split) in enumerate(rows)]
)
picks = st.builds(Pick, st.integers(0, 5), st.sampled_from([(), ("b",), ("c", "a", "b")]))


def ids(strata: Strata) -> list[str]:
    return [row.id for rows in (strata.sft, strata.pairs, strata.experts, strata.test) for row in rows]


@given(votes, picks)
def test_every_vote_lands_in_exactly_one_stratum(rows, pick):
    assert sorted(ids(stratify(rows, pick))) == sorted(row.id for row in rows)


@given(votes, picks)
def test_who_goes_where(rows, pick):
    by_id = {row.id: row for row in rows}
    strata = stratify(rows, pick)
    for row in strata.sft:
        assert (row.split, row.agreement) == ("train", "3:0")
        assert {one.level for one in by_id[row.id].votes} == {row.annotation.level}
    for row in strata.pairs:
        given = by_id[row.id].votes
        counts = Counter(one.level for one in given)
        assert (row.split, row.agreement) == ("train", "2:1")
        assert (counts[row.chosen.level], counts[row.rejected.level]) == (2, 1)
        assert {row.chosen, row.rejected} <= set(given)
    for row in strata.experts:
        assert len({one.level for one in row.votes}) == 3
        assert row == by_id[row.id]
    for row in strata.test:
        assert (row.split, row.annotation.level) == ("test", majority(by_id[row.id]))
        assert row.annotation in by_id[row.id].votes
        assert row.agreement == agreement(by_id[row.id])


@given(votes, picks, st.randoms())
def test_neither_the_order_of_rows_nor_that_of_judges_matters(rows, pick, random):
    shuffled = [vote(0, id=row.id, split=row.split, votes=tuple(random.sample(row.votes, 3))) for row in rows]
    originals = [vote(0, id=row.id, split=row.split, votes=row.votes) for row in rows]
    random.shuffle(shuffled)
    one, other = stratify(originals, pick), stratify(shuffled, pick)
    for name in ("sft", "pairs", "test"):
        assert sorted(getattr(one, name), key=lambda row: row.id) == sorted(
            getattr(other, name), key=lambda row: row.id
        )


def chosen(pick: Pick, count: int = 300) -> Counter[str]:
    return Counter(
        row.annotation.judge for row in stratify([vote(n, 1, 1, 1, split="train") for n in range(count)], pick).sft
    )


def test_the_draw_is_even_and_follows_the_seed():
    rows = [vote(number, 0, 0, 0) for number in range(300)]
    assert min(chosen(Pick()).values()) > 70
    assert stratify(rows, Pick(1)) == stratify(rows, Pick(1)) != stratify(rows, Pick(2))


def test_priority_decides_before_the_draw():
    assert chosen(Pick(priority=("b", "a"))) == {"b": 300}
    pairs = stratify([vote(n, 1, 0, 1, split="train") for n in range(100)], Pick(priority=("b",))).pairs
    assert {row.rejected.judge for row in pairs} == {"b"}
    assert {row.chosen.judge for row in pairs} == {"a", "c"}


@pytest.mark.parametrize("given", [annotations(0, 1, judges="ab"), annotations(0, 0, 1, judges="aab")])
def test_rows_without_three_votes_are_refused(given):
    with pytest.raises(RowError, match=r"row q000-text-m, field votes: expected those of three judges"):
        stratify([vote(0, votes=given)], Pick())


ROWS = [vote(0, 1, 1, 1), vote(1, 0, 0.5, 0), vote(2, 0, 0.5, 1), vote(4, 0, 0, 0.5), vote(9, 0, 0.5, 1)]


def test_the_command(tmp_path):
    write_rows(tmp_path / "votes.jsonl", ROWS)
    endpoints = [{"name": name, "base_url": "http://h/v1", "model": name} for name in "abc"]
    (tmp_path / "jury.yaml").write_text(yaml.safe_dump({"judges": endpoints, "priority": ["c"]}))
    arguments = ["stratify", str(tmp_path), "--jury", str(tmp_path / "jury.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["agreement"] == {"test 1:1:1": 1, "test 2:1": 1, "train 1:1:1": 1, "train 2:1": 1, "train 3:0": 1}
    (sft,) = read_rows(tmp_path / "sft.jsonl", Labelled)
    (pair,) = read_rows(tmp_path / "pairs.jsonl", Pair)
    (test,) = read_rows(tmp_path / "test.jsonl", Labelled)
    experts = read_rows(tmp_path / "experts.jsonl", Vote)
    assert (sft.annotation.judge, pair.chosen.judge, pair.rejected.judge) == ("c", "c", "b")
    assert (test.id, test.annotation.level) == ("q004-text-m", 0)
    assert [row.split for row in experts] == ["train", "test"]

    changed = (tmp_path / "sft.jsonl").stat().st_mtime_ns
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "sft.jsonl").stat().st_mtime_ns == changed
    refused = CliRunner().invoke(app, [*arguments, "--seed", "3"])
    assert refused.exit_code == 1
    assert "other settings (seed); give --again" in refused.stderr
    assert CliRunner().invoke(app, [*arguments, "--seed", "3", "--again"]).exit_code == 0


def test_a_corpus_without_votes(tmp_path):
    result = CliRunner().invoke(app, ["stratify", str(tmp_path)])
    assert result.exit_code == 1
    assert "votes.jsonl: can't be read" in result.stderr
    write_rows(tmp_path / "votes.jsonl", [vote(1, 0, 0, 1), vote(0, votes=annotations(0, 1, judges="ab"))])
    result = CliRunner().invoke(app, ["stratify", str(tmp_path)])
    assert "votes.jsonl, line 2, row q000-text-m, field votes" in result.stderr
