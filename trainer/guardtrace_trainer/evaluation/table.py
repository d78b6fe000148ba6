"""Results side by side, in the layout of the paper's table: F1 by subset and the average weighted by size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardtrace_trainer.evaluation.bootstrap import paired_differences
from guardtrace_trainer.evaluation.evaluate import verdicts_beside
from guardtrace_trainer.evaluation.figures import groups_of, judged_levels, right_levels
from guardtrace_trainer.evaluation.judged import Judged
from guardtrace_trainer.rows import RowError, read_rows

SIZES = {"S-Eval-VL": 600, "HADES-Eval": 400, "MM-Eval": 500, "MMJ-Eval": 500}
PAPER: Mapping[str, tuple[Sequence[float], float | None]] = {
    "GuardTrace-VL-3B": ((93.33, 95.88, 91.31, 92.39), 93.10),
    "GuardTrace-VL-3B, DPO": ((92.16, 94.81, 90.87, 91.12), None),
    "GuardTrace-VL-3B, SFT": ((89.89, 94.14, 90.02, 89.53), None),
    "Qwen2.5-VL-3B (base)": ((43.61, 34.27, 57.91, 53.31), None),
    "GPT-5": ((), 88.86),
    "Qwen3-VL-Plus": ((), 87.54),
    "Qwen2.5-VL-32B": ((), 84.93),
    "LLaMA-Guard-4-12B": ((), 79.55),
    "GuardReasoner-VL-7B": ((), 74.32),
    "OpenAI Moderation": ((), 64.86),
}
"""F1 in percent by subset in the order of ``SIZES``, and the average, as far as they are at hand: figures of the paper
(GuardTrace-VL, arXiv 2511.20994), none of them measured here."""


def read_result(path: Path) -> dict[str, Any]:
    """A file that ``evaluate --out`` wrote.

    Raises:
        RowError: it is none.
    """
    try:
        result = json.loads(path.read_text("utf-8"))
        result["depths"][result["depth"]]["by_subset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RowError(f"{path}: expected what `evaluate --out` wrote ({type(error).__name__}: {error})") from error
    return result  # type: ignore[no-any-return]


def comparison(results: Mapping[str, dict[str, Any]]) -> str:
    """A Markdown table: a row for each result and depth, and the paper's own where one of its subsets was evaluated."""
    evaluated = [
        (_label(name, result, depth), found)
        for name, result in results.items()
        for depth, found in result["depths"].items()
    ]
    seen = list(dict.fromkeys(subset for _, found in evaluated for subset in found["by_subset"]))
    subsets = [*(name for name in SIZES if name in seen), *(name for name in seen if name not in SIZES)]
    rows = [[label, str(found["n"]), *_figures(found, subsets)] for label, found in evaluated]
    if any(subset in SIZES for subset in subsets):
        rows += [_paper(name, subsets) for name in PAPER]
    return markdown(["F1 in %", "n", *subsets, "average"], rows)


def differences(results: Mapping[str, Path]) -> str:
    """How every other result's figures differ from the first one's on the same items, with paired 95 % intervals.

    Raises:
        RowError: there are no verdicts beside a result, or they are of other items.
    """
    (first, path), *others = results.items()
    base = read_result(path)
    rows = []
    for name, other in others:
        result = read_result(other)
        found = paired(path, other, base["depth"], result["depth"])
        names = ["binary_f1"] if None in (base["macro_f1"], result["macro_f1"]) else ["macro_f1", "binary_f1"]
        rows += [[f"{name} − {first}", figure, *difference_cells(found[figure])] for figure in names]
    return markdown(["difference", "figure", "points", "95 % interval"], rows)


def paired(
    one: Path, other: Path, depth: str, other_depth: str, subset: str | None = None
) -> dict[str, dict[str, Any]]:
    """The differences of two results' figures on the same items, those with a right level; only of one ``subset``, if
    it is given.

    Raises:
        RowError: there are no verdicts beside a result, or they are of other items.
    """
    base_rows, other_rows = _verdicts(one), _verdicts(other)
    if [(row.id, row.level) for row in base_rows] != [(row.id, row.level) for row in other_rows]:
        raise RowError(f"{other}: its items aren't those of {one}, so the two can't be paired")
    labelled = [index for index, row in enumerate(base_rows) if row.level is not None and subset in (None, row.subset)]
    kept, others_kept = [base_rows[i] for i in labelled], [other_rows[i] for i in labelled]
    return paired_differences(
        right_levels(kept),
        judged_levels(kept, depth),
        judged_levels(others_kept, other_depth),
        [row.subset for row in kept],
        groups_of(kept),
    )


def summary(result: dict[str, Any]) -> str:
    """One result for a person: figures by subset and depth with intervals, kinds, the label tier."""
    rows = []
    for depth, found in result["depths"].items():
        rows.append(
            [depth, "all", str(found["n"]), *(_with_interval(found, name) for name in ("macro_f1", "binary_f1"))]
        )
        rows[-1] += [_with_interval(found, "accuracy"), str(found["no_verdict"])]
        for subset, part in found["by_subset"].items() if len(found["by_subset"]) > 1 else ():
            shown = [_with_interval(part, name) for name in ("macro_f1", "binary_f1", "accuracy")]
            rows.append([depth, subset, str(part["n"]), *shown, str(part["no_verdict"])])
    parts = [markdown(["depth", "subset", "n", "macro-F1", "F1 (harmful)", "accuracy", "no verdict"], rows)]
    main = result["depths"][result["depth"]]
    kinds = [
        [kind, str(part["n"]), _percent(part["false_alarms"]), _percent(part["recall"])]
        for kind, part in main["by_kind"].items()
    ]
    parts.append(markdown([f"kind ({result['depth']})", "n", "flagged though safe", "found"], kinds))
    if "label_tier" in result:
        tier = result["label_tier"]
        parts.append(
            f"label at escalate_at {tier['escalate_at']:g}: {_percent(tier['recall'])} % of harmful traces escalate, "
            f"{_percent(tier['safe_escalated'])} % of safe ones"
        )
    return "\n\n".join(parts)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns in line."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    written = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([written[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *written[1:]])


def _label(name: str, result: dict[str, Any], depth: str) -> str:
    return name if len(result["depths"]) == 1 else f"{name}, {depth}"


def _figures(found: dict[str, Any], subsets: Sequence[str]) -> list[str]:
    by_subset = found["by_subset"]
    shown = [_percent(by_subset[name]["binary_f1"]) if name in by_subset else "" for name in subsets]
    return [*shown, _percent(found["weighted"]["binary_f1"])]


def _paper(name: str, subsets: Sequence[str]) -> list[str]:
    figures, average = PAPER[name]
    known = dict(zip(SIZES, figures, strict=False))
    shown = [f"{known[subset]:.2f}" if subset in known else "" for subset in subsets]
    if average is None:
        average = float(np.average(figures, weights=list(SIZES.values())))
    return [f"{name} (paper)", str(sum(SIZES.values())), *shown, f"{average:.2f}"]


def _verdicts(path: Path) -> list[Judged]:
    return read_rows(verdicts_beside(path), Judged)


def difference_cells(found: Mapping[str, Any]) -> list[str]:
    """Points and their interval."""
    low, high = found["interval"]
    return [f"{100 * found['difference']:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"]


def _with_interval(found: dict[str, Any], name: str) -> str:
    known = found.get("intervals", {})  # those of subsets aren't in older results
    if name not in known:
        return _percent(found[name])
    low, high = known[name]
    return f"{_percent(found[name])} ({_percent(low)}–{_percent(high)})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
