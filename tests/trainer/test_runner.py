"""A recipe's corpus with scripted models on real sockets: endpoints that die, and forms to experts and back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.again import Part, begin_again
from guardtrace_trainer.annotation.review import read_reviews
from guardtrace_trainer.corpus.queries import import_queries, split_of
from guardtrace_trainer.corpus.reading import Layout
from guardtrace_trainer.corpus.similar import normalised
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.rows import Annotation, Pair, Query, RowError, Trace, read_rows
from guardtrace_trainer.run import Runner
from guardtrace_trainer.steps import StepError
from tests.trainer.corpora import LONG_ANALYSIS
from tests.trainer.scripted import Said, Scripted

QUERIES = 30
LEVELS = {"judge-a": 0.0, "judge-b": 0.5, "judge-c": 1.0}


class Models:
    """A thinking model and three judges who never agree. A model answers ``left`` questions more, then none."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.asked: dict[str, int] = {}

    def __call__(self, body: dict[str, Any], number: int) -> Said:
        name = body["model"]
        if self.left.get(name, 1) < 1:
            return Said(status=503)
        self.left[name] = self.left.get(name, QUERIES * 10) - 1
        self.asked[name] = self.asked.get(name, 0) + 1
        if name == "thinker":
            return Said("Lift the lid.", "They want to open a box, so I tell them how to lift the lid.")
        return Said(Annotation(judge=name, level=LEVELS[name], analysis=LONG_ANALYSIS).text)


def recipe(folder: Path, server: Scripted, **corpus: Any) -> Recipe:
    def endpoint(name: str) -> dict[str, Any]:
        return server.endpoint(name, stream=False, concurrency=1)

    queries = [msgspec.json.encode({"text": f"Box {number}: what is in it?"}) for number in range(QUERIES)]
    (folder / "queries.jsonl").write_bytes(b"\n".join(queries))
    return Recipe.model_validate(
        {
            "version": 1,
            "folder": folder / "run",
            "base": "builtin:nano",
            "corpus": {
                "sources": [{"name": "boxes", "files": ["queries.jsonl"]}],
                "test_share": 0.0,
                "expand": {"variants": ["text"]},
                "models": {"models": [endpoint("thinker")]},
                "jury": {"judges": [endpoint(name) for name in LEVELS]},
                **corpus,
            },
            "sft": {},
            "dpo": {},
            "mine": {"oracle": endpoint("oracle")},
            "ogdpo": {},
        }
    )


def label(folder: Path, recipe: Recipe, again_from: Part | None = None) -> list[str]:
    """Everything up to the strata and the experts; returns what was logged."""
    said: list[str] = []
    if again_from is not None:
        begin_again(recipe, again_from, said.append)
    Runner(recipe, folder / "recipe.yaml", said.append, again_from)._label()
    return said


def form_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "review.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, rows: list[dict[str, str]], expert: str, level: str) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"expert": expert, "level": level} for row in rows)
    return path.name


def test_an_endpoint_that_dies_midway_ends_the_run_and_the_same_command_heals_it(tmp_path):
    models = Models()
    models.left = {"thinker": 5}
    with Scripted(models) as server:
        given = recipe(tmp_path, server)
        with pytest.raises(
            StepError, match=r"generate: 25 of 30 failed.*max_failed.*traces\.failed\.jsonl.*run it again:"
        ):
            label(tmp_path, given)
        assert "judge-a" not in models.asked
        models.left = {"judge-b": 12}
        with pytest.raises(StepError, match=r"annotate: 18 of 30 failed.*votes\.failed\.jsonl.*run it again:"):
            label(tmp_path, given)
        assert not (tmp_path / "run" / "corpus" / "stratify.manifest.json").exists()
        models.left = {}
        label(tmp_path, given)
    assert models.asked == dict.fromkeys(("thinker", *LEVELS), QUERIES)
    assert len(form_of(tmp_path)) == QUERIES


