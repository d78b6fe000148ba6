"""A few of the random replies over real sockets, through the whole service: the same oracle, real timing."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from guardtrace_proxy.gate import Output, Reject, Release, StartAudit, StreamGate
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.server import answer
from guardtrace_proxy.wire import chat, completion, messages, responses
from guardtrace_proxy.wire.events import Event, MoreText
from tests.images.serving import picture
from tests.properties import test_messages, test_responses
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
CASES = {seed: draw_case(Seeded(seed)) for seed in range(120)}
CHAT = [seed for seed, case in CASES.items() if case.reply is None][:48]
COMPLETIONS = [seed for seed, case in CASES.items() if case.reply is not None][:16]
"""Cases of each API, by their seeds."""
PROMPT = "Please help."
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize("seed", CHAT)
def test_every_promise_is_kept_over_sockets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = seed % 3
    case = over_sockets(draw_case(Seeded(seed)))
    body = ask(stream=case.whole is None, n=case.choices)
    if images:
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": PROMPT}, *PICTURES[:images]]}]
    if case.include_usage and case.whole is None:
        body["stream_options"] = {"include_usage": True}
    log = exchanged(case, "/chat/completions", body, images, monkeypatch)
    assert not broken_promises(case, log), told(case, log)


@pytest.mark.parametrize("seed", COMPLETIONS)
def test_every_promise_of_completions_is_kept_over_sockets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = over_sockets(draw_case(Seeded(seed)))
    body = {"model": "thinker", "prompt": PROMPT, "n": case.choices, "stream": case.whole is None}
    if case.include_usage and case.whole is None:
        body["stream_options"] = {"include_usage": True}
    log = exchanged(case, "/completions", body, 0, monkeypatch)
    assert not broken_promises(case, log), told(case, log)


@pytest.mark.parametrize("seed", range(24))
def test_every_promise_of_responses_is_kept_over_sockets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = seed % 3
    drawn = test_responses.draw(Seeded(seed))
    case = drawn.case = over_sockets(drawn.case)
    pictures = [{"type": "input_image", "image_url": each["image_url"]["url"]} for each in PICTURES[:images]]
    asked = [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}, *pictures]}]
    body = {"model": "thinker", "input": asked if images else PROMPT, "stream": case.whole is None}
    log = exchanged(case, "/responses", body, images, monkeypatch)
    assert list(test_responses.broken_promises(drawn, log)) == []


@pytest.mark.parametrize("seed", range(24))
def test_every_promise_of_messages_is_kept_over_sockets(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = seed % 3
    drawn = test_messages.draw(Seeded(seed))
    case = drawn.case = over_sockets(drawn.case)
    drawn.keeps = False  # as the proxy does by default
    urls = [each["image_url"]["url"] for each in PICTURES[:images]]
    sources = [{"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]} for url in urls]
    blocks = [{"type": "text", "text": PROMPT}, *({"type": "image", "source": source} for source in sources)]
    body = {"model": "thinker", "max_tokens": 99, "messages": [{"role": "user", "content": blocks}]}
    body["stream"] = case.whole is None
    log = exchanged(case, "/messages", body, images, monkeypatch)
    assert list(test_messages.broken_promises(drawn, log)) == []


def over_sockets(case: Case) -> Case:
    """The annotations have no probabilities; a body without length ends like one that broke off."""
    return replace(case, certain=True, ending="closed", capacity=1 << 20, limit=1 << 20)


def exchanged(case: Case, path: str, body: dict[str, Any], images: int, monkeypatch: pytest.MonkeyPatch) -> Log:
    """What passed while the case was asked for. The client has just what the gate let go, and each audit was shown all
    images."""
    log, shown = Log(finished=True), list[int]()
    record(case, log, monkeypatch, path)
    policy = case.policy.model_dump(mode="json", exclude={"extends"}, exclude_none=True)
    with proxy(upstream_of(case), auditor_of(case, shown), policy=policy) as running:
        received = running.raw(body, path, headers=VERSION).content
    assert received == b"".join(entry.value for entry in log.entries if entry.what in ("sent", "rejected"))
    assert set(shown) == ({images} if any(entry.what == "answered" for entry in log.entries) else set())
    return log


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
        if PROMPT in json.dumps(content):
            shown.append(0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content))
        seconds, outcome = case.audits[next(asked) % len(case.audits)]
        time.sleep(min(seconds, SLOWEST))
        if outcome == "fail":
            return [http(500, "{}")]
        return judging(lambda text: LEVELS[Mark[outcome] if outcome in Mark.__members__ else of_trace(text)])(request)

    return script


def of_trace(text: str) -> Mark:
    return judge(text.partition("Current Task Thinking")[2], "")


STREAMS: dict[str, tuple[ModuleType, str]] = {
    "/chat/completions": (chat, "ChatStream"),
    "/completions": (completion, "CompletionStream"),
    "/responses": (responses, "ResponsesStream"),
    "/messages": (messages, "MessagesStream"),
}
"""By path: what reads and writes the replies there."""


def record(case: Case, log: Log, monkeypatch: pytest.MonkeyPatch, path: str = "/chat/completions") -> None:
    """Write down what passes between the service and its reader and gate."""
    gates: list[StreamGate] = []
    fed = Fed(log)
    module, name = STREAMS[path]
    monkeypatch.setattr(module, name, stream_that_records(getattr(module, name), case, log, gates, fed))
    monkeypatch.setattr(answer, "StreamGate", gate_that_records(log, gates, fed))


class Fed:
    """How many of the upstream's bytes were read so far."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._bytes = 0

    def more(self, size: int, noted: bool) -> None:
        self._bytes += size
        if noted:
            self._log.add("fed", self._bytes)


def stream_that_records(stream: type[Any], case: Case, log: Log, gates: list[StreamGate], fed: Fed) -> type[Any]:
    """It reads in the case's style. What is read between a cut and the end of reading counts for nothing."""

    class Stream(stream):
        def __init__(self, style: Any, *settings: Any, **options: Any) -> None:
            super().__init__([case.style] if isinstance(style, list) else case.style, *settings, **options)

        def feed(self, data: bytes) -> list[Event]:
            fed.more(len(data), all(gate.wants_upstream for gate in gates))
            return super().feed(data)

        def end(self) -> list[Event]:
            log.add("over", "closed")
            return super().end()

        def completion(self, body: bytes) -> Event:
            log.add("fed", len(body))
            log.add("over", "closed")
            return super().completion(body)

    return Stream


def note(log: Log, output: Output) -> None:
    if isinstance(output, StartAudit):
        log.add("asked", output)
    elif isinstance(output, Release):
        log.add("sent", output.data)
    elif isinstance(output, Reject):
        log.add("rejected", output.body)


def gate_that_records(log: Log, gates: list[StreamGate], fed: Fed) -> type[StreamGate]:
    class Gate(StreamGate):
        def __init__(self, *settings: Any, **named: Any) -> None:
            super().__init__(*settings, **named)
            gates.append(self)

        def gathers(self, event: MoreText, now: float) -> bool:
            gathered = super().gathers(event, now)
            if gathered:
                fed.more(len(event.raw), self.wants_upstream)
            return gathered

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
                note(log, output)
            return outputs

    return Gate
