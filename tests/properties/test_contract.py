"""The stream contract (docs/stream-contract.md) over random replies, policies and timing, judged by an oracle of it.

More cases, with random seeds: ``python -m tests.properties.run --cases 1000000 --processes 8``.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.cases import draw_case
from tests.properties.oracle import broken_promises
from tests.properties.run import broken_in, smallest, told
from tests.properties.sent import Case
from tests.properties.world import run


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Hypothesis chooses the numbers, so that it looks where random ones seldom fall, and shrinks what it finds."""
    return draw_case(lambda section, low, high: draw(st.integers(low, high)))


def test_every_promise_is_kept(request: pytest.FixtureRequest) -> None:
    broken = broken_in(range(request.config.getoption("--cases")))
    if broken:
        case, log, line = smallest(min(broken))
        pytest.fail(f"{len(broken)} cases; the first of them, in small:\n{told(case, log)}\n\n{line}")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(cases())
def test_every_promise_is_kept_where_hypothesis_looks(case: Case) -> None:
    assert broken_promises(case, run(case)) == []
