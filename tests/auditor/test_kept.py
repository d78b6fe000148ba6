from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.kept import KeptReadings  # noqa: E402
from guardtrace_proxy.auditor.reading import LEAST_ROOM_TOKENS, GrowingLayer, Reading  # noqa: E402

SIZE = 2 * LEAST_ROOM_TOKENS * 4


def reading() -> Reading:
    layer, one = GrowingLayer(), torch.zeros(1, 1, 1)
    layer.append(one, one)
    reading = Reading([layer])
    assert reading.nbytes == SIZE
    return reading


def use(kept: KeptReadings, session: object) -> Reading:
    borrowed = kept.borrow(session, reading)
    kept.give_back(session)
    return borrowed


def test_the_coldest_go_first() -> None:
    kept = KeptReadings(3 * SIZE)
    a, b, c = (use(kept, name) for name in "abc")
    assert use(kept, "a") is a
    use(kept, "d")
    assert (kept.dropped, kept.nbytes) == (1, 3 * SIZE)
    assert use(kept, "c") is c
    assert use(kept, "a") is a
    assert use(kept, "b") is not b


def test_what_is_in_use_stays_whatever_the_budget() -> None:
    kept = KeptReadings(2 * SIZE)
    a, b, c = (kept.borrow(name, reading) for name in "abc")
    assert (kept.nbytes, kept.dropped, kept.is_full) == (3 * SIZE, 0, True)
    kept.clear()
    kept.give_back("b")
    assert (kept.nbytes, kept.dropped, kept.is_full) == (2 * SIZE, 1, True)
    kept.give_back("a")
    assert (kept.dropped, kept.is_full) == (1, False)
    assert kept.borrow("a", reading) is a
    kept.give_back("c")
    assert kept.borrow("c", reading) is c
    assert kept.borrow("b", reading) is not b


def test_a_session_has_one_audit_at_a_time() -> None:
    kept = KeptReadings(9 * SIZE)
    kept.borrow("a", reading)
    with pytest.raises(RuntimeError, match="two audits"):
        kept.borrow("a", reading)
    kept.give_back("a")
    kept.borrow("a", reading)


def test_a_session_that_is_over_is_forgotten_unless_in_use() -> None:
    kept = KeptReadings(2 * SIZE)
    kept.borrow("a", reading)
    kept.forget("a")
    assert kept.nbytes == SIZE
    kept.give_back("a")
    kept.forget("a")
    assert (kept.nbytes, kept.dropped) == (0, 0)


def test_all_that_is_not_in_use_can_go_at_once() -> None:
    kept = KeptReadings(9 * SIZE)
    for name in "abc":
        use(kept, name)
    b = kept.borrow("b", reading)
    kept.clear()
    assert (kept.nbytes, kept.dropped) == (SIZE, 2)
    kept.give_back("b")
    assert kept.borrow("b", reading) is b
