"""Metrics of real requests, read as Prometheus reads them."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from guardtrace_proxy.demo.serving import ServerDidNotStart
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.asgi_io import Message, Receive, Scope, Send
from tests.asgi.model_servers import Model, guarded, starlette_app
from tests.cli.serving import serving, write_config
from tests.ports import free_port
from tests.server.dialects import CASES, Case
from tests.server.running import ask, proxy
from tests.server.scripted import DONE, HEAD, SSE_HEAD, by_word, chunk, completion, http, judging, model_server
from tests.server.sites import answers
from tests.telemetry.scraping import LISTENING, Scrape, scrape, url_of
from tests.waiting import eventually

THINKING = "Well then, one two three four five six seven eight"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_dialect_is_counted_and_no_text(case: Case) -> None:
    with proxy(case.script(f"{THINKING} HINT quokka", "wombat HARM"), config=LISTENING) as running:
        answer = running.raw(case.ask("numbat"), case.path, headers={**case.headers, "x-request-id": "bilby"})
        assert answer.status_code == 200
        found = scrape(running.app.service)
    route = f"/v1{case.path}"
    assert found.value("guardtrace_replies_total") == 1
    assert found.labels("guardtrace_replies_total") == [
        {"tenant": "all", "route": route, "action": "cut", "reason": "verdict", "end": "whole"}
    ]
    assert found.value("guardtrace_audits_total", level="1", action="cut", enforced="true", depth="annotate") == 1
    assert found.value("guardtrace_audits_total", level="0", action="pass", phase="thinking") >= 1
    assert found.value("guardtrace_tokens_total", phase="thinking") >= 12
    assert found.value("guardtrace_audit_seconds_count") == found.value("guardtrace_audits_total")
    assert found.value("guardtrace_hold_seconds_count") == found.value("guardtrace_audits_total")
    assert found.value("guardtrace_replies_running") == found.value("guardtrace_audits_running") == 0
    assert found.value("guardtrace_held_bytes") == 0
    for word in ("quokka", "wombat", "numbat", "bilby", "thinker", "HARM", "HINT"):
        assert word not in found.text


def test_failures_and_errors_are_counted_by_what_they_are() -> None:
    with proxy(lambda _: [completion("Well", "fine")], lambda _: [http(500, "{}")], config=LISTENING) as running:
        running.raw(ask())
        running.raw(ask(n="many"))
        running.raw(ask(), headers={"authorization": "Bearer nobody"})
        found = scrape(running.app.service)
    assert found.value("guardtrace_audit_failures_total", kind="refused", tenant="all") == 1
    assert found.value("guardtrace_audit_seconds_count", depth="failed") == 1
    assert found.value("guardtrace_replies_total", action="cut", reason="auditor_failure", end="whole") == 1
    assert found.value("guardtrace_errors_total", status="400") == 1
    assert found.value("guardtrace_errors_total", status="401") == 1
    assert found.value("guardtrace_auditor_probe_ok") == 0


UPSTREAMS_ERROR = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
BREAKS = {
    "connection": [
        HEAD + b"Content-Type: text/event-stream\r\nContent-Length: 9000\r\n\r\n",
        chunk({"content": "fine "}),
    ],
    "no finish": [SSE_HEAD, chunk({"content": "fine "})],
    "DONE alone": [SSE_HEAD, chunk({"content": "fine "}), DONE],
    "malformed": [SSE_HEAD, chunk({"content": "fine "}), b"data: {nope}\n\n"],
    "its own error": [SSE_HEAD, chunk({"content": "fine "}), UPSTREAMS_ERROR, DONE],
    "no stream": [completion("Well", "fine")],
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_the_upstream_breaks_off_is_told_from_a_good_one(name: str) -> None:
    with proxy(lambda _: BREAKS[name], config=LISTENING) as running:
        reply = running.raw(ask(stream=True))
        assert '"error"' in reply.text
        assert eventually(lambda: running.app.service.shedding.running == 0)
        found = scrape(running.app.service)
    [labels] = found.labels("guardtrace_replies_total")
    assert (labels["action"], labels["reason"], labels["end"]) == ("pass", "none", "broken_off")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_dialect_tells_a_broken_end_from_a_whole_one(case: Case) -> None:
    frames = [frame for frame in case.frames("All is fine.", "Four it is.") if frame != DONE]
    with proxy(lambda _: [SSE_HEAD, *frames[: len(frames) // 2 + 1]], config=LISTENING) as broken:
        broken.raw(case.ask(), case.path, headers=case.headers)
        assert eventually(lambda: broken.app.service.shedding.running == 0)
        assert [each["end"] for each in scrape(broken.app.service).labels("guardtrace_replies_total")] == ["broken_off"]
    with proxy(case.script("All is fine.", "Four it is."), config=LISTENING) as fine:
        fine.raw(case.ask(), case.path, headers=case.headers)
        assert eventually(lambda: fine.app.service.shedding.running == 0)
        [labels] = scrape(fine.app.service).labels("guardtrace_replies_total")
    assert (labels["action"], labels["reason"], labels["end"]) == ("pass", "none", "whole")


@pytest.mark.parametrize(
    ("name", "finish", "failure"),
    [
        ("chat", b'"finish_reason": "stop"', b'"finish_reason": "error"'),
        ("responses", b'"status":"completed"', b'"status":"failed"'),
    ],
)
@pytest.mark.parametrize("harm", [False, True])
def test_a_finish_that_says_that_the_upstream_failed_is_no_whole_one(
    name: str, finish: bytes, failure: bytes, harm: bool
) -> None:
    """Unless a cut takes its place."""
    case = next(case for case in CASES if case.name == name)
    frames = [
        frame.replace(finish, failure) for frame in case.frames("All is fine.", "HARM" if harm else "Four it is.")
    ]
    assert failure in frames[-1] + frames[-2]
    with proxy(lambda _: [SSE_HEAD, *frames], config=LISTENING) as running:
        running.raw(case.ask(), case.path, headers=case.headers)
        assert eventually(lambda: running.app.service.shedding.running == 0)
        [labels] = scrape(running.app.service).labels("guardtrace_replies_total")
    assert (labels["action"], labels["end"]) == (("cut", "whole") if harm else ("pass", "broken_off"))


@pytest.mark.parametrize("sent", [http(200, '{"choices": "odd"}'), http(200, "{}")[:-1]], ids=["unreadable", "short"])
def test_so_is_a_whole_reply_that_became_an_error(sent: bytes) -> None:
    with proxy(lambda _: [sent], config=LISTENING) as running:
        assert running.raw(ask()).status_code == 502
        found = scrape(running.app.service)
    assert [each["end"] for each in found.labels("guardtrace_replies_total")] == ["broken_off"]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("fails", ["all", "first"])
def test_what_leaves_unaudited_is_told_from_what_passed(fails: str, streamed: bool) -> None:
    """A verdict's cut counts for more than the failure before it."""
    asked: list[str] = []

    def guard(request: dict[str, Any]) -> Iterable[bytes]:
        if "Please help" in (text := json.dumps(request)):
            asked.append(text)
        return [http(500, "{}")] if fails == "all" or len(asked) == 1 else judging(by_word)(request)

    def upstream(request: dict[str, Any]) -> Iterable[bytes]:
        return CASES[0].script(THINKING, "fine HARM")(request) if streamed else [completion(THINKING, "fine HARM")]

    with proxy(upstream, guard, policy={"on_auditor_failure": "release"}, config=LISTENING) as running:
        running.raw(ask(stream=streamed))
        found = scrape(running.app.service)
    assert len(asked) > 1
    [labels] = found.labels("guardtrace_replies_total")
    expected = ("pass", "auditor_failure") if fails == "all" else ("cut", "verdict")
    assert (labels["action"], labels["reason"], labels["end"]) == (*expected, "whole")


