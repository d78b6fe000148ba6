"""`guardtrace serve` as an operator runs it: it serves, it ends when told to, and says what is wrong."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest
from typer.testing import CliRunner

from guardtrace_proxy.cli.app import app
from tests.cli.serving import ENVIRON, GUARDTRACE, run, serving, write_config
from tests.ports import free_port
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, judging, model_server, stream
from tests.waiting import eventually

MESSAGES = [{"role": "user", "content": "Please help."}]


@pytest.fixture(scope="module")
def auditor():
    with model_server(judging(by_word)) as server:
        yield server.url


def test_it_serves_the_official_client_and_ends_when_told_to(tmp_path, auditor):
    replies = {
        "fine": [SSE_HEAD, *stream("Two and two make four.", "Four.")],
        "bad": [SSE_HEAD, *stream("Well one two three HARM and more", "No.")],
    }
    with model_server(lambda body: replies[body["model"]]) as upstream:
        config = write_config(tmp_path, upstream.url, auditor)
        with serving(config) as running:
            fine = list(running.client().chat.completions.create(model="fine", messages=MESSAGES, stream=True))
            assert "".join(c.choices[0].delta.content or "" for c in fine).strip() == "Four."
            assert fine[-1].choices[0].finish_reason == "stop"
            bad = list(running.client().chat.completions.create(model="bad", messages=MESSAGES, stream=True))
            assert bad[-1].choices[0].finish_reason == "content_filter"
            assert not any("HARM" in chunk.model_dump_json() for chunk in bad)
            with pytest.raises(openai.AuthenticationError):
                running.client("gt-unknown").chat.completions.create(model="fine", messages=MESSAGES)
            ready = httpx.get(running.url + "/readyz", trust_env=False).json()
            assert ready["status"] == "ready"
            assert ready["auditor"]["probe"] == "ok"
            assert running.stop() == 0
            with pytest.raises(httpx.ConnectError):
                httpx.get(running.url + "/healthz", trust_env=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_reply_in_flight_is_finished_first(tmp_path, auditor, how):
    going_on = threading.Event()

    def slowly(_):
        yield SSE_HEAD
        yield chunk({"role": "assistant", "content": "one two three four five six "})
        going_on.wait(20)
        yield chunk({"content": "seven"}) + chunk({}, "stop") + DONE

    with model_server(slowly) as upstream, serving(write_config(tmp_path, upstream.url, auditor)) as running:
        reply = running.client().chat.completions.create(model="m", messages=MESSAGES, stream=True)
        first = next(reply)
        running.process.send_signal(how)
        time.sleep(0.3)
        assert running.process.poll() is None
        going_on.set()
        rest = list(reply)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *rest])
        assert said == "one two three four five six seven"
        assert rest[-1].choices[0].finish_reason == "stop"
        assert running.process.wait(20) == 0


@pytest.mark.parametrize("metrics", [{}, {"metrics": {"port": 0}}])
def test_it_says_where_it_listens(tmp_path, auditor, metrics):
    config = write_config(tmp_path, "http://127.0.0.1:9/v1", auditor, **metrics)
    command = [sys.executable, "-c", GUARDTRACE, "serve", "--config", str(config), "--port", "0"]
    log = tmp_path / "log.txt"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stderr=said, env=ENVIRON)
    try:
        assert eventually(lambda: '"serving"' in log.read_text("utf-8") and log.read_text("utf-8").endswith("\n"))
        line = next(json.loads(line) for line in log.read_text("utf-8").splitlines() if '"serving"' in line)
        assert (line["event"], line["level"], line["host"]) == ("serving", "info", "127.0.0.1")
        assert httpx.get(f"http://127.0.0.1:{line['port']}/healthz", trust_env=False).status_code == 200
        assert ("metrics_port" in line) == bool(metrics)
        if metrics:
            url = f"http://{line['metrics_host']}:{line['metrics_port']}/metrics"
            assert httpx.get(url, trust_env=False).status_code == 200
    finally:
        process.kill()
        process.wait(10)


def test_a_tenant_that_nobody_can_be_is_told(tmp_path, auditor):
    tenants = {"all": {"policy": "test"}, "acme": {"policy": "test"}}
    with serving(write_config(tmp_path, "http://127.0.0.1:9/v1", auditor, tenants=tenants)) as running:
        lines = [json.loads(line) for line in running.log.read_text("utf-8").splitlines()]
    told = [(x["level"], x["tenant"]) for x in lines if x["event"] == "tenant without a key, so nobody is served as it"]
    assert told == [("warning", "acme")]


def test_a_tenant_that_anybody_can_be_is_told(tmp_path, auditor):
    known = "sha256:" + hashlib.sha256(b"gt-example-acme-0dxHqoAGQukUtd_cVPUpQYdx4nuF0q_3PsoAoXII7VM").hexdigest()
    tenants = {"all": {"policy": "test"}, "acme": {"policy": "test", "keys": [known.upper().replace("SHA", "sha")]}}
    with serving(write_config(tmp_path, "http://127.0.0.1:9/v1", auditor, tenants=tenants)) as running:
        lines = [json.loads(line) for line in running.log.read_text("utf-8").splitlines()]
    told = [(x["level"], x["tenant"]) for x in lines if x["event"] == "tenant with a key that anybody knows"]
    assert told == [("warning", "acme")]


def test_a_policy_that_guards_less_than_it_seems_to_is_told(tmp_path, auditor):
    config = write_config(tmp_path, "http://127.0.0.1:9/v1", auditor, tenants={"all": {"policy": "weak"}})
    weak = "version: 1\nextends: strict\nthinking: {mode: monitor}\n"
    (tmp_path / "policies" / "weak.yaml").write_text(weak, "utf-8")
    with serving(config) as running:
        lines = [json.loads(line) for line in running.log.read_text("utf-8").splitlines()]
    told = [(x["level"], x["policy"], x["warning"]) for x in lines if x["event"] == "policy"]
    assert {(level, policy) for level, policy, _ in told} == {("warning", "weak")}
    assert any(warning.startswith("thinking is guarded less than the answer") for _, _, warning in told)


def test_a_wrong_config_is_told_and_nothing_is_served(tmp_path, auditor):
    config = write_config(tmp_path, "http://a/v1", auditor, sevrer={"port": 1})
    said = CliRunner().invoke(app, ["serve", "--config", str(config)])
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith(f"{config}:")
    assert 'sevrer: unknown key; did you mean "server"?' in said.stderr
    assert "Traceback" not in said.stderr


def test_an_absent_config(tmp_path):
    said = CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(
        app, ["serve", "--config", str(tmp_path / "x.yaml")]
    )
    assert said.exit_code == 2
    assert "does not exist" in said.stderr


def test_a_port_in_use_is_told(tmp_path, auditor):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = run("serve", "--config", write_config(tmp_path, "http://a/v1", auditor), "--port", str(port))
    assert said.returncode == 2
    assert "address already in use" in said.stderr
    assert str(port) in said.stderr
    assert "Traceback" not in said.stderr


def assert_told(said, why):
    assert said.returncode == 2
    assert why in said.stderr
    assert "Traceback" not in said.stderr


def test_a_port_that_is_taken_while_it_starts_is_told(tmp_path, auditor):
    program = f"""
