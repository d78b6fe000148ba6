"""What all replies hold together is bounded."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.errors import ApiError


def test_at_the_limit_new_requests_are_told_to_come_back():
    budget = HeldBytes(100)
    held = {"a": 60, "b": 39}
    with budget.counting(lambda: held["a"]), budget.counting(lambda: held["b"]):
        budget.admit()
        held["b"] = 40
        with pytest.raises(ApiError) as caught:
            budget.admit()
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert (b"retry-after", b"1") in caught.value.headers
    budget.admit()


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
