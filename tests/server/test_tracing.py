"""Spans of real requests, as an exporter gets them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` isn't installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from guardtrace_proxy.server.config import otlp_is_installed
from tests.asgi.model_servers import Model, guarded, starlette_app
from tests.cli.serving import ENVIRON
from tests.server.dialects import CASES, Case
from tests.server.running import ask, proxy
from tests.server.scripted import by_word, completion, http, judging
from tests.telemetry.collecting import collector
from tests.waiting import eventually

THINKING = "Well then, one two three four five six seven eight"
TRACE, PARENT = "ab" * 16, "cd" * 8
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
CHAT = CASES[0]


class Spans:
    """What was exported, and the provider that exports it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is kind]

    def request(self) -> ReadableSpan:
        assert eventually(lambda: bool(self.of(SpanKind.SERVER)))
        [span] = self.of(SpanKind.SERVER)
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_request_its_upstream_and_its_audits_are_one_trace(case: Case) -> None:
    spans = Spans()
    with proxy(case.script(THINKING, "fine HARM"), tracer_provider=spans.provider) as running:
        headers = {**case.headers, **CONTEXT, "x-request-id": "mine"}
        assert running.raw(case.ask(), case.path, headers=headers).status_code == 200
        request = spans.request()
        [(_, sent, _)] = running.upstream.requests
    [generation] = spans.of(SpanKind.CLIENT)
    audits = spans.of(SpanKind.INTERNAL)
    assert len(audits) >= 2
    assert request.name == f"POST /v1{case.path}"
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    for span in (generation, *audits):
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.context.trace_id == request.context.trace_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time  # type: ignore[operator]
    assert sent["traceparent"] == f"00-{TRACE}-{generation.context.span_id:016x}-01"
    assert sent["tracestate"] == "vendor=1"
    told = attributes(request)
    assert told["http.request.method"], told["http.route"] == ("POST", f"/v1{case.path}")
    assert told["http.response.status_code"] == 200
    assert (told["guardtrace.request_id"], told["guardtrace.tenant"], told["guardtrace.policy"]) == (
        "mine",
        "all",
        "test",
    )
    assert [told[f"guardtrace.{what}"] for what in ("action", "reason", "end")] == ["cut", "verdict", "whole"]
    last = attributes(audits[-1])
    assert (last["gen_ai.evaluation.score.label"], last["gen_ai.evaluation.score.value"]) == ("1", 1.0)
    assert (last["guardtrace.action"], last["guardtrace.phase"], last["guardtrace.depth"]) == (
        "cut",
        "answering",
        "annotate",
    )


@pytest.mark.parametrize(
    ("case", "operation", "provider"),
    zip(CASES, ("chat", "text_completion", "chat", "chat"), ("openai", "openai", "openai", "anthropic"), strict=True),
    ids=lambda value: value.name if isinstance(value, Case) else value,
)
def test_the_upstreams_part_is_named_by_the_conventions(case: Case, operation: str, provider: str) -> None:
    spans = Spans()
    with proxy(case.script(THINKING, "fine"), tracer_provider=spans.provider) as running:
        running.raw(case.ask(), case.path, headers=case.headers)
        spans.request()
        port = int(running.upstream.url.split(":")[2].split("/")[0])
    [generation] = spans.of(SpanKind.CLIENT)
    told = attributes(generation)
    assert generation.name == f"{operation} thinker"
    assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == (operation, provider)
    assert (told["gen_ai.request.model"], told["gen_ai.request.stream"]) == ("thinker", True)
    assert (told["server.address"], told["server.port"]) == ("127.0.0.1", port)
    if case.name in ("responses", "messages"):
        assert told["gen_ai.usage.output_tokens"] > 0


def test_usage_of_a_whole_reply() -> None:
    spans = Spans()
    with proxy(lambda _: [completion("well", "fine")], tracer_provider=spans.provider) as running:
        running.raw(ask())
        spans.request()
    told = attributes(spans.of(SpanKind.CLIENT)[0])
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 9)


def test_a_model_that_is_no_name_is_left_out() -> None:
    spans = Spans()
    with proxy(lambda _: [completion("well", "fine")], tracer_provider=spans.provider) as running:
        running.raw({**ask(), "model": "tell me about quokkas"})
        spans.request()
    [generation] = spans.of(SpanKind.CLIENT)
    assert generation.name == "chat"
    assert "gen_ai.request.model" not in attributes(generation)


def test_what_fails_is_marked_without_its_words() -> None:
    spans = Spans()
    with proxy(
        lambda _: [http(503, json.dumps({"error": {"message": "quokka"}}))], tracer_provider=spans.provider
    ) as running:
        assert running.raw(ask()).status_code == 503
        request = spans.request()
    [generation] = spans.of(SpanKind.CLIENT)
    for span in (request, generation):
        assert span.status.status_code is StatusCode.ERROR
        assert not span.events
    assert attributes(request)["http.response.status_code"] == 503
    assert attributes(generation)["error.type"] == "ApiError"
    assert "quokka" not in "".join(span.to_json() for span in spans.all)


