from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.labels import LabelRead, is_settled, likeliest
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind
from guardtrace_proxy.policy.levels import Level, Probabilities

shares = st.floats(0, 1)


def test_labels_that_begin_alike_are_told_apart_by_the_second_read() -> None:
    read = LabelRead(zero=0.8, half=0.9, one=0.1, dot=0.25, end=0.75)
    found = read.probabilities(shared=True)
    assert (found.safe, found.potentially_harmful, found.harmful) == pytest.approx((0.6 / 0.9, 0.2 / 0.9, 0.1 / 0.9))


def test_labels_of_one_token_need_no_second_read() -> None:
    found = LabelRead(zero=0.5, half=0.3, one=0.2, dot=0.0, end=0.0).probabilities(shared=False)
    assert (found.safe, found.potentially_harmful, found.harmful) == pytest.approx((0.5, 0.3, 0.2))


@pytest.mark.parametrize("zero", [0.0, 0.39, math.nan])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_too_little_mass_is_a_failure_at_any_temperature(zero: float, temperature: float) -> None:
    with pytest.raises(AuditorFailure) as caught:
        LabelRead(zero, 0.0, 0.1, dot=0.5, end=0.5).probabilities(shared=True, temperature=temperature)
    assert caught.value.kind is FailureKind.UNSURE


def test_a_temperature_scales_what_was_renormalised() -> None:
    read = LabelRead(zero=0.4, half=0.1, one=0.1, dot=0.0, end=0.0)
    assert read.probabilities(shared=False, temperature=2.0).safe == pytest.approx(2 / (2 + 1 + 1))


@given(shares, shares, shares, shares)
def test_probabilities_sum_to_one(zero: float, one: float, dot: float, end: float) -> None:
    try:
        found = LabelRead(zero, 0.0, one, dot, end).probabilities(shared=True)
    except AuditorFailure:
        assert zero * (dot + end) + one < 0.5 + 1e-9
        return
    assert found.safe + found.potentially_harmful + found.harmful == pytest.approx(1)


@pytest.mark.parametrize(
    ("probabilities", "level"),
    [
        (Probabilities(0.6, 0.3, 0.1), Level.SAFE),
        (Probabilities(0.1, 0.6, 0.3), Level.POTENTIALLY_HARMFUL),
        (Probabilities(0.1, 0.3, 0.6), Level.HARMFUL),
        (Probabilities(0.5, 0.5, 0.0), Level.POTENTIALLY_HARMFUL),
        (Probabilities(0.25, 0.375, 0.375), Level.HARMFUL),
    ],
)
def test_the_likeliest_level_and_of_equals_the_more_severe(probabilities: Probabilities, level: Level) -> None:
    assert likeliest(probabilities) is level


@given(shares, shares, shares)
def test_where_the_first_read_decides_the_second_would_hardly_change_it(zero: float, one: float, dot: float) -> None:
    if not is_settled(zero, one) or one < 0.6:
        return
    first = LabelRead.without_second(zero, one).probabilities(shared=True)
    both = LabelRead(zero, 0.0, one, dot, end=1 - dot).probabilities(shared=True)
    assert abs(first.harmful - both.harmful) <= 0.01
    assert first.safe <= both.safe <= 0.01
