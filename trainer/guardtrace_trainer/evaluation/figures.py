"""From judged items to the figures of one evaluation, as they are printed and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardtrace_trainer.evaluation.bootstrap import Interval, intervals
from guardtrace_trainer.evaluation.judged import Judged, Outcome
from guardtrace_trainer.evaluation.metrics import NONE, Levels, binary, calibration, label_tier, three_class, weighted
from guardtrace_trainer.rows import LEVELS, RowError

DIGITS = 4
THREE_CLASS = ("macro_f1", "accuracy", "weighted_macro_f1")
"""What a guard that knows two levels hasn't got."""


def figures_of(rows: Sequence[Judged], depth: str, *, levels: bool = True) -> dict[str, Any]:
    """All figures of one depth: overall and by subset with intervals, and by kind. Rows without a right level are left
    out.

    Without ``levels`` the judge knows only safe and unsafe, and three-class figures are None.

    Raises:
        RowError: no row has a right level.
    """
    rows = [row for row in rows if row.level is not None]
    if not rows:
        raise RowError("no item has a right level: there is nothing to measure")
    right, judged = right_levels(rows), judged_levels(rows, depth)
    found = _figures(right, judged, levels)
    by_subset = {name: _figures(right[at], judged[at], levels) for name, at in _parts(row.subset for row in rows)}
    found["weighted"] = {name: weighted(by_subset, name) for name in ("binary_f1", "macro_f1")}
    found["intervals"] = _intervals(found, rows, right, judged, levels)
    for name, at in _parts(row.subset for row in rows):
        part = [rows[index] for index in at]
        by_subset[name]["intervals"] = _intervals(by_subset[name], part, right[at], judged[at], levels)
    found["by_subset"] = by_subset
    found["by_kind"] = {
        name: {"n": len(at), **binary(right[at], judged[at])} for name, at in _parts(row.kind for row in rows)
    }
    if levels:
        found["calibration"] = calibration(right, _probabilities(rows, depth))
    outcomes = [row.outcomes[depth] for row in rows]
    found["failures"] = dict(Counter(outcome.failure for outcome in outcomes if outcome.failure))
    found["escalated"] = sum(outcome.escalated for outcome in outcomes)
    found["in_pieces"] = sum(outcome.pieces > 1 for outcome in outcomes)
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def label_figures(rows: Sequence[Judged], escalate_at: float) -> dict[str, Any]:
    """What the label read at ``escalate_at`` catches, over rows with a right level."""
    rows = [row for row in rows if row.level is not None]
    risks = [row.outcomes["label"].risk for row in rows]
    found: dict[str, Any] = _rounded(label_tier(right_levels(rows), risks, escalate_at))
    return found


def milliseconds(rows: Sequence[Judged], depth: str) -> dict[str, float] | None:
    """How long one item took; None where nobody measured."""
    took = [row.outcomes[depth].milliseconds for row in rows]
    known = [value for value in took if value is not None]
    if not known:
        return None
    median, p95 = np.quantile(known, (0.5, 0.95))
    return {"median": round(float(median), 1), "p95": round(float(p95), 1)}


def groups_of(rows: Sequence[Judged]) -> list[str]:
    """What is drawn as one for intervals: an item without a group stands alone."""
    return [row.group or row.id for row in rows]


def right_levels(rows: Sequence[Judged]) -> Levels:
    """The right levels, as 0, 1, 2."""
    return np.array([LEVELS.index(row.level) for row in rows if row.level is not None], np.int64)


def judged_levels(rows: Sequence[Judged], depth: str) -> Levels:
    """The judged ones, as 0, 1, 2 or -1; what a guard with two levels calls unsafe is 2."""
    return np.array([_level(row.outcomes[depth]) for row in rows], np.int64)


def _level(outcome: Outcome) -> int:
    if outcome.failure is not None:
        return NONE
    if outcome.level is not None:
        return LEVELS.index(outcome.level)
    return 2 if outcome.unsafe else 0


def _figures(right: Levels, judged: Levels, levels: bool) -> dict[str, Any]:
    three = three_class(right, judged)
    if not levels:
        three = {"n": three["n"], "macro_f1": None, "accuracy": None}
    return {**three, **binary(right, judged)}


def _parts(named: Iterable[str]) -> list[tuple[str, Levels]]:
    """Where each name stands."""
    names = np.array(list(named))
    return [(name, np.flatnonzero(names == name)) for name in dict.fromkeys(names.tolist())]


def _intervals(
    found: dict[str, Any], rows: Sequence[Judged], right: Levels, judged: Levels, levels: bool
) -> dict[str, Interval]:
    """Those of the figures that there are."""
    drawn = intervals(right, judged, [row.subset for row in rows], groups_of(rows))
    return {
        name: interval for name, interval in drawn.items() if _has(found, name) and (levels or name not in THREE_CLASS)
    }


def _probabilities(rows: Sequence[Judged], depth: str) -> NDArray[np.float64]:
    return np.array([row.outcomes[depth].probabilities or (np.nan,) * 3 for row in rows], float)


def _has(found: dict[str, Any], name: str) -> bool:
    if name.startswith("weighted_"):
        return found.get("weighted", {}).get(name.removeprefix("weighted_")) is not None
    return found[name] is not None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value
