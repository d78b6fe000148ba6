"""The ablation of the embedded auditor's card, from the run folders of several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from guardtrace_trainer.evaluation.table import markdown
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.run_report import differences

STAGES = ("base", "sft", "dpo", "ogdpo")
Figures = Mapping[str, Any]


def card(runs: Sequence[Path]) -> str:
    """Markdown: what each stage reaches on each set, mean and worst seed, and what each adds to the one before.

    Raises:
        RowError: a run has no evaluation.
    """
    sets = [path.parent.name for path in sorted(runs[0].glob("evaluation/*/base.json"))]
    if not sets:
        raise RowError(f"{runs[0]}: there is no evaluation; `guardtrace-train run` ends with one")
    return "\n\n".join(part for name in sets for part in _tables([run / "evaluation" / name for run in runs]))


def _tables(folders: Sequence[Path]) -> Iterator[str]:
    stages = [stage for stage in STAGES if all((folder / f"{stage}.json").is_file() for folder in folders)]
    results = {stage: [_read(folder / f"{stage}.json") for folder in folders] for stage in stages}
    name = folders[0].name
    subsets = results["base"][0]["by_subset"]
    rows = [_row("all", results)] if len(subsets) > 1 else []
    for subset in subsets:
        parts = {stage: [figures["by_subset"][subset] for figures in found] for stage, found in results.items()}
        rows.append(_row(subset, parts))
    yield markdown([f"macro-F1 on {name}, mean (worst)", "n", *stages], rows)
    lines = []
    for number, folder in enumerate(folders):
        paths = {stage: folder / f"{stage}.json" for stage in stages}
        lines += [[f"run {number}", *line] for line in differences(paths)]
    yield markdown([f"on {name}", "difference", "points", "95 % interval"], lines)


def _row(title: str, found: Mapping[str, Sequence[Figures]]) -> list[str]:
    return [title, str(found["base"][0]["n"]), *(_mean_and_worst(figures) for figures in found.values())]


def _mean_and_worst(figures: Sequence[Figures]) -> str:
    """Of macro-F1; where a level never comes, of the share that is judged right."""
    name = "accuracy" if any(found["macro_f1"] is None for found in figures) else "macro_f1"
    values = [float(found[name]) for found in figures]
    return f"{mean(values):.3f} ({min(values):.3f})" + (" right" if name == "accuracy" else "")


def _read(path: Path) -> Figures:
    try:
        figures: Figures = json.loads(path.read_text("utf-8"))["depths"]["annotate"]
    except (OSError, ValueError, KeyError) as error:
        raise RowError(f"{path}: expected what `guardtrace-train run` wrote ({type(error).__name__})") from error
    return figures
