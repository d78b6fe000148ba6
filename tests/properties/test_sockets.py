"""A few of the random replies over real sockets, through the whole service: the same oracle, real timing."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from guardtrace_proxy.gate import Output, Reject, Release, StartAudit, StreamGate
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.server import answer
from guardtrace_proxy.wire import chat
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Event
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.images.serving import picture
from tests.properties.alphabet import Mark, judge
from tests.properties.cases import draw_case
from tests.properties.draws import Seeded
from tests.properties.oracle import broken_promises
from tests.properties.run import told
from tests.properties.sent import Case
from tests.properties.world import Answer, Log
from tests.server.running import ask, proxy
from tests.server.scripted import SSE_HEAD, Script, http, judging

MARKS = {Level.SAFE: Mark.SAFE, Level.POTENTIALLY_HARMFUL: Mark.MAYBE, Level.HARMFUL: Mark.HARM}
LEVELS = {Mark.SAFE: "0", Mark.UNSURE: "0", Mark.MAYBE: "0.5", Mark.HARM: "1"}
PICTURES = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(picture()).decode()}"}}
    for _ in range(2)
]
SLOWEST = 0.02
"""Seconds that anything takes."""
CHAT = [seed for seed in range(60) if draw_case(Seeded(seed)).reply is None][:48]
"""Cases of chat completions; other dialects pass through the same server."""


@pytest.mark.parametrize("seed", CHAT)
def test_every_promise_is_kept_over_sockets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The annotations have no probabilities; a body without length ends like one that broke off.
    case = replace(draw_case(Seeded(seed)), certain=True, ending="closed", capacity=1 << 20, limit=1 << 20)
    log = Log(finished=True)
    record(case, log, monkeypatch)
    policy = case.policy.model_dump(mode="json", exclude={"extends"}, exclude_none=True)
    body = ask(stream=case.whole is None, n=case.choices)
    images = seed % 3
    if images:
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": "Please help."}, *PICTURES[:images]]}]
    shown: list[int] = []
    if case.include_usage and case.whole is None:
        body["stream_options"] = {"include_usage": True}
    with proxy(upstream_of(case), auditor_of(case, shown), policy=policy) as running:
        received = running.raw(body).content
    assert received == b"".join(entry.value for entry in log.entries if entry.what in ("sent", "rejected"))
    assert not broken_promises(case, log), told(case, log)
    assert set(shown) == ({images} if any(entry.what == "answered" for entry in log.entries) else set())


def upstream_of(case: Case) -> Script:
    def script(_: dict[str, Any]) -> Iterator[bytes]:
        if case.whole is not None:
            yield http(200, case.whole.decode())
            return
        yield SSE_HEAD
        at = 0
        for seconds, size in case.pieces:
            time.sleep(min(seconds, SLOWEST))
            yield case.stream[at : at + size]
            at += size

    return script


def auditor_of(case: Case, shown: list[int]) -> Script:
    """``shown`` grows with the number of images in each audit."""
    asked = iter(range(1 << 20))

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        content = request["messages"][-1]["content"]
        if "Please help." in json.dumps(content):
            shown.append(0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content))
        seconds, outcome = case.audits[next(asked) % len(case.audits)]
        time.sleep(min(seconds, SLOWEST))
        if outcome == "fail":
            return [http(500, "{}")]
        return judging(lambda text: LEVELS[Mark[outcome] if outcome in Mark.__members__ else of_trace(text)])(request)

    return script


def of_trace(text: str) -> Mark:
    return judge(text.partition("Current Task Thinking")[2], "")


def record(case: Case, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down what passes between the service and its reader and gate."""
    gates: list[StreamGate] = []
    monkeypatch.setattr(chat, "ChatStream", dialect_that_records(case, log, gates))
    monkeypatch.setattr(answer, "StreamGate", gate_that_records(log, gates))


def dialect_that_records(case: Case, log: Log, gates: list[StreamGate]) -> type[ChatStream]:
    """It reads in the case's style. What is read between a cut and the end of reading counts for nothing."""

    class Dialect(ChatStream):
        fed = 0

        def __init__(self, thinking: ThinkingStyle, **options: Any) -> None:
            super().__init__(case.style, **options)

        def feed(self, data: bytes) -> list[Event]:
            self.fed += len(data)
            if all(gate.wants_upstream for gate in gates):
                log.add("fed", self.fed)
            return super().feed(data)

        def end(self) -> list[Event]:
            log.add("over", "closed")
            return super().end()

        def completion(self, body: bytes) -> Event:
            log.add("fed", len(body))
            log.add("over", "closed")
            return super().completion(body)

    return Dialect


def gate_that_records(log: Log, gates: list[StreamGate]) -> type[StreamGate]:
    def note(output: Output) -> None:
        if isinstance(output, StartAudit):
            log.add("asked", output)
        elif isinstance(output, Release):
            log.add("sent", output.data)
        elif isinstance(output, Reject):
            log.add("rejected", output.body)

    class Gate(StreamGate):
        def __init__(self, *settings: Any, **named: Any) -> None:
            super().__init__(*settings, **named)
            gates.append(self)

        def end(self, now: float, broken: str | None = None) -> None:
            if not any(entry.what == "over" for entry in log.entries):
                log.add("left")
            super().end(now, broken)

        def judged(self, audit: int, verdict: Verdict, now: float) -> None:
            log.add("answered", Answer(audit, MARKS[verdict.level]))
            super().judged(audit, verdict, now)

        def audit_failed(self, audit: int, failure: str, now: float) -> None:
            log.add("answered", Answer(audit, None))
            super().audit_failed(audit, failure, now)

        def take(self) -> list[Output]:
            outputs = super().take()
            for output in outputs:
                note(output)
            return outputs

    return Gate
