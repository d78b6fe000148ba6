"""Temperature and escalate_at, from label reads whose right answer is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra `local` isn't installed")
pytest.importorskip("matplotlib", reason="the extra `train` isn't installed")


from guardtrace_proxy.auditor.calibration import tempered
from guardtrace_proxy.policy.levels import Probabilities
from guardtrace_trainer.evaluation.calibrate import RECALL, Read, fit, fit_temperature, label_tier, pick_escalate_at


def read(level: int, risk: float) -> Read:
    return Read(level, Probabilities(1 - risk, risk / 2, risk / 2))


UNSURE = Read(2, None)
risks = st.floats(1e-6, 1)
some_reads = st.lists(st.builds(read, st.integers(0, 2), risks) | st.just(UNSURE), min_size=1, max_size=120)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_reads_were_spoilt_with_is_found(temperature: float) -> None:
    rng = random.Random(3)
    spoilt = []
    for _ in range(6000):
        shares = [rng.random() ** 3 + 1e-3 for _ in range(3)]
        honest = Probabilities(*(share / sum(shares) for share in shares))
        level = rng.choices((0, 1, 2), (honest.safe, honest.potentially_harmful, honest.harmful))[0]
        spoilt.append(Read(level, tempered(honest, 1 / temperature)))
    assert fit_temperature(spoilt) == pytest.approx(temperature, rel=0.1)


def test_a_temperature_stays_within_what_a_checkpoint_may_carry() -> None:
    assert fit_temperature([read(0, 0.01), read(0, 0.0)]) == pytest.approx(0.1)
    assert fit_temperature([read(2, 0.01), UNSURE]) == pytest.approx(10)


def test_without_one_sure_read_there_is_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="every label read was unsure"):
        fit_temperature([UNSURE])


@pytest.mark.parametrize("sides", [([read(0, 0.1)] * 9, [read(2, 0.9)]), ([read(2, 0.9)], [read(0, 0.1)] * 9)])
def test_without_unsafe_reads_on_both_sides_nothing_is_fitted(sides: tuple[list[Read], list[Read]]) -> None:
    with pytest.raises(ValueError, match="no unsafe trace"):
        fit(*sides)


def test_escalate_at_is_the_risk_that_the_recall_needs() -> None:
    unsafe = [read(1, risk / 1000) for risk in range(1, 101)]
    assert pick_escalate_at(unsafe, 1.0) == pytest.approx(0.002)
    assert pick_escalate_at([*unsafe, UNSURE], 1.0) == pytest.approx(0.002)
    assert pick_escalate_at([read(2, 0.9), read(0, 0.0)], 1.0) == 0.5
    assert pick_escalate_at([read(0, 0.3)], 1.0) == 0.5


def test_unsafe_traces_without_any_risk_cant_be_screened() -> None:
    with pytest.raises(ValueError, match="no risk at all"):
        pick_escalate_at([read(2, 0.0)], 1.0)


@given(some_reads, st.floats(0.2, 5))
def test_the_recall_is_reached_and_a_larger_value_wouldnt_reach_it(reads: list[Read], temperature: float) -> None:
    escalate_at = pick_escalate_at(reads, temperature)
    unsafe = [entry for entry in reads if entry.level > 0]

    def recall(at: float) -> float:
        return sum(is_at_least(entry, at, temperature) for entry in unsafe) / max(1, len(unsafe))

    assert 0 < escalate_at <= 0.5
    if unsafe:
        assert recall(escalate_at) >= RECALL
        assert escalate_at == 0.5 or recall(math.nextafter(escalate_at, 1)) < RECALL
        assert label_tier(reads, escalate_at, temperature)["recall"] == round(recall(escalate_at), 4)


def is_at_least(entry: Read, at: float, temperature: float) -> bool:
    return entry.probabilities is None or tempered(entry.probabilities, temperature).risk >= at


def test_the_label_tier_is_recall_and_what_it_costs() -> None:
    reads = [read(1, 0.3), read(2, 0.05), UNSURE, read(0, 0.2), read(0, 0.01), read(0, 0.02), Read(0, None)]
    assert label_tier(reads, 0.1) == {"traces": 7, "escalate_at": 0.1, "recall": 0.6667, "safe_escalated": 0.5}
