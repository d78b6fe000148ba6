from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.kept import KeptReadings  # noqa: E402
from guardtrace_proxy.auditor.reading import LEAST_ROOM, GrowingLayer, Reading  # noqa: E402

SIZE = 2 * LEAST_ROOM * 4


def reading() -> Reading:
    layer, one = GrowingLayer(), torch.zeros(1, 1, 1, 1)
    layer.update(one, one)
    reading = Reading([layer])
    assert reading.nbytes == SIZE
    return reading


def test_the_coldest_go_first() -> None:
    kept = KeptReadings(2 * SIZE)
    for name in "abc":
        kept.keep(name, reading())
    assert (kept.take("a"), kept.dropped, kept.nbytes) == (None, 1, 2 * SIZE)
    used = kept.take("b")
    assert used is not None
    kept.keep("b", used)
    kept.keep("d", reading())
    assert [name for name in "bcd" if kept.take(name) is not None] == ["b", "d"]


def test_what_is_in_use_or_over_is_not_kept() -> None:
    kept = KeptReadings(2 * SIZE)
    kept.keep("a", reading())
    assert kept.take("a") is not None
    assert (kept.take("a"), kept.nbytes) == (None, 0)
    kept.keep("b", reading())
    kept.forget("b")
    assert (kept.nbytes, kept.dropped) == (0, 0)


def test_one_that_is_larger_than_the_budget_is_dropped_itself() -> None:
    kept = KeptReadings(SIZE - 1)
    kept.keep("a", reading())
    assert (kept.take("a"), kept.dropped) == (None, 1)
