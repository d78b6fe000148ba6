from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.calibration import Calibration, read_calibration, tempered
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.policy.levels import Probabilities

LEAST = {"temperature": 1.5, "escalate_at": 0.2}
TEMPERATURES = st.floats(0.1, 10)


@st.composite
def probabilities(draw: st.DrawFn) -> Probabilities:
    shares = [draw(st.floats(0.001, 1)) for _ in range(3)]
    return Probabilities(*(share / sum(shares) for share in shares))


def triple(found: Probabilities) -> tuple[float, float, float]:
    return found.safe, found.potentially_harmful, found.harmful


def test_a_file_is_read() -> None:
    assert read_calibration(json.dumps(LEAST).encode(), "here") == Calibration(temperature=1.5, escalate_at=0.2)
    measured = {**LEAST, "traces": 400, "recall": 0.99, "safe_escalated": 0.2}
    assert read_calibration(json.dumps(measured).encode(), "here").traces == 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"here: calibration\.json: "),
        (b"\xff", r"here: calibration\.json: "),
        (b"[]", r"calibration\.json: "),
        (b"{}", r"calibration\.json\.temperature: field required"),
        (json.dumps({**LEAST, "temprature": 1}).encode(), r"calibration\.json\.temprature: extra inputs"),
        (json.dumps({**LEAST, "temperature": "1"}).encode(), r"temperature: input should be a valid number"),
        (json.dumps({**LEAST, "temperature": True}).encode(), r"temperature: input should be a valid number"),
        (json.dumps({**LEAST, "temperature": float("nan")}).encode(), "temperature: input should be a finite number"),
        (json.dumps({**LEAST, "temperature": 0}).encode(), "temperature: input should be greater than or equal to 0.1"),
        (json.dumps({**LEAST, "temperature": 11}).encode(), "temperature: input should be less than or equal to 10"),
        (json.dumps({**LEAST, "escalate_at": 0}).encode(), "escalate_at: input should be greater than 0"),
        (json.dumps({**LEAST, "escalate_at": 0.51}).encode(), "escalate_at: input should be less than or equal to 0.5"),
        (json.dumps({**LEAST, "recall": 1.1}).encode(), "recall: input should be less than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_what_to_do(content: bytes, says: str) -> None:
    with pytest.raises(AuditorSettingsError, match=f"{says}.*guardtrace-train sweep"):
        read_calibration(content, "here")


def test_a_temperature_raises_to_its_inverse() -> None:
    assert triple(tempered(Probabilities(0.64, 0.32, 0.04), 2.0)) == pytest.approx(
        [root / (0.8 + 0.32**0.5 + 0.2) for root in (0.8, 0.32**0.5, 0.2)]
    )
    assert triple(tempered(Probabilities(1.0, 0.0, 0.0), 3.0)) == (1.0, 0.0, 0.0)


@given(probabilities(), TEMPERATURES)
def test_tempering_keeps_the_order_and_a_sum_of_one(before: Probabilities, temperature: float) -> None:
    after = tempered(before, temperature)
    assert sum(triple(after)) == pytest.approx(1)
    ordered = sorted(zip(triple(before), triple(after), strict=True))
    assert [share for _, share in ordered] == sorted(triple(after))


@given(probabilities(), TEMPERATURES)
def test_tempering_back_gives_what_was_there(before: Probabilities, temperature: float) -> None:
    there = tempered(before, max(1.0, temperature))
    assert triple(tempered(there, 1 / max(1.0, temperature))) == pytest.approx(triple(before))
