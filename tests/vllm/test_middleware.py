"""The guard inside a real vLLM server, by ``vllm serve --middleware``, with the embedded auditor in the same process."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from guardtrace_proxy.wire.dialects import BY_ROUTE, MESSAGES
from tests.vllm.asking import MOST, ask, converse
from tests.vllm.servers import ON_A_CPU, VllmServer, eventually, vllm_server

pytest.importorskip("vllm", reason="vLLM isn't installed here: run `make test-vllm`")

from tests.vllm.checkpoints import write_thinker
from tests.vllm.memories import ONSET, PENCILS, SHED
from tests.vllm.test_served import SENTENCES, TIMEOUT_MS

KEY, SERVERS_KEY = "gt-acme", "the-servers-own"
DIGEST = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
OPEN = {*BY_ROUTE, "/v1/models", "/health", "/metrics"}
"""Of vLLM's routes, those that are audited and those that pass."""
UPGRADE = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}


@dataclass
class Guarded:
    server: VllmServer

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.server.url, api_key=KEY, max_retries=0, timeout=120)

    def ask(self, method: str, path: str, key: str | None = KEY, **headers: str) -> httpx.Response:
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        url = self.server.url.removesuffix("/v1") + path
        return httpx.request(method, url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    config = write_settings(folder)
    model = write_thinker(folder / "thinker", [PENCILS, SHED])
    command = ["vllm", "serve", str(model), "--served-model-name", "thinker", "--port", "{port}", *ON_A_CPU]
    command += ["--max-model-len", "4096", "--reasoning-parser", "qwen3"]
    command += ["--middleware", "guardtrace_proxy.asgi.GuardTraceMiddleware"]
    environ = {"GUARDTRACE_CONFIG": str(config), "VLLM_API_KEY": SERVERS_KEY}
    with vllm_server("guarded", command, folder, gives_way=True, environ=environ) as server:
        server.wait()
        yield Guarded(server)


def write_settings(folder: Path) -> Path:
    settings = {
        "upstreams": {"default": {"api_key_env": "VLLM_API_KEY"}},
        "auditor": {"backend": "transformers", "model": "builtin:nano", "timeout_ms": TIMEOUT_MS},
        "tenants": {"acme": {"keys": [DIGEST], "policy": "test"}},
    }
    (folder / "policies").mkdir()
    policy = {"version": 1, "extends": "balanced", **SENTENCES}
    (folder / "policies" / "test.yaml").write_text(yaml.safe_dump(policy), "utf-8")
    (folder / "guardtrace.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder / "guardtrace.yaml"


def test_a_harmless_stream_passes_intact(guarded: Guarded) -> None:
    told = ask(guarded.client, PENCILS)
    assert (told.thinking.strip(), told.answer.strip(), told.finish) == (PENCILS.thinking, PENCILS.answer, "stop")
    assert guarded.server.becomes_idle()


def test_a_harmful_stream_is_cut_and_the_engine_stops(guarded: Guarded) -> None:
    written = guarded.server.written
    told = ask(guarded.client, SHED, ignore_eos=True)  # left alone it would write MOST tokens
    assert told.finish == "content_filter"
    assert SHED.thinking.startswith(told.thinking.strip())
    assert ONSET not in told.thinking
    assert SHED.answer not in told.answer
    assert guarded.server.becomes_idle()
    assert guarded.server.written - written < MOST


def test_a_message_passes_or_is_cut(guarded: Guarded) -> None:
    """Its key comes in a header of its own."""
    told = converse(guarded.client, PENCILS)
    assert (told.thinking.strip(), told.answer.strip(), told.finish) == (PENCILS.thinking, PENCILS.answer, "end_turn")
    told = converse(guarded.client, SHED)
    assert told.finish == "refusal"
    assert ONSET not in told.thinking
    assert SHED.answer not in told.answer
    assert guarded.server.becomes_idle()


def test_a_client_that_leaves_stops_the_engine(guarded: Guarded) -> None:
    written = guarded.server.written
    endless = {"model": "thinker", "messages": [{"role": "user", "content": PENCILS.question}], "stream": True}
    endless |= {"max_tokens": MOST, "ignore_eos": True}
    url, headers = guarded.server.url + "/chat/completions", {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", url, json=endless, headers=headers, timeout=120, trust_env=False) as reply:
        parts = reply.iter_raw()
        next(parts)
        assert eventually(lambda: not guarded.server.is_idle())
    assert guarded.server.becomes_idle()
    assert guarded.server.written - written < MOST


def test_keys_are_the_tenants_and_the_servers_own_is_nobodys(guarded: Guarded) -> None:
    assert guarded.ask("GET", "/v1/models").json()["data"][0]["id"] == "thinker"
    for key in (None, "wrong", SERVERS_KEY):
        assert guarded.ask("GET", "/v1/models", key).status_code == 401
        assert guarded.ask("POST", "/v1/chat/completions", key).status_code == 401


def test_every_route_of_the_server_that_is_not_audited_is_closed(guarded: Guarded) -> None:
    lines = re.findall(r"Route: (\S+), Methods: (.+)$", guarded.server.log.read_text("utf-8"), re.MULTILINE)
    routes = {(path, method) for path, methods in lines for method in methods.split(", ")}
    assert {"/v1/chat/completions", "/tokenize", "/invocations"} <= {path for path, _ in routes}
    for path, method in routes:
        if path in OPEN:
            continue
        for key in (KEY, SERVERS_KEY):
            reply = guarded.ask(method, path, key)
            assert reply.status_code == 404, (method, path)
            if method != "HEAD":
                says_that_nothing_is_there(reply.json(), path)


def says_that_nothing_is_there(body: dict[str, Any], path: str) -> None:
    """In the words of the clients that ask there: Anthropic's below its own route, OpenAI's anywhere else."""
    error = body["error"]
    assert "is not served here" in error["message"]
    if path.startswith(MESSAGES.route + "/"):
        assert (body["type"], error["type"]) == ("error", "not_found_error")
        assert body["request_id"]
    else:
        assert error["code"] == "unknown_url"


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions", "/health"])
def test_websockets_are_closed(guarded: Guarded, path: str) -> None:
    nonce = base64.b64encode(os.urandom(16)).decode()
    assert guarded.ask("GET", path, **UPGRADE, **{"sec-websocket-key": nonce}).status_code == 403


def test_probes_pass_and_the_guard_has_its_own(guarded: Guarded) -> None:
    assert guarded.ask("GET", "/health", None).status_code == 200
    assert "vllm:num_requests_running" in guarded.ask("GET", "/metrics", None).text
    assert guarded.ask("GET", "/healthz", None).json() == {"status": "ok"}
    assert eventually(lambda: guarded.ask("GET", "/readyz", None).json()["auditor"]["probe"] == "ok")


def test_the_servers_own_error_passes(guarded: Guarded) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        guarded.client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello."}])