@pytest.mark.parametrize("status", ["400", "503"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_whole_reply_that_a_cut_makes_an_error_is_counted(case: Case, status: str) -> None:
    def upstream(asked: dict[str, Any]) -> Iterable[bytes]:
        return [SSE_HEAD, *case.frames("Well", "HARM")] if asked["stream"] else [case.whole("Well", "HARM")]

    guard = judging(by_word) if status == "400" else lambda _: [http(500, "{}")]
    with proxy(upstream, guard, policy={"cut_shape": "error"}, config=LISTENING) as running:
        whole, streamed = (
            running.raw(case.ask(stream=is_streamed), case.path, headers=case.headers) for is_streamed in (False, True)
        )
        found = scrape(running.app.service)
    assert whole.status_code == (529 if (case.name, status) == ("messages", "503") else int(status))
    assert streamed.status_code == 200
    assert found.labels("guardtrace_errors_total") == [{"status": status}]
    assert found.value("guardtrace_errors_total") == 1


def test_an_upstream_that_refuses_late_is_an_error_too() -> None:
    def late(_: dict[str, Any]) -> Iterable[bytes]:
        time.sleep(0.3)
        return [http(429, "{}")]

    with proxy(late, config={**LISTENING, "server": {"keepalive_ms": 50}}) as running:
        assert running.raw(ask(stream=True)).status_code == 200
        found = scrape(running.app.service)
    assert found.labels("guardtrace_errors_total") == [{"status": "429"}]


def test_how_soon_a_stream_begins() -> None:
    def late(request: dict[str, Any]) -> Iterable[bytes]:
        time.sleep(0.2)
        yield from CASES[0].script("Well then", "fine")(request) if request["stream"] else [completion("Well", "fine")]

    def slow(request: dict[str, Any]) -> Iterable[bytes]:
        time.sleep(0.3)
        return judging(by_word)(request)

    with proxy(late, slow, config=LISTENING) as running:
        running.raw(ask(stream=True))
        running.raw(ask(stream=False))  # its first text is its last
        found = scrape(running.app.service)
    came, left = "guardtrace_upstream_first_text_seconds", "guardtrace_client_first_text_seconds"
    for name in (came, left):
        assert found.value(f"{name}_count", upstream="default") == found.value(f"{name}_count") == 1
    assert found.value(f"{came}_sum") >= 0.2
    assert found.value(f"{left}_sum") >= found.value(f"{came}_sum") + 0.25


def test_a_stream_of_which_nothing_leaves_has_no_first_text() -> None:
    with proxy(lambda _: [http(429, "{}")], config=LISTENING) as running:
        assert running.raw(ask(stream=True)).status_code == 429
        found = scrape(running.app.service)
    assert found.value("guardtrace_upstream_first_text_seconds_count") == 0
    assert found.value("guardtrace_client_first_text_seconds_count") == 0


def test_requests_over_a_limit_of_their_tenant_are_counted_by_the_limit() -> None:
    tenants = {"all": {"policy": "test", "limits": {"requests_per_minute": 1}}}
    with proxy(lambda _: [completion("Well", "fine")], config={**LISTENING, "tenants": tenants}) as running:
        assert [running.raw(ask()).status_code for _ in range(3)] == [200, 429, 429]
        found = scrape(running.app.service)
    assert found.value("guardtrace_requests_limited_total", tenant="all", limit="requests_per_minute") == 2
    assert found.value("guardtrace_requests_limited_total") == 2
    assert found.value("guardtrace_requests_shed_total") == 0


def test_reloads_are_counted_by_their_outcome(tmp_path: Path) -> None:
    port = free_port()

    def reloads(outcome: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return Scrape(text).value("guardtrace_reloads_total", outcome=outcome)

    with model_server(CASES[0].script(THINKING, "fine")) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(tmp_path, upstream.url, auditor.url)
        with serving(config, "--metrics-port", str(port)) as running:
            assert (reloads("used"), reloads("refused")) == (0, 0)
            running.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: reloads("used") == 1)
            config.write_text("nonsense: 1")
            assert eventually(lambda: reloads("refused") == 1)
            assert reloads("used") == 1


def test_what_is_under_way_shows_and_goes_when_the_client_leaves() -> None:
    asked, judged = threading.Event(), threading.Event()

    def waiting(request: dict[str, Any]) -> Iterable[bytes]:
        if "Please help" in json.dumps(request):
            asked.set()
            judged.wait(30)
        return judging(by_word)(request)

    case = CASES[0]
    with proxy(case.script(THINKING, "fine"), waiting, config=LISTENING) as running:
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=case.ask(), trust_env=False, timeout=30):
            assert asked.wait(30)
            found = scrape(running.app.service)
            assert found.value("guardtrace_replies_running") == 1
            assert found.value("guardtrace_audits_running") == 1
            assert found.value("guardtrace_held_bytes") > 100
            assert found.value("guardtrace_held_bytes_limit") == 1_073_741_824
        assert eventually(lambda: scrape(running.app.service).value("guardtrace_replies_running") == 0)
        found = scrape(running.app.service)
        judged.set()
    assert found.value("guardtrace_audits_running") == found.value("guardtrace_held_bytes") == 0
    assert found.labels("guardtrace_replies_total")[0]["end"] == "left"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("left_at", [0, 1])
def test_a_server_that_raises_once_its_client_has_left_counts_no_error(
    left_at: int, streamed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ASGI has allowed since 2.4."""
    answers_all = GuardTraceApp.__call__

    async def call(self: GuardTraceApp, scope: Scope, receive: Receive, send: Send) -> None:
        messages = 0

        async def raises(message: Message) -> None:
            nonlocal messages
            messages += 1
            if scope["type"] == "http" and messages > left_at:
                raise OSError("the client has left")
            await send(message)

        await answers_all(self, scope, receive, raises)

    monkeypatch.setattr(GuardTraceApp, "__call__", call)
    case, config = CASES[0], LISTENING | {"logging": {"level": "info", "format": "json"}}
    sent = [SSE_HEAD, *case.frames(THINKING, "fine")] if streamed else [case.whole(THINKING, "fine")]
    with proxy(lambda _: sent, config=config) as running:
        for body in (case.ask(stream=streamed), {}):
            with suppress(httpx.HTTPError):
                running.raw(body, case.path)
        assert eventually(lambda: running.app.service.shedding.running == 0)
        found = scrape(running.app.service)
    logged = capsys.readouterr().out
    assert [each["end"] for each in found.labels("guardtrace_replies_total")] == ["left"]
    assert [each["status"] for each in found.labels("guardtrace_errors_total")] == ["400"]
    assert "client left" in logged
    assert "internal error" not in logged


def test_monitored_actions_are_told_from_those_that_were_carried_out() -> None:
    with proxy(lambda _: [completion("HARM", "fine")], config=LISTENING, policy={"extends": "monitor"}) as running:
        running.raw(ask())
        assert eventually(lambda: running.app.service.shedding.running == 0)
        found = scrape(running.app.service)
    assert found.value("guardtrace_audits_total", level="1", enforced="false") >= 1
    assert found.value("guardtrace_audits_total", enforced="true") == 0
    assert found.value("guardtrace_replies_total", action="pass", reason="none", end="whole") == 1


def test_many_clients_make_no_more_series() -> None:
    key = "gt-key"
    tenants = {"acme": {"policy": "test", "keys": ["sha256:" + hashlib.sha256(key.encode()).hexdigest()]}}
    with proxy(lambda _: [completion("Well", "fine")], config={**LISTENING, "tenants": tenants}) as running:

        def series(number: int) -> int:
            for user in range(number):
                headers = {"authorization": f"Bearer {key}", "x-request-id": f"request-{user}"}
                running.raw({**ask(user=f"user-{user}"), "model": f"model-{user}"}, headers=headers)
                running.raw(ask(), f"/route-{user}")
                running.raw(ask(), headers={"authorization": f"Bearer nobody-{user}"})
            return len(scrape(running.app.service).samples)

        assert series(2) == series(10)


# Where they are read


def test_they_are_read_on_a_port_of_their_own_and_nothing_else_is_there() -> None:
    with proxy(lambda _: [completion("Well", "fine")], config=LISTENING) as running:
        url = url_of(running.app.service)
        with httpx.Client(trust_env=False) as client:
            assert client.get(url).headers["content-type"].startswith("text/plain")
            assert client.head(url).status_code == 200
            wanted = {"accept": "application/openmetrics-text; version=1.0.0"}
            answer = client.get(url, headers=wanted)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert answer.text.endswith("# EOF\n")
            base = url.removesuffix("/metrics")
            for path in ("/", "/healthz", "/v1/models", "/v1/chat/completions"):
                assert client.get(base + path).status_code == 404
            assert client.post(base + "/v1/chat/completions", json=ask()).status_code == 404
            assert client.post(url).status_code == 405
            # Nor are they where tenants ask, with or without a key.
            for headers in ({}, {"authorization": "Bearer EMPTY"}):
                assert client.get(running.url + "/metrics", headers=headers).status_code == 404


def test_without_a_port_nobody_reads_them() -> None:
    with proxy(lambda _: [completion("Well", "fine")]) as running:
        assert running.app.service.metrics_listener is None
        assert running.raw(ask()).status_code == 200


def test_a_port_that_is_taken_ends_the_start() -> None:
    with proxy(lambda _: [completion("Well", "fine")], config=LISTENING) as first:
        listener = first.app.service.metrics_listener
        assert listener is not None
        with pytest.raises(ServerDidNotStart, match="metrics: can't listen on 127"):
            with proxy(lambda _: [], config={"metrics": {"port": listener.port}}):
                pass


def test_inside_a_model_server_they_stand_beside_its_own() -> None:
    port = free_port()
    model = Model(lambda _: CASES[0].frames(THINKING, "fine HARM"))
    with guarded(starlette_app(model), config={"metrics": {"port": port}}) as running:
        running.raw(CASES[0].ask())
        assert running.ask("GET", "/metrics").json()["path"] == "/metrics"
        found = Scrape(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
    assert found.value("guardtrace_replies_total", action="cut") == 1


def test_the_command_has_a_port_for_each_process(tmp_path: Path) -> None:
    port = free_port()
    with model_server(CASES[0].script(THINKING, "fine")) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(tmp_path, upstream.url, auditor.url)
        with serving(config, "--metrics-port", str(port)) as running:
            list(running.client().chat.completions.create(**CASES[0].ask()))
            found = Scrape(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
            assert running.stop() == 0
    assert found.value("guardtrace_replies_total") == 1
    assert found.value("process_resident_memory_bytes") > 1e6


# What the auditor and the audit log know of themselves


def test_replicas_that_are_left_out_show() -> None:
    with model_server(judging(by_word)) as other:
        config = {**LISTENING, "auditor": {"base_url": [other.url, f"http://127.0.0.1:{free_port()}/v1"]}}
        with proxy(lambda _: [completion("Well", "fine")], config=config) as running:
            assert scrape(running.app.service).value("guardtrace_auditor_replicas") == 2

            def is_one_left_out() -> bool:
                running.raw(ask())
                return scrape(running.app.service).value("guardtrace_auditor_replicas_left_out") == 1

            assert eventually(is_one_left_out)


def test_the_embedded_auditor_tells_what_it_keeps() -> None:
    pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    own = {"backend": "transformers", "base_url": None, "model": "builtin:nano", "depth": "label", "timeout_ms": 60_000}
    held = threading.Event()

    def slow(_: dict[str, Any]) -> Iterable[bytes]:
        yield SSE_HEAD
        for frame in CASES[0].frames(THINKING * 3, "fine"):
            yield frame
            time.sleep(0.02)
        held.wait(30)

    with proxy(slow, config={**LISTENING, "auditor": own}) as running:
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=CASES[0].ask(), trust_env=False, timeout=30):
            assert eventually(lambda: scrape(running.app.service).value("guardtrace_auditor_kv_bytes") > 1000)
            found = scrape(running.app.service)
        held.set()
    assert found.value("guardtrace_auditor_kv_bytes_limit") == 4 << 30
    assert found.value("guardtrace_auditor_kv_dropped_total") == 0
    assert found.labels("guardtrace_info") == [
        {"version": found.labels("guardtrace_info")[0]["version"], "auditor": "builtin:nano", "depth": "label"}
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_what_the_audit_log_loses_shows() -> None:
    config = {**LISTENING, "audit_log": {"path": "/dev/full", "queue_bytes": 65_536}}
    with proxy(lambda _: [completion("Well", "fine")], config=config) as running:
        running.raw(ask())
        log = running.app.service.audit_log
        assert log is not None
        log.record(b"x" * 70_000)
        assert eventually(lambda: log.is_failing)
        found = scrape(running.app.service)
    assert found.value("guardtrace_audit_log_lost_total") == 1
    assert found.value("guardtrace_audit_log_failing") == 1
    assert found.value("guardtrace_audit_log_lines_total") == 0
    assert found.value("guardtrace_audit_log_waiting_bytes") > 0


def test_the_circuit_and_requests_turned_away_show() -> None:
    config = {**LISTENING, "auditor": {"breaker_failures": 1}, "server": {"max_concurrent": 1}}
    asked, judged = threading.Event(), threading.Event()

    def waiting_then_out(request: dict[str, Any]) -> Iterable[bytes]:
        if "Please help" in json.dumps(request):
            asked.set()
            judged.wait(30)
        return [http(503, "{}")]

    with proxy(CASES[0].script(THINKING, "fine"), waiting_then_out, config=config) as running:
        assert scrape(running.app.service).value("guardtrace_auditor_circuit", state="closed") == 1
        first = threading.Thread(target=running.raw, args=(CASES[0].ask(),))
        first.start()
        assert asked.wait(30)
        assert running.raw(ask()).status_code == 503
        found = scrape(running.app.service)
        assert found.value("guardtrace_requests_running") == 1
        assert (
            found.value("guardtrace_requests_shed_total") == found.value("guardtrace_errors_total", status="503") == 1
        )
        judged.set()
        first.join(30)
        found = scrape(running.app.service)
    assert {each["state"] for each in found.labels("guardtrace_auditor_circuit")} == {"closed", "open", "half_open"}
    assert found.value("guardtrace_auditor_circuit", state="closed") == 0
    assert found.value("guardtrace_auditor_circuit") == 1
    assert found.value("guardtrace_event_loop_lag_seconds") < 30


def test_each_worker_has_a_port(tmp_path: Path) -> None:
    port = free_port(in_a_row=2)
    with model_server(CASES[0].script(THINKING, "fine")) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(tmp_path, upstream.url, auditor.url, audit_log={"path": "audit.jsonl"})
        with serving(config, "--metrics-port", str(port), "--workers", "2") as running:
            for _ in range(4):
                list(running.client().chat.completions.create(**CASES[0].ask()))
            urls = [f"http://127.0.0.1:{port + number}/metrics" for number in range(2)]
            assert eventually(lambda: answers(urls[1]))
            found = [Scrape(httpx.get(url, trust_env=False).text) for url in urls]
            assert running.stop() == 0
    assert sum(each.value("guardtrace_replies_total") for each in found) == 4
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len({line["request_id"] for line in lines}) == 4
