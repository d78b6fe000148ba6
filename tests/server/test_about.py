"""Which query a choice replies to."""

from __future__ import annotations

import pytest

from guardtrace_proxy.server.about import of_choice


@pytest.mark.parametrize(("choice", "query"), [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "b"), (127, "b")])
def test_each_query_has_n_choices_and_the_last_whatever_comes_beside(choice: int, query: str) -> None:
    assert of_choice(["a", "b"], choice, 2) == query
