"""The oracle notices every fault that is planted, so the property can fail."""

from __future__ import annotations

import pytest

from tests.properties.faults import FAULTS, Fault
from tests.properties.oracle import PROMISES
from tests.properties.run import broken_by, name_of

MOST = 3_000


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.plant(monkeypatch)
    assert any(fault.breaks in map(name_of, broken_by(seed)) for seed in range(MOST)), "nobody noticed"


def test_every_promise_has_a_fault_that_breaks_it() -> None:
    assert {promise.__name__ for promise in PROMISES} <= {fault.breaks for fault in FAULTS}
