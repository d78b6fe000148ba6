"""Intervals by the bootstrap: groups of items are drawn again, with replacement, within each subset.

A group is what errs together: the beginnings of one trace, the variants and answers of one query. An item that has no
group is one of its own. Subsets that share groups are drawn as one.

All figures here depend on nothing but how many items fall into each cell of a table (right level, judged level), and
how often a resample hits each kind of group, those with the same tables, is multinomial. So tables are drawn, not
items: the same distribution, in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardtrace_trainer.evaluation.metrics import Levels

Tables = NDArray[np.int64]
"""Counts [..., right 0 | 0.5 | 1, judged 0 | 0.5 | 1 | none]."""
RESAMPLES = 2000
CONFIDENCE = 0.95
FIGURES = ("macro_f1", "accuracy", "binary_f1", "binary_accuracy", "precision", "recall", "false_alarms")
Interval = tuple[float, float]


def figures(tables: Tables) -> dict[str, NDArray[np.float64]]:
    """The figures of each table, as ``metrics`` defines them, but 0 where those are None."""
    counts = tables.astype(float)
    diagonal = np.stack([counts[..., level, level] for level in range(3)], axis=-1)
    right, judged = counts.sum(axis=-1), counts[..., :3].sum(axis=-2)
    total = right.sum(axis=-1)
    hits = counts[..., 1:, 1:3].sum(axis=(-1, -2))
    missed = counts[..., 1:, :].sum(axis=(-1, -2)) - hits
    alarms = counts[..., 0, 1:].sum(axis=-1)
    passed = counts[..., 0, 0]
    return {
        "macro_f1": _share(2 * diagonal, right + judged).mean(axis=-1),
        "accuracy": _share(diagonal.sum(axis=-1), total),
        "binary_f1": _share(2 * hits, 2 * hits + missed + alarms),
        "binary_accuracy": _share(hits + passed, total),
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, hits + missed),
        "false_alarms": _share(alarms, alarms + passed),
    }


def intervals(
    right: Levels,
    judged: Levels,
    subsets: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """The 95 % interval of each figure over all items; ``weighted_*`` are those of the averages over subsets."""
    tables = _resample(_cells(right, judged), 12, subsets, groups, seed, resamples)
    drawn = _with_weighted(tables.reshape(*tables.shape[:2], 3, 4))
    return {name: _interval(values) for name, values in drawn.items()}


def paired_differences(
    right: Levels,
    one: Levels,
    other: Levels,
    subsets: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """How much higher each figure of ``other`` is than that of ``one``, two auditors on the same items, with intervals.

    Both are resampled together, so what is hard for both cancels out: narrower than two intervals side by side.
    """
    cells = _cells(right, one) * 4 + (other % 4)
    tables = _resample(cells, 48, subsets, groups, seed, resamples)
    drawn = tables.reshape(*tables.shape[:2], 3, 4, 4)
    first, second = (_with_weighted(drawn.sum(axis=axis)) for axis in (-1, -2))
    seen = _tables(cells, 48, subsets).reshape(-1, 1, 3, 4, 4)
    before, after = (_with_weighted(seen.sum(axis=axis)) for axis in (-1, -2))
    return {
        name: {
            "difference": float((after[name] - before[name])[0]),
            "interval": _interval(second[name] - first[name]),
        }
        for name in first
    }


def _cells(right: Levels, judged: Levels) -> Levels:
    cells: Levels = right * 4 + judged % 4  # no verdict, -1, becomes 3
    return cells


def _tables(cells: Levels, count: int, subsets: Sequence[str]) -> Tables:
    """How many items of each subset are in each cell: [subsets, count]."""
    named = np.asarray(subsets)
    return np.stack([np.bincount(cells[named == name], minlength=count) for name in sorted(set(subsets))])


def _resample(
    cells: Levels, count: int, subsets: Sequence[str], groups: Sequence[str] | None, seed: int, resamples: int
) -> Tables:
    """Tables [subsets, resamples, count]."""
    if len(cells) == 0:
        raise ValueError("there are no items to resample")
    rng = np.random.default_rng(seed)
    _, subset = np.unique(np.asarray(subsets), return_inverse=True)
    group = np.arange(len(cells)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    stratum = _strata(subset, group)
    drawn = np.zeros((subset.max() + 1, resamples, count), np.int64)
    for number in np.unique(stratum):
        inside = stratum == number
        own, place = np.unique(subset[inside], return_inverse=True)
        members, member = np.unique(group[inside], return_inverse=True)
        tables = np.zeros((len(members), len(own), count), np.int64)
        np.add.at(tables, (member, place, cells[inside]), 1)
        kinds, often = np.unique(tables.reshape(len(members), -1), axis=0, return_counts=True)
        hits = rng.multinomial(len(members), often / len(members), resamples)
        sums = (hits.astype(float) @ kinds.astype(float)).astype(np.int64)
        drawn[own] = sums.reshape(resamples, len(own), count).transpose(1, 0, 2)
    return drawn


def _strata(subset: Levels, group: Levels) -> Levels:
    """A number for each item: the same for all of a subset, and for subsets that share groups."""
    found: Levels = subset.copy()
    while True:
        of_group = np.full(group.max() + 1, len(found))
        np.minimum.at(of_group, group, found)
        of_subset = np.full(subset.max() + 1, len(found))
        np.minimum.at(of_subset, subset, of_group[group])
        joined: Levels = of_subset[subset]
        if np.array_equal(joined, found):
            return found
        found = joined


def _with_weighted(tables: Tables) -> dict[str, NDArray[np.float64]]:
    """Figures of [subsets, resamples, 3, 4] over all items, and averaged over those subsets that have them, by their
    sizes."""
    found = figures(tables.sum(axis=0))
    by_subset = figures(tables)
    sizes = tables.sum(axis=(-1, -2)).astype(float)
    unsafe = tables[..., 1:, :].sum(axis=(-1, -2)) > 0
    every_level = (tables.sum(axis=-1) > 0).all(axis=-1)
    for name, known in (("binary_f1", unsafe), ("macro_f1", every_level)):
        weights = sizes * known
        found[f"weighted_{name}"] = _share((weights * by_subset[name]).sum(axis=0), weights.sum(axis=0))
    return found


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _interval(values: NDArray[np.float64]) -> Interval:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return float(low), float(high)
