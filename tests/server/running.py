"""The proxy over real sockets, between scripted model servers and the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import yaml

from guardtrace_proxy.auditor.protocol import Auditor
from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.images import ImageFetcher
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import load_config
from tests.server.scripted import Script, Server, by_word, judging, model_server

CHUNKS = {"boundary": {"first": 4, "growth": 1.0, "max": 4, "max_hold_ms": 60_000}}


@dataclass
class Running:
    url: str
    upstream: Server
    auditor: Server
    app: GuardTraceApp

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="EMPTY", max_retries=0, timeout=30)

    def raw(self, body: Any, path: str = "/chat/completions", **options: Any) -> httpx.Response:
        """POST; a dict goes as JSON, bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx.Client(timeout=30, trust_env=False) as client:
            return client.post(self.url + "/v1" + path, content=content, **options)


class Connection(HTTPConnection):
    """One connection, kept open between requests; never opened anew behind the test's back."""

    auto_open = 0

    def send_chat(self, body: Any, **headers: str) -> HTTPResponse:
        """POST to chat completions; a dict goes as JSON. The reply's head has been read, its body hasn't."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        self.request("POST", "/v1/chat/completions", content, {k.replace("_", "-"): v for k, v in headers.items()})
        return self.getresponse()


@contextmanager
def connected(running: Running) -> Iterator[Connection]:
    """A bare connection to the proxy."""
    address = urlsplit(running.url)
    with closing(Connection(address.hostname or "", address.port, timeout=30)) as connection:
        connection.connect()
        yield connection


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "thinker", "messages": [{"role": "user", "content": "Please help."}], **more}


@contextmanager
def proxy(
    upstream: Script,
    auditor: Script | None = None,
    *,
    policy: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    image_fetcher: ImageFetcher | None = None,
    own_auditor: Auditor | None = None,
    http: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve; ``config`` and ``policy`` are merged over small defaults. ``own_auditor`` is asked in the server's place;
    ``http`` are uvicorn's settings, other ``options`` are `GuardTraceApp`'s."""
    with ExitStack() as stack:
        upstream_server = stack.enter_context(model_server(upstream))
        auditor_server = stack.enter_context(model_server(auditor or judging(by_word)))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        settings: dict[str, Any] = {
            "server": {"max_lag_ms": 0},  # the loop is late for the others of this process
            "upstreams": {"default": {"base_url": upstream_server.url}},
            "auditor": {"base_url": auditor_server.url, "model": "guard", "depth": "annotate", "timeout_ms": 3000},
            "tenants": {"all": {"policy": "test"}},
            "anonymous_tenant": "all",
            "logging": {"level": "error"},
        }
        for key, value in (config or {}).items():
            old = settings.get(key)
            settings[key] = {**old, **value} if isinstance(old, dict) else value
        (folder / "policies").mkdir()
        content = {"version": 1, "extends": "balanced", **CHUNKS, **(policy or {})}
        (folder / "policies" / "test.yaml").write_text(yaml.safe_dump(content), "utf-8")
        (folder / "guardtrace.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        loaded = load_config(folder / "guardtrace.yaml", environ or {})
        app = GuardTraceApp(loaded, auditor=own_auditor, environ=environ or {}, image_fetcher=image_fetcher, **options)
        url = stack.enter_context(served(app, **(http or {})))
        yield Running(url, upstream_server, auditor_server, app)
