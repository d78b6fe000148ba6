"""The stream contract holds inside a model server too: random replies, judged by the same oracle as the proxy's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.asgi.model_servers import guarded
from tests.properties.cases import draw_case
from tests.properties.draws import Seeded
from tests.properties.oracle import broken_promises
from tests.properties.run import told
from tests.properties.sent import Case
from tests.properties.test_sockets import CHAT, SLOWEST, auditor_of, record
from tests.properties.world import Log
from tests.server.running import ask


@pytest.mark.parametrize("seed", CHAT[:24])
def test_every_promise_is_kept_inside_a_server(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The annotations have no probabilities.
    case = replace(draw_case(Seeded(seed)), certain=True, ending="closed", capacity=1 << 20, limit=1 << 20)
    log = Log(finished=True)
    record(case, log, monkeypatch)
    policy = case.policy.model_dump(mode="json", exclude={"extends"}, exclude_none=True)
    body = ask(stream=case.whole is None, n=case.choices)
    if case.include_usage and case.whole is None:
        body["stream_options"] = {"include_usage": True}
    with guarded(app_of(case), auditor_of(case, []), policy=policy) as running:
        received = running.raw(body).content
    assert received == b"".join(entry.value for entry in log.entries if entry.what in ("sent", "rejected"))
    assert not broken_promises(case, log), told(case, log)


def app_of(case: Case) -> Callable[..., Any]:
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        kind = b"text/event-stream" if case.whole is None else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if case.whole is not None:
            await send({"type": "http.response.body", "body": case.whole})
            return
        at = 0
        for seconds, size in case.pieces:
            await asyncio.sleep(min(seconds, SLOWEST))
            await send({"type": "http.response.body", "body": case.stream[at : at + size], "more_body": True})
            at += size
        await send({"type": "http.response.body", "body": b""})

    return app
