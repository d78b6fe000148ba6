"""Intervals: the same figures as elsewhere, the same spread as drawing items, and pairs that cancel out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation.bootstrap import FIGURES, figures, intervals, paired_differences
from guardtrace_trainer.evaluation.metrics import binary, three_class

judgments = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=80)
SUBSETS = ["a"] * 150 + ["b"] * 50


def some(seed: int, right_share: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 3, len(SUBSETS))
    return right, np.where(rng.random(len(SUBSETS)) < right_share, right, rng.integers(-1, 3, len(SUBSETS)))


def table(right: np.ndarray, judged: np.ndarray) -> np.ndarray:
    return np.bincount(right * 4 + judged % 4, minlength=12).reshape(3, 4)


@settings(max_examples=40)
@given(judgments)
def test_a_tables_figures_are_those_of_its_items(pairs: list[tuple[int, int]]) -> None:
    right, judged = (np.array(column) for column in zip(*pairs, strict=True))
    found = figures(table(right, judged))
    expected = {**three_class(right, judged), **binary(right, judged)}
    for name in FIGURES:
        assert expected[name] is None or found[name] == pytest.approx(expected[name]), name


def test_the_spread_is_that_of_drawing_items() -> None:
    right, judged = some(1, 0.8)
    found = intervals(right, judged, SUBSETS, resamples=4000)
    rng, named = np.random.default_rng(5), np.array(SUBSETS)
    drawn: dict[str, list[float]] = {"macro_f1": [], "binary_f1": [], "weighted_binary_f1": []}
    for _ in range(3000):
        places = [rng.choice(np.flatnonzero(named == name), (named == name).sum()) for name in "ab"]
        tables = np.stack([table(right[every], judged[every]) for every in places])
        of_all, by_subset = figures(tables.sum(axis=0)), figures(tables)
        drawn["macro_f1"].append(float(of_all["macro_f1"]))
        drawn["binary_f1"].append(float(of_all["binary_f1"]))
        drawn["weighted_binary_f1"].append(float(np.average(by_subset["binary_f1"], weights=[150, 50])))
    for name, values in drawn.items():
        assert found[name] == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=0.01), name


def test_an_interval_holds_its_figure_and_its_seed_decides() -> None:
    right, judged = some(2, 0.7)
    found = intervals(right, judged, SUBSETS, seed=3)
    expected = {**three_class(right, judged), **binary(right, judged)}
    for name in FIGURES:
        low, high = found[name]
        assert low < expected[name] < high
        assert high - low < 0.25
    assert intervals(right, judged, SUBSETS, seed=3) == found
    assert intervals(right, judged, SUBSETS, seed=4) != found


def test_drawing_stays_within_subsets() -> None:
    right = np.array([0] * 5 + [2] * 5)
    found = intervals(right, right % 1, ["safe"] * 5 + ["unsafe"] * 5)  # everything judged safe
    assert found["accuracy"] == (0.5, 0.5)
    assert found["recall"] == (0.0, 0.0)


def test_one_auditor_against_itself_differs_by_nothing() -> None:
    right, judged = some(3, 0.7)
    for found in paired_differences(right, judged, judged, SUBSETS).values():
        assert found == {"difference": 0.0, "interval": (0.0, 0.0)}


def test_differences_are_paired() -> None:
    right, one = some(4, 0.6)
    other = one.copy()
    mended = np.flatnonzero(one != right)[:20]
    other[mended] = right[mended]
    found = paired_differences(right, one, other, SUBSETS)
    for name, function in (("macro_f1", three_class), ("binary_f1", binary)):
        before: Any = function(right, one)[name]
        assert found[name]["difference"] == pytest.approx(function(right, other)[name] - before)
        low, high = found[name]["interval"]
        assert 0 <= low < found[name]["difference"] < high
    wide = intervals(right, one, SUBSETS)["accuracy"]
    low, high = found["accuracy"]["interval"]
    assert high - low < wide[1] - wide[0]
    back = paired_differences(right, other, one, SUBSETS)
    assert back["accuracy"]["difference"] == pytest.approx(-found["accuracy"]["difference"])


def test_groups_are_drawn_and_not_their_items() -> None:
    rng = np.random.default_rng(7)
    right = rng.integers(0, 3, 60)
    judged = np.where(rng.random(60) < 0.7, right, 0)
    alone = intervals(right, judged, ["s"] * 60)
    eight = [np.repeat(levels, 8) for levels in (right, judged)]  # each eightfold: no more is known
    groups = [f"g{number}" for number in np.repeat(np.arange(60), 8)]
    grouped = intervals(*eight, ["s"] * 480, groups)
    as_if_apart = intervals(*eight, ["s"] * 480)
    for name in FIGURES:
        assert grouped[name] == pytest.approx(alone[name]), name
    assert width(as_if_apart["accuracy"]) < 0.5 * width(grouped["accuracy"])


def test_differences_draw_groups_too() -> None:
    rng = np.random.default_rng(8)
    right = rng.integers(0, 3, 60)
    one, other = (np.where(rng.random(60) < share, right, 0) for share in (0.5, 0.8))
    alone = paired_differences(right, one, other, ["s"] * 60)
    eight = [np.repeat(levels, 8) for levels in (right, one, other)]
    grouped = paired_differences(*eight, ["s"] * 480, [f"g{number}" for number in np.repeat(np.arange(60), 8)])
    for name in FIGURES:
        assert grouped[name]["difference"] == pytest.approx(alone[name]["difference"])
        assert grouped[name]["interval"] == pytest.approx(alone[name]["interval"])


def test_a_group_may_reach_over_subsets() -> None:
    rng = np.random.default_rng(9)
    right = np.repeat(rng.integers(0, 3, 80), 2)  # each query as text and as FigStep, judged alike
    judged = np.repeat(np.where(rng.random(80) < 0.7, right[::2], 0), 2)
    subsets, groups = ["text", "figstep"] * 80, [f"q{number // 2}" for number in range(160)]
    found = intervals(right, judged, subsets, groups)
    once = intervals(right[::2], judged[::2], ["text"] * 80)
    assert found["accuracy"] == pytest.approx(once["accuracy"])
    assert found["weighted_macro_f1"] == pytest.approx(found["macro_f1"])
    mixed = intervals(right, judged, [*["text", "figstep"] * 79, "text", "hades"], groups)
    assert width(mixed["accuracy"]) == pytest.approx(width(found["accuracy"]), abs=0.02)


def test_items_without_groups_are_groups_of_one() -> None:
    right, judged = some(6, 0.8)
    own = [str(number) for number in range(len(SUBSETS))]
    assert intervals(right, judged, SUBSETS, own) == intervals(right, judged, SUBSETS)


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def test_without_items_there_is_nothing_to_resample() -> None:
    with pytest.raises(ValueError, match="no items"):
        intervals(np.array([], np.int64), np.array([], np.int64), [])
