"""Which query a choice replies to, and what its client is told of the auditor."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardtrace_proxy.server.about import of_choice, shown_name


@pytest.mark.parametrize(("choice", "query"), [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "b"), (127, "b")])
def test_each_query_has_n_choices_and_the_last_whatever_comes_beside(choice: int, query: str) -> None:
    assert of_choice(["a", "b"], choice, 2) == query


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/srv/tenants/acme/guard-v2", "guard-v2"),
        ("/srv/tenants/acme/guard-v2/", "guard-v2"),
        ("./models/guard", "guard"),
        ("../guard", "guard"),
        ("~/models/guard", "guard"),
        (r"C:\models\guard", "guard"),
        ("models/guard", "guard"),
        ("builtin:nano", "builtin:nano"),
        ("DloadingX/GuardTrace-VL-3B", "DloadingX/GuardTrace-VL-3B"),
        ("accounts/some/models/guard", "accounts/some/models/guard"),
        ("m" * 5000, "m" * 5000),
    ],
)
def test_clients_are_told_no_path(model: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "guard").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    shown_name.cache_clear()
    assert shown_name(model) == shown
