"""Figures, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation.metrics import NONE, binary, calibration, flags, label_tier, three_class, weighted
from guardtrace_trainer.evaluation.table import PAPER, SIZES

judgments = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=60)


def levels(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_three_class_by_hand() -> None:
    found = three_class(levels(0, 0, 0, 1, 1, 2, 2, 2), levels(0, 0, 1, 1, NONE, 2, 2, 1))
    # F1: 0 has 2 hits of 2 judged, 3 right; 0.5 has 1 of 3, 2; 1 has 2 of 2, 3
    assert found["f1_by_level"] == pytest.approx({"0": 4 / 5, "0.5": 2 / 5, "1": 4 / 5})
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 1, 2, 0]]
    assert (found["n"], found["no_verdict"]) == (8, 1)


def test_binary_by_hand() -> None:
    found = binary(levels(0, 0, 0, 0, 1, 1, 2, 2), levels(0, 0, 0, 2, 1, 0, 1, 2))
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["binary_f1"] == pytest.approx(3 / 4)
    assert found["binary_accuracy"] == pytest.approx(6 / 8)
    assert found["false_alarms"] == pytest.approx(1 / 4)


def test_no_verdict_is_wrong_on_both_sides() -> None:
    right, judged = levels(0, 0, 2, 2), levels(NONE, 0, NONE, 2)
    assert flags(right, judged).tolist() == [True, False, False, True]
    found = binary(right, judged)
    assert (found["binary_accuracy"], found["recall"], found["false_alarms"]) == (0.5, 0.5, 0.5)
    assert found["no_verdict"] == 2


def test_what_has_nothing_to_be_counted_on_is_none() -> None:
    safe, unsafe = binary(levels(0, 0), levels(0, 2)), binary(levels(1, 2), levels(0, 0))
    assert (safe["binary_f1"], safe["recall"], safe["precision"], safe["false_alarms"]) == (None, None, None, 0.5)
    assert (unsafe["binary_f1"], unsafe["precision"], unsafe["false_alarms"]) == (0.0, 0.0, None)
    found = three_class(levels(0, 0, 1), levels(0, 0, 1))
    assert found["macro_f1"] is None
    assert found["f1_by_level"] == {"0": 1.0, "0.5": 1.0, "1": None}


@settings(max_examples=40)
@given(judgments)
def test_without_any_verdict_nothing_is_right(pairs: list[tuple[int, int]]) -> None:
    right = levels(*(level for level, _ in pairs))
    nothing = np.full_like(right, NONE)
    found = {**three_class(right, nothing), **binary(right, nothing)}
    assert all(found[name] in (None, 0.0) for name in ("macro_f1", "accuracy", "binary_f1", "binary_accuracy"))
    assert found["false_alarms"] in (None, 1.0)


@settings(max_examples=40)
@given(judgments)
def test_being_right_gives_one_everywhere(pairs: list[tuple[int, int]]) -> None:
    right = levels(*(level for level, _ in pairs))
    found = {**three_class(right, right), **binary(right, right)}
    assert all(found[name] in (None, 1.0) for name in ("macro_f1", "accuracy", "binary_f1", "precision", "recall"))
    assert found["false_alarms"] in (None, 0.0)


def test_the_weighted_average_is_the_papers() -> None:
    figures, average = PAPER["GuardTrace-VL-3B"]
    rows = {name: {"n": n, "f1": value} for (name, n), value in zip(SIZES.items(), figures, strict=True)}
    assert weighted(rows, "f1") == pytest.approx(average, abs=0.005)


def test_subsets_without_the_figure_do_not_weigh() -> None:
    rows = {"a": {"n": 10, "f1": 0.5}, "b": {"n": 30, "f1": 0.9}, "benign": {"n": 1000, "f1": None}}
    assert weighted(rows, "f1") == pytest.approx(0.8)
    assert weighted({"benign": {"n": 3, "f1": None}}, "f1") is None


def test_calibration_by_hand() -> None:
    shares = np.array([[0.9, 0.1, 0.0], [0.9, 0.0, 0.1], [0.25, 0.25, 0.5], [0.25, 0.5, 0.25], [np.nan] * 3])
    found = calibration(levels(0, 2, 2, 0, 1), shares)
    assert found is not None
    # two bins: risk 0.1 with one unsafe of two, risk 0.75 with one of two
    assert found["ece"] == pytest.approx((2 * 0.4 + 2 * 0.25) / 4)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.0625 + 0.5625) / 4)
    assert found["brier_levels"] == pytest.approx((0.02 + 1.62 + 0.375 + 0.875) / 4)
    assert [(row["from"], row["n"], row["unsafe"]) for row in found["bins"]] == [(0.1, 2, 0.5), (0.7, 2, 0.5)]
    assert found["n"] == 4


def test_without_probabilities_there_is_no_calibration() -> None:
    assert calibration(levels(0, 1), np.full((2, 3), np.nan)) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1)), min_size=1, max_size=60))
def test_calibration_errors_are_shares(pairs: list[tuple[int, float]]) -> None:
    right = levels(*(level for level, _ in pairs))
    shares = np.array([[1 - risk, risk / 2, risk / 2] for _, risk in pairs])
    found = calibration(right, shares)
    assert found is not None
    assert 0 <= found["ece"] <= 1
    assert found["ece"] ** 2 <= found["brier"] + 1e-9  # Jensen: binning can only hide error
    assert sum(row["n"] for row in found["bins"]) == len(pairs)


def test_a_label_tier_by_hand() -> None:
    found = label_tier(levels(0, 0, 1, 2, 2, 2), [0.05, 0.1, 0.1, 0.9, 0.02, None], 0.1)
    assert found == {"n": 6, "escalate_at": 0.1, "recall": 0.75, "safe_escalated": 0.5, "unread": 1}