def test_a_few_failures_are_left_out_and_not_asked_again_once_the_next_step_was_begun(tmp_path):
    models = Models()
    models.left = {"thinker": QUERIES - 3}
    with Scripted(models) as server:
        given = recipe(tmp_path, server)
        label(tmp_path, given)
        models.left = {}
        label(tmp_path, given)
        assert models.asked["thinker"] == QUERIES - 3
        strict = recipe(tmp_path, server, max_failed=0.05)
        with pytest.raises(StepError, match=r"generate: 3 of 30 failed.*with --again-from corpus"):
            label(tmp_path, strict)
        label(tmp_path, strict, "corpus")
    assert models.asked == dict.fromkeys(("thinker", *LEVELS), QUERIES)
    assert len(read_rows(tmp_path / "run" / "corpus" / "traces.jsonl", Trace)) == QUERIES


def test_the_form_follows_the_corpus_and_what_was_filled_in_is_kept(tmp_path):
    with Scripted(Models()) as server:
        label(tmp_path, recipe(tmp_path, server))
        form = tmp_path / "run" / "review.csv"
        before = form_of(tmp_path)
        whole = form.read_bytes()
        form.write_bytes(whole[: whole.rindex(b"\n", 0, len(whole) // 2) + 1])
        label(tmp_path, recipe(tmp_path, server))
        assert form_of(tmp_path) == before
        fill(form, before, "Ann", "1")
        label(tmp_path, recipe(tmp_path, server))
        assert {row["expert"] for row in form_of(tmp_path)} == {"Ann"}
        (tmp_path / "more.jsonl").write_text('{"text": "Quite another question about lids"}')
        more = {"sources": [{"name": "boxes", "files": ["queries.jsonl", "more.jsonl"]}]}
        said = label(tmp_path, recipe(tmp_path, server, **more), "corpus")
    assert len(form_of(tmp_path)) == QUERIES + 1
    assert {row["expert"] for row in form_of(tmp_path)} == {""}
    assert any("review.1.csv" in line for line in said)
    assert "Ann" in (tmp_path / "run" / "review.1.csv").read_text("utf-8")


def test_an_expert_may_correct_a_form_that_was_taken(tmp_path):
    with Scripted(Models()) as server:
        label(tmp_path, recipe(tmp_path, server))
        rows = form_of(tmp_path)[:1]
        names = [fill(tmp_path / f"{expert}.csv", rows, expert, "1") for expert in ("Ann", "Bo", "Cy")]
        label(tmp_path, recipe(tmp_path, server, reviews=names))
        for expert in ("Ann", "Bo"):
            fill(tmp_path / f"{expert}.csv", rows, expert, "0")
        label(tmp_path, recipe(tmp_path, server, reviews=names))
    corpus = tmp_path / "run" / "corpus"
    assert sorted(review.level for review in read_reviews(corpus)) == [0, 0, 1]
    (pair,) = read_rows(corpus / "expert_pairs.jsonl", Pair)
    assert (pair.chosen.level, pair.rejected.level) == (0, 1)


def test_an_expert_may_withdraw_a_vote(tmp_path):
    corpus = tmp_path / "run" / "corpus"
    with Scripted(Models()) as server:
        label(tmp_path, recipe(tmp_path, server))
        rows = form_of(tmp_path)[:1]
        names = [fill(tmp_path / f"{expert}.csv", rows, expert, "1") for expert in ("Ann", "Bo", "Cy")]
        label(tmp_path, recipe(tmp_path, server, reviews=names))
        assert len(read_rows(corpus / "expert_pairs.jsonl", Pair)) == 1
        fill(tmp_path / "Ann.csv", rows, "Ann", "")
        said = label(tmp_path, recipe(tmp_path, server, reviews=names))
        assert any(f"{QUERIES} traces wait for experts" in line for line in said)
        assert sorted(review.expert for review in read_reviews(corpus)) == ["Bo", "Cy"]
        assert read_rows(corpus / "expert_pairs.jsonl", Pair) == []
        label(tmp_path, recipe(tmp_path, server, reviews=names[:2]))
        assert [review.expert for review in read_reviews(corpus)] == ["Bo"]
        label(tmp_path, recipe(tmp_path, server))
    assert read_reviews(corpus) == []


def test_a_source_that_was_taken_out_of_the_recipe_leaves_the_corpus(tmp_path):
    (tmp_path / "lids.jsonl").write_text('{"text": "Which lid is it?"}')
    with Scripted(Models()) as server:
        one = recipe(tmp_path, server)
        two = recipe(tmp_path, server, sources=[*one.corpus.sources, {"name": "lids", "files": ["lids.jsonl"]}])
        label(tmp_path, two)
        with pytest.raises(StepError, match=r"imported as lids, .*--again-from corpus"):
            label(tmp_path, one)
        label(tmp_path, one, "corpus")
        label(tmp_path, one)
    assert {row.source for row in read_rows(tmp_path / "run" / "corpus" / "traces.jsonl", Trace)} == {"boxes"}
    assert len(form_of(tmp_path)) == QUERIES


def test_the_split_of_two_sources_may_be_changed_and_no_reply_is_paid_for_again(tmp_path):
    corpus = tmp_path / "run" / "corpus"
    models = Models()
    (tmp_path / "lids.jsonl").write_text('{"text": "Which lid is it?"}')
    with Scripted(models) as server:
        one = recipe(tmp_path, server)
        given: dict[str, Any] = {"sources": [*one.corpus.sources, {"name": "lids", "files": ["lids.jsonl"]}]}
        label(tmp_path, recipe(tmp_path, server, **given))
        other = recipe(tmp_path, server, **given, test_share=0.5).model_copy(update={"seed": 1})
        with pytest.raises(
            StepError, match=r"import-lids split this corpus with --test-share 0\.0.*--again-from corpus"
        ):
            label(tmp_path, other)
        label(tmp_path, other, "corpus")
        label(tmp_path, other)
    expected = {row.text: split_of(normalised(row.text), 0.5, 1) for row in read_rows(corpus / "queries.jsonl", Query)}
    assert {row.query: row.split for row in read_rows(corpus / "traces.jsonl", Trace)} == expected
    assert set(expected.values()) == {"train", "test"}
    assert models.asked == dict.fromkeys(("thinker", *LEVELS), QUERIES + 1)


def test_a_source_says_where_its_texts_and_categories_stand(tmp_path):
    both = {"Goal": "Get a lid off", "Behavior": "Lids", "kind": "Scams"}
    (tmp_path / "goals.jsonl").write_bytes(msgspec.json.encode(both))
    source = {"name": "goals", "files": ["goals.jsonl"]}
    fields = {"text_field": "Goal", "category_field": "kind", "category_as": {"Scams": "crime and illegal activities"}}
    with Scripted(Models()) as server:
        with pytest.raises(RowError, match=r"\(Goal, Behavior\); name it by --text-field, in a recipe text_field"):
            label(tmp_path, recipe(tmp_path, server, sources=[source]))
        runner = Runner(recipe(tmp_path, server, sources=[source | fields]), tmp_path / "recipe.yaml", print)
        runner._requests()
        (query,) = read_rows(runner.corpus / "queries.jsonl", Query)
        assert (query.text, query.category) == ("Get a lid off", "crime and illegal activities")
        bare = recipe(tmp_path, server, sources=[source | fields | {"categories": False}])
        begin_again(bare, "corpus", print)
        Runner(bare, tmp_path / "recipe.yaml", print, "corpus")._requests()
    (query,) = read_rows(runner.corpus / "queries.jsonl", Query)
    assert query.category is None


def test_a_source_that_says_nothing_is_imported_as_ever(tmp_path):
    with Scripted(Models()) as server:
        runner = Runner(recipe(tmp_path, server), tmp_path / "recipe.yaml", print)
    import_queries([tmp_path / "queries.jsonl"], runner.corpus, "boxes", Layout(format="auto"), test_share=0.0)
    path = runner.corpus / "import-boxes.manifest.json"
    before = path.read_bytes()
    runner._requests()
    assert path.read_bytes() == before
