"""What all replies hold together is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.errors import ApiError


def test_at_the_limit_new_requests_are_told_to_come_back():
    budget = HeldBytes(100)
    first, second = budget.account("a"), budget.account("b")
    first(60)
    second(39)
    budget.admit()
    second(40)
    with pytest.raises(ApiError) as caught:
        budget.admit()
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert (b"retry-after", b"1") in caught.value.headers
    first(0)
    budget.admit()
    assert budget.total == 40


def test_running_replies_may_grow_beyond_the_limit():
    budget = HeldBytes(10)
    budget.account("a")(1000)
    assert budget.total == 1000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50))))
def test_the_total_is_what_each_reply_said_last(reports):
    budget = HeldBytes(1)
    accounts = {name: budget.account(name) for name in "abc"}
    last = dict.fromkeys("abc", 0)
    for name, held in reports:
        accounts[name](held)
        last[name] = held
        assert budget.total == sum(last.values())
    for account in accounts.values():
        account(0)
    assert budget.total == 0
