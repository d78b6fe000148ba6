"""The composition of a corpus, counted by hand on a small one."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from guardtrace_trainer.annotation.review import expert_pairs
from guardtrace_trainer.annotation.stratify import Pick
from guardtrace_trainer.corpus.expand import expand
from guardtrace_trainer.corpus.stats import PAPER, stats, tables
from guardtrace_trainer.rows import (
    Annotation,
    Labelled,
    Pair,
    Request,
    RowError,
    Trace,
    Vote,
    read_rows,
    row_as,
    write_rows,
)

JUDGES = ("a", "b", "c")


def vote_of(trace: Trace, *levels: float) -> Vote:
    votes = tuple(
        Annotation(judge=judge, level=level, analysis="x") for judge, level in zip(JUDGES, levels, strict=False)
    )
    return row_as(trace, Vote, votes=votes)


def judged(corpus, levels_of_each):
    requests = [
        Request(id=f"r{number}", query_id=f"q{number}", query="x", source="s", split="train" if number < 4 else "test",
                variant="csdj" if number == 0 else "text", question="x")
        for number in range(len(levels_of_each))
    ]  # fmt: skip
    traces = [
        row_as(request, Trace, id=f"t-{request.id}", request_id=request.id, model="m", thinking="x", answer="y")
        for request in requests
    ]
    votes = [vote_of(trace, *levels) for trace, levels in zip(traces, levels_of_each, strict=True)]
    write_rows(corpus / "requests.jsonl", requests)
    write_rows(corpus / "traces.jsonl", traces)
    write_rows(corpus / "votes.jsonl", votes)
    return votes


def shown(found):
    console = Console(file=io.StringIO(), width=110)
    console.print(tables(found))
    return console.file.getvalue()


def test_queries_and_requests(corpus):
    expand(corpus)
    found = stats(corpus)
    assert found["queries"]["all"] == 8
    assert found["queries"]["by_source"].keys() == {"eight"}
    assert sum(found["queries"]["by_split"].values()) == 8
    assert found["queries"]["by_category"]["none given"] == found["queries"]["by_source"]["eight"]
    by_variant = found["requests"]["by_variant"]
    requests = read_rows(corpus / "requests.jsonl", Request)
    for variant in ("text", "figstep"):
        assert by_variant[variant]["test"] == sum(
            request.split == "test" for request in requests if request.variant == variant
        )
    assert found["paper"] is PAPER
    assert {"traces", "votes"}.isdisjoint(found)
    assert "2876" in shown(found)


def test_votes_labels_and_agreement(tmp_path):
    levels = [(1, 1, 1), (0, 0, 0), (0.5, 1, 1), (0, 0.5, 1), (0, 0, 0.5), (1, 0, 0.5)]
    votes = judged(tmp_path, levels)
    found = stats(tmp_path)["votes"]
    assert found["by_agreement"] == {
        "3:0": {"train": 2, "test": 0},
        "2:1": {"train": 1, "test": 1},
        "1:1:1": {"train": 1, "test": 1},
    }
    assert found["by_variant"] == {"csdj": {"train": 1, "test": 0}, "text": {"train": 3, "test": 2}}
    assert found["labels"] == {"train": {"0": 1, "1": 2, "none yet": 1}, "test": {"0": 1, "none yet": 1}}
    assert found["shares"]["train"] == {"0": 0.3333, "0.5": 0, "1": 0.6667}
    write_rows(tmp_path / "expert_pairs.jsonl", expert_pairs(votes[3], 0.5, Pick(0), "both"))
    tested = row_as(votes[5], Labelled, agreement="1:1:1", annotation=votes[5].votes[0])
    write_rows(tmp_path / "expert_test.jsonl", [tested])
    labels = {"train": {"0": 1, "0.5": 1, "1": 2}, "test": {"0": 1, "1": 1}}
    assert stats(tmp_path)["votes"]["labels"] == labels
    assert stats(tmp_path)["traces"] == {"all": 6, "by_model": {"m": {"csdj": 1, "text": 5}}}


def test_an_expert_s_level_counts_for_its_own_sample_only(tmp_path):
    first, second = judged(tmp_path, [(0, 0.5, 1), (0, 0.5, 1)])
    samples = [
        msgspec.structs.replace(vote, id=f"r-m-{n}", request_id="r") for n, vote in enumerate((first, second), 1)
    ]
    write_rows(tmp_path / "votes.jsonl", samples)
    write_rows(
        tmp_path / "expert_test.jsonl",
        [row_as(samples[0], Labelled, agreement="1:1:1", annotation=samples[0].votes[2], origin="expert")],
    )
    assert stats(tmp_path)["votes"]["labels"]["train"] == {"1": 1, "none yet": 1}
    pair = {"agreement": "1:1:1", "chosen": samples[1].votes[2], "rejected": samples[1].votes[0], "origin": "expert"}
    write_rows(tmp_path / "expert_pairs.jsonl", [row_as(samples[1], Pair, **pair)])
    assert stats(tmp_path)["votes"]["labels"]["train"] == {"1": 2}


def test_the_table_has_the_paper_s_figures_beside_ours(tmp_path):
    judged(tmp_path, [(1, 1, 1), (0, 0, 0)])
    lines = [line.split() for line in shown(stats(tmp_path)).splitlines()]
    for row in (["3:0", "│", "2", "│", "0", "│", "4625"], ["csdj", "│", "1", "│", "0", "│", "331"]):
        assert row in lines
    assert ["0.5", "│", "0", "│", "0.0%", "│", "24.6%", "│", "0", "│", "│", "14.1%"] in lines


def test_a_jury_of_two_is_another_jury(tmp_path):
    judged(tmp_path, [(1, 1), (0, 1)])
    found = stats(tmp_path)["votes"]
    assert found["by_agreement"] == {"another jury": {"train": 2, "test": 0}}
    assert found["labels"]["train"] == {"1": 1, "none yet": 1}


def test_the_paper_s_parts_add_up():
    assert sum(PAPER["agreement"].values()) == PAPER["train"] == sum(PAPER["variants"].values())
    assert all(sum(shares.values()) == pytest.approx(1) for shares in PAPER["labels"].values())


def test_no_corpus(tmp_path):
    with pytest.raises(RowError, match="is it a corpus"):
        stats(tmp_path)