def test_a_failed_audit_says_why() -> None:
    spans = Spans()
    with proxy(
        lambda _: [completion("well", "fine")], lambda _: [http(500, "{}")], tracer_provider=spans.provider
    ) as running:
        running.raw(ask())
        assert spans.request().status.status_code is not StatusCode.ERROR
    [audit] = spans.of(SpanKind.INTERNAL)
    assert audit.status.status_code is StatusCode.ERROR
    assert attributes(audit)["error.type"] == "refused"


def test_requests_without_a_trace_begin_one_and_probes_none() -> None:
    spans = Spans()
    with proxy(lambda _: [completion("well", "fine")], tracer_provider=spans.provider) as running:
        running.raw(ask(), headers={"authorization": "Bearer nobody"})
        for path in ("/healthz", "/readyz", "/v1/nowhere"):
            httpx.get(running.url + path, trust_env=False)
        request = spans.request()
    assert request.parent is None
    assert attributes(request)["http.response.status_code"] == 401


def test_what_a_client_leaves_behind_ends() -> None:
    spans = Spans()
    asked, judged = threading.Event(), threading.Event()

    def waiting(request: dict[str, Any]) -> Iterable[bytes]:
        if "Please help" in json.dumps(request):
            asked.set()
            judged.wait(30)
        return judging(by_word)(request)

    with proxy(CHAT.script(THINKING, "fine"), waiting, tracer_provider=spans.provider) as running:
        with httpx.stream("POST", running.url + "/v1/chat/completions", json=CHAT.ask(), trust_env=False, timeout=30):
            assert asked.wait(30)
        request = spans.request()
        judged.set()
    told = attributes(request)
    assert [told[f"guardtrace.{what}"] for what in ("action", "reason", "end")] == ["pass", "none", "left"]
    assert [attributes(span)["guardtrace.dropped"] for span in spans.of(SpanKind.INTERNAL)] == [True]


def test_the_audit_log_names_the_trace(tmp_path: Path) -> None:
    spans = Spans()
    path = tmp_path / "audit.jsonl"
    with proxy(
        lambda _: [completion("well", "fine")],
        config={"audit_log": {"path": str(path)}},
        tracer_provider=spans.provider,
    ) as running:
        running.raw(ask())
        request = spans.request()
    assert {json.loads(line)["trace_id"] for line in path.read_text().splitlines()} == {
        f"{request.context.trace_id:032x}"
    }


def test_inside_a_model_server_the_app_gets_the_trace() -> None:
    spans = Spans()
    model = Model(lambda _: CHAT.frames(THINKING, "fine"))
    with guarded(starlette_app(model), tracer_provider=spans.provider) as running:
        running.raw(CHAT.ask(), headers=CONTEXT)
        spans.request()
    [generation] = spans.of(SpanKind.CLIENT)
    assert model.heads[-1]["traceparent"] == f"00-{TRACE}-{generation.context.span_id:016x}-01"
    assert "server.address" not in attributes(generation)


def test_nothing_of_it_is_imported_where_nobody_traces() -> None:
    program = "import sys, guardtrace_proxy.cli.app, guardtrace_proxy.asgi; print([m for m in sys.modules if 'opentelemetry' in m])"
    environ = {**ENVIRON, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == "[]"


# Over OTLP


needs_otlp = pytest.mark.skipif(not otlp_is_installed(), reason="the extra `otel` isn't installed")


@needs_otlp
def test_spans_are_sent_before_the_end() -> None:
    bodies: list[bytes] = []
    with collector(bodies) as endpoint:
        with proxy(CHAT.script(THINKING, "fine"), config={"tracing": {"endpoint": endpoint}}) as running:
            running.raw(CHAT.ask())
        assert eventually(lambda: bool(bodies))
    sent = b"".join(bodies)
    for name in (b"guardtrace-proxy", b"POST /v1/chat/completions", b"chat thinker", b"guardtrace.audit"):
        assert name in sent


@needs_otlp
def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-door")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    bodies: list[bytes] = []
    with collector(bodies) as endpoint:
        with proxy(CHAT.script(THINKING, "fine"), config={"tracing": {"endpoint": endpoint}}) as running:
            running.raw(CHAT.ask())
        assert eventually(lambda: bool(bodies))
    sent = b"".join(bodies)
    assert b"front-door" in sent
    assert b"staging" in sent
    assert b"guardtrace-proxy" not in sent


@needs_otlp
def test_a_collector_that_is_away_stops_nothing_and_doesnt_hold_up_the_end() -> None:
    with proxy(
        CHAT.script(THINKING, "fine"), config={"tracing": {"endpoint": "http://127.0.0.1:9/v1/traces"}}
    ) as running:
        assert running.raw(CHAT.ask()).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 9
