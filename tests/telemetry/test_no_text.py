"""Whatever happens in any dialect, no word of users or models is in the log, the metrics, the spans or the audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` isn't installed")

from guardtrace_proxy.telemetry.logs import configure_own_logging
from tests.asgi.model_servers import Model, guarded, starlette_app
from tests.ports import free_port
from tests.server.dialects import CASES, Case
from tests.server.running import proxy
from tests.server.scripted import SSE_HEAD, Script, by_word, http
from tests.server.test_tracing import Spans
from tests.structlog_state import no_structlog
from tests.telemetry.pictures import picture
from tests.telemetry.scraping import scrape
from tests.waiting import eventually

QUESTION, THINKING, ANSWER, PICTURE = "quokka-question", "wombat-thinking", "numbat-answer", "dingo-picture"
ANALYSIS, ERROR, KEY, MODEL = "emu-analysis", "taipan-error", "bilby-key", "kookaburra model"
MARKERS = (QUESTION, THINKING, ANSWER, PICTURE, ANALYSIS, ERROR, KEY, MODEL)
WORDS = "one two three four five six"


def thinker(case: Case) -> Script:
    """Does as its model is called."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        model = request["model"]
        thinking = f"Hm {THINKING} {WORDS} {'HARM' if model == 'harm' else 'HINT' if model == 'hint' else ''}"
        answer = f"So {ANSWER} {WORDS}"
        frames = case.frames(thinking, answer)
        if model == "late":
            time.sleep(0.1)
        if model in ("refusing", "late"):
            error = {"message": f"{ERROR} {QUESTION}", "type": ERROR, "code": ERROR, "param": ERROR}
            return [http(400, json.dumps({"type": "error", "error": error}))]
        if not request.get("stream"):
            return [case.whole(thinking, answer)]
        if model == "breaking":
            return [SSE_HEAD.replace(b"Connection: close", b"Content-Length: 999999"), *frames[:5]]
        if model == "malformed":
            return [SSE_HEAD, *frames[:4], b"data: {" + THINKING.encode() + b"\n\n", *frames[4:]]
        if model == "erring":
            error = {"message": f"{ERROR} {THINKING}", "type": ERROR, "code": ERROR}
            return [SSE_HEAD, *frames[:4], f"data: {json.dumps({'type': 'error', 'error': error})}\n\n".encode()]
        return [SSE_HEAD, *frames]

    return script


def guard(request: dict[str, Any]) -> Iterable[bytes]:
    """Answers and quotes what it read; fails, or talks nonsense, where the question says so."""
    text = json.dumps(request, ensure_ascii=False)
    if "guard-refuses" in text:
        return [http(400, json.dumps({"error": {"message": f"{ERROR}: {text}", "type": ERROR}}))]
    if "guard-rambles" in text:
        return [http(200, json.dumps({"choices": [{"message": {"content": f"{ANALYSIS} {THINKING}"}}]}))]
    level = by_word(json.dumps(request["messages"][-1]["content"], ensure_ascii=False))
    reply = f"“Analysis”: {ANALYSIS} quotes {THINKING}.\n“Judgment”: {level}"
    return [http(200, json.dumps({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}))]