import socket
from guardtrace_proxy.cli import serve
listen, other = serve._listen, socket.socket()
def and_so_does_another(*settings):
    listener = listen(*settings)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(listener.getsockname())
    other.listen()
    return listener
serve._listen = and_so_does_another
{GUARDTRACE}"""
    said = run("serve", "--config", write_config(tmp_path, "http://a/v1", auditor), "--port", "0", program=program)
    assert_told(said, "The server didn't start: another process has begun to listen on its port\n")
    assert "Unclosed" not in said.stderr


def test_a_client_may_take_as_long_as_the_settings_let_it(tmp_path, auditor):
    """Twice that is what the kernel is told."""
    config = write_config(tmp_path, "http://a/v1", auditor, server={"client_timeout_ms": 2**30 - 1})
    with serving(config) as running:
        assert running.stop() == 0
    config = write_config(tmp_path, "http://a/v1", auditor, server={"client_timeout_ms": 2**30})
    assert_told(run("serve", "--config", config, "--port", "0"), "server.client_timeout_ms: input should be less than")


@pytest.mark.parametrize("arguments", [["--host", "127.0..1"], ["--metrics-port", "0"]])
def test_an_address_that_is_none_is_told(tmp_path, auditor, arguments):
    config = write_config(tmp_path, "http://a/v1", auditor, metrics={"port": 1, "host": "127.0..1"})
    said = run("serve", "--config", config, "--port", "0", *arguments)
    assert_told(said, "can't listen on 127.0..1:0: ")


def test_a_metrics_port_that_is_taken_is_told_in_one_line(tmp_path, auditor):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, "http://a/v1", auditor, metrics={"port": port})
        said = run("serve", "--config", config, "--port", "0")
    assert_told(said, f"The server didn't start: metrics: can't listen on 127.0.0.1:{port}: ")
    assert "Unclosed" not in said.stderr


def test_no_metrics_port_is_where_tenants_ask(tmp_path, auditor):
    config, port = write_config(tmp_path, "http://a/v1", auditor, metrics={"port": 1}), free_port()
    for first, workers in ((port, 1), (port - 1, 2)):
        said = run(
            "serve", "--config", config, "--port", str(port), "--metrics-port", str(first), "--workers", str(workers)
        )
        assert said.returncode == 2
        assert said.stderr == (
            f"metrics.port: {port} is where tenants ask, and metrics are read on {first} to {port}: choose others\n"
        )


def test_workers_whose_metrics_ports_would_be_too_high_are_told(tmp_path, auditor):
    config = write_config(tmp_path, "http://a/v1", auditor)
    said = run("serve", "--config", config, "--port", "0", "--metrics-port", "65535", "--workers", "2")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "metrics.port: 2 workers would need 65535 to 65536: choose one up to 65534\n"


def test_an_auditor_that_cant_work_as_configured_is_told(tmp_path, auditor):
    program = f"""
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
async def start(self):
    raise AuditorSettingsError("auditor.model: there is no such folder")
OpenAIAuditor.start = start
{GUARDTRACE}"""
    said = run("serve", "--config", write_config(tmp_path, "http://a/v1", auditor), "--port", "0", program=program)
    assert_told(said, "The server didn't start: auditor.model: there is no such folder\n")
