"""The middleware's settings: what makes no sense inside a server is refused, with its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.inner_config import load_inner_config
from tests.ports import free_port

LEAST = "auditor: {base_url: 'http://127.0.0.1:1/v1'}\ntenants: {acme: {policy: balanced}}\n"
OWN = "has no effect inside a model server, which has its own: leave it out"


def load(folder: Path, text: str, environ: dict[str, str] | None = None):
    path = folder / "guardtrace.yaml"
    path.write_text(text, "utf-8")
    return load_inner_config(path, environ or {})


def test_auditor_and_tenants_are_enough(tmp_path):
    config = load(tmp_path, LEAST)
    assert list(config.upstreams) == ["default"]
    assert config.over_http == {}
    assert config.server.passthrough == []


def test_what_is_said_of_the_model_counts(tmp_path):
    text = "upstreams: {default: {thinking: {style: inline, starts_open: true}, allow_fields: [x], api_key_env: K}}\n"
    model = load(tmp_path, LEAST + text, {"K": "k"}).upstreams["default"]
    assert (model.thinking.style, model.thinking.starts_open, model.allow_fields) == ("inline", True, ["x"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server: {host: 0.0.0.0}", f"server.host: {OWN}"),
        ("server: {port: 8080}", f"server.port: {OWN}"),
        ("server: {drain_ms: 1}", f"server.drain_ms: {OWN}"),
        ("upstreams: {default: {retries: 2}}", f"upstreams.default.retries: {OWN}"),
        ("upstreams: {default: {ca_file: ca.pem}}", f"upstreams.default.ca_file: {OWN}"),
        ("upstreams: {default: {base_url: 'http://x/v1'}}", f"upstreams.default.base_url: {OWN}"),
        (
            "upstreams: {other: {}}",
            "upstreams.other: inside a model server there is one upstream, the server itself: name it default",
        ),
        ("upstreams: {}", "upstreams: expected at least one upstream"),
        (
            "upstreams: {default: {api_key_env: K}}",
            "upstreams.default.api_key_env: the environment variable K isn't set; set it, or leave the key out",
        ),
        (
            "upstreams: {default: {thinking: {style: custom}}}",
            "upstreams.default.thinking: style custom needs close, and open unless thinking starts open",
        ),
        (
            "server: {passthrough: [v1/embeddings]}",
            "server.passthrough.0: expected the path of one route, as /v1/embeddings: no pattern, no query",
        ),
        (
            "server: {passthrough: ['/v1/*']}",
            "server.passthrough.0: expected the path of one route, as /v1/embeddings: no pattern, no query",
        ),
        (
            "server: {passthrough: [/a, /v1/chat/completions]}",
            "server.passthrough.1: /v1/chat/completions is served by the guard itself: leave it out",
        ),
        (
            "server: {passthrough: [/readyz]}",
            "server.passthrough.0: /readyz is served by the guard itself: leave it out",
        ),
        (
            "zzz: 1",
            "zzz: unknown key; valid ones are anonymous_tenant, audit_log, auditor, images, logging, metrics, policies_dir, server, tenants, tracing, upstreams",
        ),
    ],
)
def test_problems_are_told_with_file_line_and_key(tmp_path, text, told):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, LEAST + text + "\n")
    assert f"{tmp_path / 'guardtrace.yaml'}:3: {told}" in str(caught.value).splitlines()


def test_all_problems_are_told_at_once(tmp_path):
    text = "server: {host: x, port: y, max_body_bytes: 1}\nupstreams: {default: {base_url: 3, more: 1}}\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, LEAST + text)
    keys = [problem.key for problem in caught.value.problems]
    assert keys == [
        "server.host",
        "server.port",
        "upstreams.default.base_url",
        "server.max_body_bytes",
        "upstreams.default.more",
    ]


APP = """
import structlog
from starlette.applications import Starlette
from guardtrace_proxy.asgi import GuardTraceMiddleware
app = Starlette()
app.add_middleware(GuardTraceMiddleware{arguments})
{more}
"""


def started(folder: Path, arguments: str = "", more: str = "", **environ: str) -> tuple[int | str, str]:
    """What `uvicorn` says of an app with the middleware, with uvicorn's own settings: its status, or ``runs``."""
    (folder / "served.py").write_text(APP.format(arguments=arguments, more=more), "utf-8")
    command = [sys.executable, "-m", "uvicorn", "served:app", "--port", str(free_port()), "--app-dir", str(folder)]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path, **environ}, stderr=subprocess.PIPE, text=True
    )
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if "Application startup complete" in line:
            process.terminate()
            said += process.stderr.read()
            process.wait(20)
            return "runs", said
    return process.wait(20), said


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_server_whose_guard_has_wrong_settings_does_not_start(tmp_path, by):
    path = tmp_path / "guardtrace.yaml"
    path.write_text(LEAST + "server: {port: 1}\n", "utf-8")
    named = {"arguments": f", config={str(path)!r}"} if by == "argument" else {"GUARDTRACE_CONFIG": str(path)}
    status, said = started(tmp_path, **named)
    assert status == 3
    assert f"{path}:3: server.port: {OWN}" in said
    path.write_text(LEAST, "utf-8")
    status, said = started(tmp_path, **named)
    assert status == "runs", said


def test_a_server_whose_guard_has_no_settings_does_not_start(tmp_path):
    status, said = started(tmp_path)
    assert status == 3
    assert "GUARDTRACE_CONFIG: isn't set: name the settings' file in it, or pass config= to the middleware" in said


def test_a_server_that_logs_by_structlog_keeps_its_own_settings(tmp_path):
    path = tmp_path / "guardtrace.yaml"
    path.write_text(LEAST + "logging: {level: error}\n", "utf-8")
    status, said = started(tmp_path, more="structlog.configure()", GUARDTRACE_CONFIG=str(path))
    assert status == 3
    assert "logging: this server has set up structlog itself: leave the section out" in said
    path.write_text(LEAST, "utf-8")
    status, said = started(tmp_path, more="structlog.configure()", GUARDTRACE_CONFIG=str(path))
    assert status == "runs", said
