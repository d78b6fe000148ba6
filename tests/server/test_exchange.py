"""A reply leaves as soon as it may: verdicts that are only recorded come behind its end, and all of them come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from guardtrace_proxy.gate import Decided
from tests.server.dialects import CASES, Case
from tests.server.running import Running, ask, connected, proxy
from tests.server.scripted import SSE_HEAD, Script, by_word, completion, http, judging, stream
from tests.waiting import eventually

MONITOR = {"extends": "monitor", "boundary": {"first": 512, "growth": 1.0, "max": 512, "max_hold_ms": 60_000}}
ANSWER_ALONE = {**MONITOR, "extends": "balanced", "answer": {"mode": "monitor"}}
THINKING, ANSWER = "All is quite fine.", "Wait for it."
HANGS_MS = 20_000


class HeldAuditor:
    """Judges by word, but what says ``Wait`` only once it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.decided: list[Decided] = []

    def __call__(self, request: dict[str, Any]) -> Iterable[bytes]:
        if "Wait" in str(request):
            self.let_go.wait(HANGS_MS / 1000)
        return judging(by_word)(request)


@contextmanager
def guarded(upstream: Script, policy: dict[str, Any], **config: Any) -> Iterator[tuple[Running, HeldAuditor]]:
    auditor = HeldAuditor()
    settings = {"auditor": {"timeout_ms": HANGS_MS}, **config}
    with proxy(upstream, auditor, policy=policy, config=settings, observer=auditor.decided.append) as running:
        try:
            yield running, auditor
        finally:
            auditor.let_go.set()


@pytest.mark.parametrize("policy", [MONITOR, ANSWER_ALONE], ids=["monitor", "answer alone"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reply_ends_before_the_verdicts_that_are_only_recorded(
    case: Case, is_streamed: bool, policy: dict[str, Any]
) -> None:
    whole, frames = case.whole(THINKING, ANSWER), case.frames(THINKING, ANSWER)
    with guarded(lambda _: [SSE_HEAD, *frames] if is_streamed else [whole], policy) as (running, auditor):
        # Its connection is closed then: a client that has its reply and leaves takes nothing from the record.
        reply = running.raw(case.ask(stream=is_streamed), case.path, headers=case.headers)
        assert reply.status_code == 200
        assert "it." in reply.text
        assert "answering" not in {decided.phase.value for decided in auditor.decided}
        if not is_streamed:
            assert reply.headers["x-guardtrace-action"] == "pass"
        assert running.app.service.shedding.running == 1
        auditor.let_go.set()
        assert eventually(lambda: running.app.service.shedding.running == 0)
        phases = [decided.phase.value for decided in auditor.decided]
        assert (phases[0], phases[-1]) == ("thinking", "answering")
        assert all(decided.verdict is not None for decided in auditor.decided)


def test_a_refusal_by_policy_waits_for_no_record_either() -> None:
    def choice(index: int, thinking: str, answer: str) -> str:
        said = f'"message": {{"role": "assistant", "reasoning": "{thinking}", "content": "{answer}"}}'
        return f'{{"index": {index}, {said}, "finish_reason": "stop"}}'

    choices = f"[{choice(0, 'HARM', 'No.')}, {choice(1, THINKING, ANSWER)}]"
    body = f'{{"id": "c", "object": "chat.completion", "created": 1, "model": "thinker", "choices": {choices}}}'
    policy = {**ANSWER_ALONE, "cut_shape": "error"}
    with guarded(lambda _: [http(200, body)], policy) as (running, auditor):
        reply = running.raw(ask(n=2))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_filter")
        assert not auditor.let_go.is_set()
        auditor.let_go.set()
        assert eventually(lambda: {decided.choice for decided in auditor.decided if not decided.enforced} == {1})


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_the_next_request_may_come_on_the_same_connection_meanwhile(is_streamed: bool) -> None:
    tenants = {"all": {"policy": "test", "limits": {"concurrent": 1}}}

    def upstream(_: Any) -> Iterable[bytes]:
        return [SSE_HEAD, *stream(THINKING, ANSWER)] if is_streamed else [completion(THINKING, ANSWER)]

    with guarded(upstream, MONITOR, tenants=tenants) as (running, auditor), connected(running) as connection:
        for _ in range(3):
            reply = connection.send_chat(ask(stream=is_streamed))
            assert reply.status == 200
            assert b"it." in reply.read()
        assert running.app.service.shedding.running == 3
        auditor.let_go.set()
        assert eventually(lambda: running.app.service.shedding.running == 0)
        assert [decided.phase.value for decided in auditor.decided].count("answering") == 3


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_its_tokens_are_taken_before_the_next_request_may_come(is_streamed: bool) -> None:
    tenants = {"all": {"policy": "test", "limits": {"tokens_per_minute": 60}}}
    answer = "Wait " * 200

    def upstream(_: Any) -> Iterable[bytes]:
        return [SSE_HEAD, *stream(THINKING, answer)] if is_streamed else [completion(None, answer)]

    with guarded(upstream, MONITOR, tenants=tenants) as (running, _):
        assert running.raw(ask(stream=is_streamed)).status_code == 200
        assert running.raw(ask()).status_code == 429


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_an_auditor_that_hangs_delays_no_monitored_reply(is_streamed: bool) -> None:
    def upstream(_: Any) -> Iterable[bytes]:
        return [SSE_HEAD, *stream(THINKING, ANSWER)] if is_streamed else [completion(THINKING, ANSWER)]

    decided: list[Decided] = []
    config = {"auditor": {"timeout_ms": 3000}}
    hanging = HeldAuditor()
    with proxy(upstream, hanging, policy=MONITOR, config=config, observer=decided.append) as running:
        began = time.monotonic()
        reply = running.raw(ask(stream=is_streamed))
        took = time.monotonic() - began
        assert "it." in reply.text
        assert took < 2.5
        assert "x-guardtrace-failed-audits" not in reply.headers
        assert eventually(lambda: running.app.service.shedding.running == 0)
        hanging.let_go.set()
    assert [each.failure for each in decided][-1] == "timeout"
    assert not any(each.enforced for each in decided)
