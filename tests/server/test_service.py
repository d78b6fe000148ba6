"""What is made of the settings."""

from __future__ import annotations

from typing import Any

import pytest

from guardtrace_proxy.server import service
from guardtrace_proxy.server.settings import AuditorSettings

URL = ["http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("times", "longest"),
    [({}, 5000), ({"timeout_ms": 30_000}, 30_000), ({"timeout_ms": 300, "annotate_timeout_ms": 60_000}, 60_000)],
)
def test_an_audit_may_wait_for_a_connection_as_long_as_it_may_take(
    times: dict[str, int], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    real = service.make_auditor
    monkeypatch.setattr(service, "make_auditor", lambda **given: made.append(given) or real(**given))
    service.auditor_from(AuditorSettings(base_url=URL, fallback={"base_url": URL, "model": "other"}, **times), {})
    assert [given["timeout_ms"] for given in made] == [longest, longest]
