"""The ablation of the embedded auditor's card, from the run folders of several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from guardtrace_trainer.evaluation.data import HARD_NEGATIVES
from guardtrace_trainer.evaluation.table import markdown
from guardtrace_trainer.rows import RowError
from guardtrace_trainer.run_report import DIFFERENCES, NAMES, differences, main_figure

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
    title = f"{NAMES[main_figure(results['base'][0])]} on {name}"
    yield markdown([f"{title}, mean (worst)", "n", *stages], rows)
    yield markdown([title, "on", *stages], list(_each_run(results)))
    lines = []
    for number, folder in enumerate(folders):
        paths = {stage: folder / f"{stage}.json" for stage in stages}
        lines += [[f"run {number}", *line] for line in differences(paths)]
    yield markdown([name, *DIFFERENCES], lines)


def _each_run(results: Mapping[str, Sequence[Figures]]) -> Iterator[list[str]]:
    """Figures with their intervals, of the whole set and of its hard negatives."""
    for number in range(len(results["base"])):
        found = {stage: runs[number] for stage, runs in results.items()}
        yield [f"run {number}", "all", *map(_with_interval, found.values())]
        if HARD_NEGATIVES in found["base"]["by_subset"]:
            hard = [figures["by_subset"][HARD_NEGATIVES] for figures in found.values()]
            yield [f"run {number}", HARD_NEGATIVES, *map(_with_interval, hard)]


def _with_interval(found: Figures) -> str:
    name = main_figure(found)
    low, high = found["intervals"][name]
    return f"{found[name]:.3f} ({low:.3f} to {high:.3f})" + (" right" if name == "accuracy" else "")


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
