"""What all replies hold together is bounded."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.errors import ApiError


def test_it_is_full_at_the_limit():
    budget = HeldBytes(100)
    held = {"a": 60, "b": 39}
    with budget.counting(lambda: held["a"]), budget.counting(lambda: held["b"]):
        assert not budget.is_full
        held["b"] = 40
        assert budget.is_full
    assert not budget.is_full


def test_bodies_count_and_alone_never_come_to_more_than_the_limit():
    budget = HeldBytes(100)
    with budget.body() as came, budget.counting(lambda: 10):
        came(60)
        came(30)
        assert (budget.total, budget.is_full) == (100, True)
        with pytest.raises(ApiError) as caught, budget.body() as other:
            other(10)
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert (b"retry-after", b"1") in caught.value.headers
        assert budget.total == 100
    assert budget.total == 0


def test_a_whole_reply_counts_as_it_comes_and_is_never_refused():
    budget = HeldBytes(100)
    with budget.whole() as came, budget.counting(lambda: 10):
        came(60)
        assert (budget.total, budget.is_full) == (70, False)
        came(60)
        assert (budget.total, budget.is_full) == (130, True)
        with budget.body() as other:
            other(90)
    assert budget.total == 0


@given(st.lists(st.integers(0, 50)))
def test_the_total_is_what_running_replies_hold(held):
    budget = HeldBytes(1)
    with ExitStack() as stack:
        for count in held:
            stack.enter_context(budget.counting(lambda count=count: count))
        assert budget.total == sum(held)
    assert budget.total == 0


def test_a_reply_that_fails_is_counted_no_longer():
    budget = HeldBytes(1)
    with pytest.raises(RuntimeError), budget.counting(lambda: 5):
        raise RuntimeError
    assert budget.total == 0
