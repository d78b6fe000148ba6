"""Imports: duplicates, the split, several sources in one corpus."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.corpus.queries import Duplicate, import_queries, keep_only, query_id, split_of
from guardtrace_trainer.corpus.reading import Layout
from guardtrace_trainer.corpus.similar import NEAR, normalised, similarity, words
from guardtrace_trainer.rows import Query, RowError, read_rows
from guardtrace_trainer.steps import StepError

TEXTS = [f"What is {number} plus {number + 1}?" for number in range(400)]


def rows_of(corpus):
    return read_rows(corpus / "queries.jsonl", Query)


@given(st.text(min_size=1), st.integers(0, 2**31))
def test_a_text_s_split_is_its_own(text, seed):
    split = split_of(normalised(text), 0.3, seed)
    assert split == split_of(normalised(text), 0.3, seed)
    assert split_of(text, 0, seed) == "train"
    assert split_of(text, 1, seed) == "test"
    assert (split, split_of(normalised(text), 0.6, seed)) != ("test", "train")  # a larger share only adds


def test_the_share_is_about_kept_and_the_seed_matters():
    splits = [[split_of(normalised(text), 0.2, seed) for text in TEXTS] for seed in (0, 1)]
    assert all(50 <= one.count("test") <= 110 for one in splits)
    assert splits[0] != splits[1]


def test_adding_queries_moves_no_other(jsonl, tmp_path):
    few = import_of(jsonl, tmp_path / "few", TEXTS[::7])
    all_of_them = {query.text: query for query in import_of(jsonl, tmp_path / "all", TEXTS)}
    assert all(all_of_them[query.text] == query for query in few)
    assert {query.split for query in few} == {"train", "test"}


def test_duplicates_are_left_out_logged_and_counted(jsonl, tmp_path):
    long = "how can the old gardener keep twelve very young apple trees healthy through one dry windy summer near sea coast"
    path = jsonl(*({"text": text} for text in ("Bake bread!", long, "bake   BREAD", f"{long} now", "Other thing")))
    counts = import_queries([path], tmp_path / "c", "mine")
    assert (counts["read"], counts["kept"], counts["duplicates"]) == (5, 3, 2)
    exact, near = read_rows(tmp_path / "c" / "duplicates.jsonl", Duplicate)
    assert (exact.text, exact.of, exact.similarity) == ("bake   BREAD", query_id("bake bread"), 1)
    assert exact.id.endswith(":3")
    assert near.of == query_id(normalised(long))
    assert 0.9 <= near.similarity < 1


@given(st.lists(st.lists(st.sampled_from("a b c d e f g h i j k l".split()), min_size=1).map(" ".join), max_size=30))
def test_no_two_kept_queries_are_near_each_other(texts):
    from pathlib import Path

    from guardtrace_trainer.corpus.queries import _without_duplicates
    from guardtrace_trainer.corpus.reading import SourceQuery
    from guardtrace_trainer.corpus.similar import NearIndex

    read = [(Path("f"), SourceQuery(text, None, line)) for line, text in enumerate(texts)]
    kept, duplicates = _without_duplicates(read, "s", NearIndex(), 0.5, 0)
    assert len(kept) + len(duplicates) == len(texts)
    for one, other in itertools.combinations(kept, 2):
        assert similarity(words(one.text), words(other.text)) < NEAR
    assert {row.of for row in duplicates} <= {row.id for row in kept}


def test_a_later_source_loses_its_duplicates_and_earlier_ones_stay(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": "One thing"}, {"text": "Two things"})], corpus, "first")
    second = jsonl({"text": "two things!"}, {"text": "Three things"}, name="second.csv.jsonl")
    import_queries([second], corpus, "second")
    assert [(row.text, row.source) for row in rows_of(corpus)] == [
        ("One thing", "first"),
        ("Two things", "first"),
        ("Three things", "second"),
    ]
    assert [row.source for row in read_rows(corpus / "duplicates.jsonl", Duplicate)] == ["second"]


def test_importing_a_source_again_leaves_its_place_and_the_others(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": "One thing"}, {"text": "Two things"})], corpus, "first")
    import_queries([jsonl({"text": "Three things"}, name="b.jsonl")], corpus, "second")
    changed = jsonl({"text": "Two things"}, {"text": "Three things"}, {"text": "Four things"})
    with pytest.raises(StepError, match="other inputs"):
        import_queries([changed], corpus, "first")
    assert len(rows_of(corpus)) == 3
    import_queries([changed], corpus, "first", again=True)
    assert [row.text for row in rows_of(corpus)] == ["Two things", "Four things", "Three things"]


def test_only_the_named_sources_are_kept(jsonl, tmp_path):
    corpus = tmp_path / "c"
    for name in ("box", "boxes", "lids"):
        import_queries([jsonl({"text": f"What about {name}?"}, name=f"{name}.jsonl")], corpus, name)
    keep_only(corpus, ["boxes", "lids", "box"])
    with pytest.raises(StepError, match=r"imported as box, lids, which the recipe doesn't name.*--again-from corpus"):
        keep_only(corpus, ["boxes", "new"])
    assert len(rows_of(corpus)) == 3
    keep_only(corpus, ["boxes", "new"], again=True)
    assert [row.source for row in rows_of(corpus)] == ["boxes"]
    assert {path.name for path in (corpus / "sources").iterdir()} == {"boxes.jsonl", "boxes.duplicates.jsonl"}
    keep_only(corpus, ["boxes"])


def test_an_import_that_was_cut_short_is_taken_out(jsonl, tmp_path):
    corpus = tmp_path / "c"
    import_queries([jsonl({"text": "One thing"})], corpus, "first")
    import_queries([jsonl({"text": "Two things"}, name="b.jsonl")], corpus, "second")
    (corpus / "sources" / "first.jsonl").unlink()  # what a crash in the midst leaves
    keep_only(corpus, ["second"], again=True)
    assert [row.source for row in rows_of(corpus)] == ["second"]


def test_an_import_that_is_done_is_passed_over(jsonl, tmp_path):
    path = jsonl({"text": "One thing"})
    first = import_queries([path], tmp_path / "c", "mine")
    manifest = (tmp_path / "c" / "import-mine.manifest.json").read_bytes()
    assert import_queries([path], tmp_path / "c", "mine") == first
    assert (tmp_path / "c" / "import-mine.manifest.json").read_bytes() == manifest


def test_a_lost_queries_file_comes_back(jsonl, tmp_path):
    path = jsonl({"text": "One thing"})
    import_queries([path], tmp_path / "c", "mine")
    before = (tmp_path / "c" / "queries.jsonl").read_bytes()
    (tmp_path / "c" / "queries.jsonl").unlink()
    import_queries([path], tmp_path / "c", "mine")
    assert (tmp_path / "c" / "queries.jsonl").read_bytes() == before


def test_a_corpus_is_split_in_one_way(jsonl, tmp_path):
    import_queries([jsonl({"text": "One thing"})], tmp_path / "c", "first", seed=3)
    with pytest.raises(StepError, match=r"import-first split this corpus with --test-share 0\.2 --seed 3"):
        import_queries([jsonl({"text": "Two"}, name="b.jsonl")], tmp_path / "c", "second")
    assert not (tmp_path / "c" / "import-second.manifest.json").exists()


def test_a_file_that_does_not_fit_leaves_the_corpus_as_it_was(jsonl, tmp_path):
    import_queries([jsonl({"text": "One thing"})], tmp_path / "c", "first")
    with pytest.raises(RowError, match="line 1, field text"):
        import_queries([jsonl({"text": 1}, name="b.jsonl")], tmp_path / "c", "second")
    import_queries([jsonl({"text": "Two"}, name="b.jsonl")], tmp_path / "c", "second")
    assert len(rows_of(tmp_path / "c")) == 2


@pytest.mark.parametrize("source", ["", "../up", "a/b", "hades", "x.duplicates"])
def test_names_of_sources(jsonl, tmp_path, source):
    with pytest.raises(StepError):
        import_queries([jsonl({"text": "One"})], tmp_path / "c", source)


def test_layouts_are_settings(jsonl, tmp_path):
    path = jsonl({"text": "One", "category": "other"})
    import_queries([path], tmp_path / "c", "mine")
    with pytest.raises(StepError, match="categories"):
        import_queries([path], tmp_path / "c", "mine", Layout(categories=False))


def import_of(jsonl, corpus, texts):
    import_queries([jsonl(*({"text": text} for text in texts), name=f"{corpus.name}.jsonl")], corpus, "mine")
    return rows_of(corpus)
