"""The end of a run: the corpus's own test split, the hard negatives beside the whole, and the card's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation.data import HARD_NEGATIVES
from guardtrace_trainer.evaluation.figures import figures_of
from guardtrace_trainer.evaluation.judged import Judged, Outcome
from guardtrace_trainer.nano.card import card
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.rows import Annotation, Labelled, RowError, write_rows
from guardtrace_trainer.run import Runner
from guardtrace_trainer.run_report import check_inputs, differences
from guardtrace_trainer.settings import read_settings
from guardtrace_trainer.steps import StepError
from tests.trainer.evaluation.serving import row, write_qta

NANO = Path(__file__).parents[2] / "trainer" / "recipes" / "nano.yaml"
LEVELS = (0.0, 0.5, 1.0)


def rows_of(right_on_plain: int, right_on_hard: int) -> list[Judged]:
    """Twelve plain items and twelve hard negatives, the first so many of each judged right."""
    return [
        Judged(
            id=f"{subset}/{number}",
            subset=subset,
            kind="benign",
            category="other",
            level=LEVELS[number % 3],
            outcomes={"annotate": Outcome(level=LEVELS[(number if number < right else number + 1) % 3])},
        )
        for subset, right in (("plain", right_on_plain), (HARD_NEGATIVES, right_on_hard))
        for number in range(12)
    ]


def saved(folder: Path, stage: str, rows: list[Judged]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / f"{stage}.verdicts.jsonl", rows)
    found = figures_of(rows, "annotate")
    path = folder / f"{stage}.json"
    path.write_text(json.dumps({"depth": "annotate", "depths": {"annotate": found}}), "utf-8")
    return path


def test_hard_negatives_stand_beside_the_whole(tmp_path: Path) -> None:
    by_stage = {"base": saved(tmp_path, "base", rows_of(3, 3)), "sft": saved(tmp_path, "sft", rows_of(12, 3))}
    whole, hard = differences(by_stage)
    assert [line[:2] for line in (whole, hard)] == [
        ("sft − base, macro-F1", "all"),
        ("sft − base, macro-F1", HARD_NEGATIVES),
    ]
    assert float(whole[2]) > 30
    assert hard[2:] == ("+0.00", "+0.00 to +0.00")


def test_the_card_has_intervals_of_each_run_for_the_whole_and_for_hard_negatives(tmp_path: Path) -> None:
    for run in ("one", "two"):
        saved(tmp_path / run / "evaluation" / "held-out", "base", rows_of(3, 3))
        saved(tmp_path / run / "evaluation" / "held-out", "sft", rows_of(12, 6))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in card([*tmp_path.iterdir()]).splitlines()]
    for run in ("run 0", "run 1"):
        for subset in ("all", HARD_NEGATIVES):
            figures = next(line for line in lines if line[:2] == [run, subset])
            assert all(" to " in cell for cell in figures[2:])
            difference = next(line for line in lines if line[:3] == [run, "sft − base, macro-F1", subset])
            assert " to " in difference[4]


def runner(folder: Path, **evaluation: object) -> Runner:
    content = yaml.safe_load(NANO.read_text("utf-8"))
    del content["nano"]
    content |= {"base": "builtin:nano", "folder": str(folder / "run"), "evaluation": evaluation}
    content["corpus"]["sources"] = [{"name": "s", "files": ["queries.jsonl"]}]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return Runner(read_settings(path, Recipe), path, lambda line: None)


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"data": [{"path": "nowhere"}]}, r"nowhere: expected a folder with qta\.jsonl"),
        ({"streaming": [{"path": "set", "half": "dev"}]}, r"qta\.jsonl, line 1, field half: expected dev or test"),
        ({"streaming": [{"path": "set"}], "policy": "balanecd"}, r"evaluation\.policy: there is no policies/balanecd"),
    ],
)
def test_what_is_evaluated_on_is_looked_at_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: dict[str, object], said: str
) -> None:
    write_qta(tmp_path / "set", [row(1, 1.0)])
    monkeypatch.setattr(Runner, "train", None)
    with pytest.raises((RowError, StepError), match=said):
        runner(tmp_path, **evaluation).run()


def test_a_set_that_the_run_makes_is_looked_at_when_it_is_there(tmp_path: Path) -> None:
    ours = runner(tmp_path, data=[{"path": "run/corpus/expert_test.jsonl"}])
    check_inputs(ours.recipe, [ours._data(each) for each in ours.recipe.evaluation.data], [])


def labelled(number: int, level: float) -> Labelled:
    return Labelled(
        id=f"t{number}",
        query_id=f"q{number}",
        query="How is bread made?",
        source="s",
        split="test",
        variant="text",
        question="How is bread made?",
        request_id=f"r{number}",
        model="m",
        thinking="They ask about bread.",
        answer="Knead it.",
        agreement="3:0",
        annotation=Annotation(judge="j", level=level, analysis="x"),
    )


def test_a_corpus_s_own_test_split_is_judged_by_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "train", lambda self: {"base": "builtin:nano", "sft": "builtin:nano"})
    ours = runner(tmp_path, annotate_max_tokens=16, may_be_mute=True)
    ours.corpus.mkdir(parents=True)
    for name in ("test.jsonl", "expert_test.jsonl"):
        write_rows(ours.corpus / name, [])
    assert "No stage was evaluated" in ours.run().read_text("utf-8")
    write_rows(ours.corpus / "test.jsonl", [labelled(1, 0.0), labelled(2, 1.0)])
    write_rows(ours.corpus / "expert_test.jsonl", [labelled(3, 0.5)])
    report = ours.run().read_text("utf-8")
    for words in ("Stages on corpus", "sft − base", "text (3)"):
        assert words in report, words
    assert "No stage was evaluated" not in report
