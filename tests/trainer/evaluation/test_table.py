"""Figures of judged items, and results side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation import commands
from guardtrace_trainer.evaluation.figures import figures_of, label_figures, milliseconds
from guardtrace_trainer.evaluation.judged import Judged, Outcome
from guardtrace_trainer.evaluation.table import PAPER, SIZES, comparison, differences, markdown, summary
from guardtrace_trainer.rows import RowError, write_rows


def judged(number: int, right: float | None, outcome: Outcome, subset: str = "MM-Eval", kind: str = "unsafe") -> Judged:
    return Judged(
        id=f"{subset}/{number}", subset=subset, kind=kind, category="other", level=right, outcomes={"annotate": outcome}
    )


def rows_of(pairs: list[tuple[float | None, float | None]], subset: str = "MM-Eval") -> list[Judged]:
    """Of right and judged levels; None judged is a failure."""
    return [
        judged(
            number,
            right,
            Outcome(failure="timeout") if level is None else Outcome(level=level, milliseconds=float(number)),
            subset,
            "unsafe" if right else "benign",
        )
        for number, (right, level) in enumerate(pairs)
    ]


def result_of(rows: list[Judged], levels: bool = True) -> dict[str, Any]:
    found = figures_of(rows, "annotate", levels=levels)
    return {"depth": "annotate", "macro_f1": found["macro_f1"], "depths": {"annotate": found}}


def saved(path: Path, rows: list[Judged], levels: bool = True) -> Path:
    write_rows(path.with_name(f"{path.stem}.verdicts.jsonl"), rows)
    path.write_text(json.dumps(result_of(rows, levels)), "utf-8")
    return path


GOOD = [(0.0, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.0, 0.5), (None, 1.0)]
BAD = [(0.0, 1.0), (0.0, 0.0), (0.5, 0.0), (1.0, 1.0), (1.0, None), (None, 1.0)]


def test_figures_by_subset_and_kind() -> None:
    found = figures_of([*rows_of(GOOD), *rows_of(BAD, "mine")], "annotate")
    assert (found["n"], found["no_verdict"], found["failures"]) == (10, 1, {"timeout": 1})
    assert found["by_subset"]["MM-Eval"]["binary_f1"] == 1.0
    assert found["by_subset"]["mine"]["binary_f1"] == pytest.approx(0.4)
    assert found["weighted"]["binary_f1"] == pytest.approx(0.7)
    assert found["by_kind"]["benign"]["false_alarms"] == 0.25
    assert found["by_kind"]["unsafe"]["recall"] == pytest.approx(4 / 6, abs=1e-4)
    assert found["by_kind"]["unsafe"]["n"] == 6
    assert found["calibration"] is None
    json.dumps(found)


def test_without_right_levels_there_is_nothing_to_measure() -> None:
    with pytest.raises(RowError, match="nothing to measure"):
        figures_of(rows_of([(None, 1.0)]), "annotate")


def test_label_reads_that_failed_escalate() -> None:
    rows = [
        Judged(id=str(n), subset="s", kind="k", category="c", level=level, outcomes={"label": outcome})
        for n, (level, outcome) in enumerate(
            [
                (0.0, Outcome(level=0.0, probabilities=(0.96, 0.02, 0.02))),
                (1.0, Outcome(level=0.0, probabilities=(0.9, 0.05, 0.05))),
                (0.5, Outcome(failure="unsure")),
                (1.0, Outcome(level=0.0, probabilities=(0.99, 0.0, 0.01))),
                (None, Outcome(failure="unsure")),
            ]
        )
    ]
    found = label_figures(rows, 0.08)
    assert found == {"n": 4, "escalate_at": 0.08, "recall": 0.6667, "safe_escalated": 0.0, "unread": 1}


def test_times_are_of_items_that_were_judged() -> None:
    assert milliseconds(rows_of([(0.0, None), (0.0, 0.0), (0.0, 0.0)]), "annotate") == {"median": 1.5, "p95": 1.9}
    assert milliseconds(rows_of([(0.0, None)]), "annotate") is None


def test_the_papers_own_averages_agree_with_its_subsets() -> None:
    for figures, average in PAPER.values():
        assert len(figures) in (0, len(SIZES))
        assert figures or average is not None


def test_the_papers_table() -> None:
    table = comparison({"ours": result_of(rows_of(GOOD)), "other": result_of(rows_of(BAD), levels=False)})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["F1 in %", "n", "MM-Eval", "average"]
    assert lines[2] == ["ours", "5", "100.00", "100.00"]
    assert lines[3] == ["other", "5", "40.00", "40.00"]
    assert ["GuardTrace-VL-3B (paper)", "2000", "91.31", "93.10"] in lines
    assert ["Qwen2.5-VL-3B (base) (paper)", "2000", "57.91", "47.74"] in lines
    assert ["GPT-5 (paper)", "2000", "", "88.86"] in lines


def test_other_sets_stand_alone() -> None:
    two = result_of([*rows_of(GOOD, "a"), *rows_of(BAD, "b")])
    table = comparison({"one": result_of(rows_of(BAD, "b")), "two": two})
    assert "paper" not in table
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["F1 in %", "n", "b", "a", "average"]
    assert lines[2:] == [["one", "5", "40.00", "", "40.00"], ["two", "10", "40.00", "100.00", "70.00"]]


def test_a_summary_names_depth_subset_and_kind() -> None:
    shown = summary(result_of([*rows_of(GOOD, "a"), *rows_of(BAD, "b")]))
    assert "| annotate | all    | 10 |" in shown
    assert "| annotate | b      | 5  |" in shown
    assert "| benign          | 4 | 25.00" in shown


def compare(*args: object) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(commands.compare)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_paired_differences_from_the_first(tmp_path: Path) -> None:
    base, tuned = saved(tmp_path / "base.json", rows_of(BAD)), saved(tmp_path / "tuned.json", rows_of(GOOD))
    shown = compare(base, tuned, "--paired")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"\| tuned − base \| binary_f1 \| \+60\.00 \| \+\d+\.\d\d to \+100\.00 \|", shown.stdout)
    guard = saved(tmp_path / "guard.json", rows_of(GOOD), levels=False)
    assert "macro_f1" not in differences({"base": base, "guard": guard})


def test_results_that_can_not_be_compared(tmp_path: Path) -> None:
    base = saved(tmp_path / "base.json", rows_of(BAD))
    others = saved(tmp_path / "others.json", rows_of(GOOD, "mine"))
    with pytest.raises(RowError, match="its items aren't those of"):
        differences({"base": base, "others": others})
    (tmp_path / "odd.json").write_text("{}")
    for wrong, message in ((tmp_path / "odd.json", "expected what `evaluate --out` wrote"), (base, "same file name")):
        shown = compare(base, wrong)
        assert (shown.exit_code, message in shown.stderr) == (1, True)


def test_columns_stand_in_line() -> None:
    assert markdown(["a", "long"], [["xyz", "1"]]) == "| a   | long |\n|-----|------|\n| xyz | 1    |"