def traffic(case: Case, url: str) -> int:
    """How many requests."""
    asked: list[tuple[dict[str, Any], dict[str, str]]] = []
    for model in ("benign", "harm", "hint", "refusing", "late", "breaking", "malformed", "erring", MODEL):
        for streamed in (True, False):
            asked.append(({**case.ask(QUESTION, picture(PICTURE)), "model": model, "stream": streamed}, {}))
    asked += [(case.ask(f"{QUESTION} {how}", picture(PICTURE)), {}) for how in ("guard-refuses", "guard-rambles")]
    asked += [
        (case.ask(QUESTION, f"https://{PICTURE}.example/{PICTURE}.png"), {}),
        (case.ask(QUESTION, f"data:image/png;base64,{PICTURE}"), {}),
        (case.ask(QUESTION, picture(PICTURE), **{QUESTION: QUESTION}), {}),
        (case.ask(QUESTION, picture(PICTURE)), {"authorization": f"Bearer {KEY}"}),
        (
            case.ask(QUESTION, picture(PICTURE)),
            {"x-request-id": f"no id: {QUESTION}", "traceparent": QUESTION, "tracestate": QUESTION},
        ),
    ]
    with httpx.Client(trust_env=False, timeout=30) as client:
        for body, headers in asked:
            with suppress(httpx.HTTPError):
                client.post(url, json=body, headers={**case.headers, **headers})
        client.post(f"{url}/{QUESTION}?{QUESTION}", json=case.ask(QUESTION, picture(PICTURE)), headers=case.headers)
        with client.stream("POST", url, json=case.ask(QUESTION, picture(PICTURE)), headers=case.headers):
            pass
    return len(asked) + 2


@dataclass
class Told:
    """What each sink got."""

    log: str
    metrics: str
    spans: str
    audit_log: str

    def check(self, requests: int) -> None:
        for sink, text in vars(self).items():
            assert len(text) > 2000, sink
            for marker in MARKERS:
                place = text.find(marker)
                assert place < 0, f"{marker} is in the {sink}: {text[max(0, place - 300) : place + 100]}"
        lines = [json.loads(line) for line in self.log.splitlines()]
        without = {line["event"] for line in lines if "request_id" not in line}
        assert without <= {"auditor probed"}
        assert len({line["request_id"] for line in lines if line["event"] == "reply"}) > requests / 2


def told_by(capsys: pytest.CaptureFixture[str], spans: Spans, metrics: str, log: Path) -> Told:
    return Told(capsys.readouterr().err, metrics, "\n".join(span.to_json() for span in spans.all), log.read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_text_gets_out(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans, log = Spans(), tmp_path / "audit.jsonl"
    config = {"metrics": {"port": 0}, "audit_log": {"path": str(log)}, "server": {"keepalive_ms": 50}}
    with no_structlog():
        assert configure_own_logging("json", "debug")
        with proxy(thinker(case), guard, config=config, tracer_provider=spans.provider) as running:
            requests = traffic(case, f"{running.url}/v1{case.path}")
            assert eventually(lambda: scrape(running.app.service).value("guardtrace_replies_running") == 0)
            metrics = scrape(running.app.service).text
        told = told_by(capsys, spans, metrics, log)
    told.check(requests)
    for event in ("request refused", "audit failed", "upstream broke off", "failed after the head had left"):
        assert event in told.log


def test_nor_from_inside_a_model_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, spans, log, port = CASES[0], Spans(), tmp_path / "audit.jsonl", free_port()
    config = {
        "metrics": {"port": port},
        "audit_log": {"path": str(log)},
        "logging": {"format": "json", "level": "debug"},
    }

    def frames(request: dict[str, Any]) -> list[bytes]:
        if request["model"] == "refusing":
            raise ValueError(f"{ERROR} {QUESTION}")
        return list(thinker(case)({**request, "stream": True}))[1:]

    model = Model(frames, whole=case.whole(f"Hm {THINKING}", ANSWER).partition(b"\r\n\r\n")[2])
    with guarded(starlette_app(model), guard, config=config, tracer_provider=spans.provider) as running:
        requests = traffic(case, f"{running.url}/v1{case.path}")
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    told = told_by(capsys, spans, metrics, log)
    told.check(requests)
    assert "the server's app raised" in told.log


def test_the_markers_are_found_where_they_may_stand(tmp_path: Path) -> None:
    """That the audit log holds them where it is asked to shows that the scripts put them there."""
    log = tmp_path / "audit.jsonl"
    case = CASES[0]
    config = {"audit_log": {"path": str(log), "evidence": "full"}}
    with proxy(thinker(case), guard, config=config) as running:
        traffic(case, f"{running.url}/v1{case.path}")
    for marker in (QUESTION, THINKING, ANALYSIS):
        assert marker in log.read_text()
