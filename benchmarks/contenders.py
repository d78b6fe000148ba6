"""The proxies that are compared, each in its own process on the same upstream."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import free_port, running, worker_of

CHUNK_TOKENS = 64
BOUNDARY = {"first": CHUNK_TOKENS, "growth": 1.0, "max": CHUNK_TOKENS, "max_hold_ms": 60_000}

NGINX_CONFIG = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream model {{ server 127.0.0.1:{upstream}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running proxy; ``pid`` is the process whose CPU time counts, ``check`` what its replies are held to
    (`benchmarks/load.py`). A slow one has fewer ``rounds``, and at most ``most_streams`` for its memory."""

    name: str
    port: int
    pid: int
    check: str = "bytes"
    rounds: int = 1000
    most_streams: int = 1000

    @property
    def is_peer(self) -> bool:
        """Whether its replies are others than the upstream's own."""
        return self.check != "bytes"


class NotMeasured(Exception):
    """A contender that this machine lacks; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What a contender is started with: a folder of its own, and its neighbours' ports."""

    folder: Path
    upstream: int
    auditor: int
    nginx: str | None = None
    venvs: Mapping[str, Path] = field(default_factory=dict)
    """Where peers are installed."""


@contextmanager
def nginx(setting: Setting) -> Iterator[Proxy]:
    """nginx as a plain reverse proxy, buffering off, one worker."""
    binary = shutil.which(setting.nginx or "nginx")
    if binary is None:
        raise NotMeasured(f"no executable {setting.nginx or 'nginx on the PATH; name one with --nginx'}")
    port = free_port()
    config = setting.folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=setting.folder, upstream=setting.upstream, port=port), "utf-8")
    command = [binary, "-c", str(config), "-p", str(setting.folder), "-e", "stderr"]
    with running(command, port, setting.folder / "log") as pid:
        yield Proxy("nginx", port, worker_of(pid))


@contextmanager
def forwarder(setting: Setting) -> Iterator[Proxy]:
    """Starlette and httpx."""
    port = free_port()
    upstream = f"http://127.0.0.1:{setting.upstream}/v1"
    command = [sys.executable, "-m", "benchmarks.forwarder", str(port), upstream]
    with running(command, port, setting.folder / "log") as pid:
        yield Proxy("forwarder", port, pid)


def guardtrace(mode: str, name: str | None = None, chunk: int = CHUNK_TOKENS) -> Callable[[Setting], Any]:
    """``guardtrace serve`` with both phases in this mode, audit log and metrics on, an audit every ``chunk`` tokens."""

    @contextmanager
    def start(setting: Setting) -> Iterator[Proxy]:
        port = free_port()
        settings = {
            "server": {"port": port},
            "upstreams": {"default": {"base_url": f"http://127.0.0.1:{setting.upstream}/v1"}},
            "auditor": {"base_url": f"http://127.0.0.1:{setting.auditor}/v1", "model": "guard", "depth": "annotate"},
            "tenants": {"all": {"policy": "bench"}},
            "anonymous_tenant": "all",
            "audit_log": {"path": str(setting.folder / "audit.jsonl")},
            "metrics": {"port": 0},
        }
        extends = "monitor" if mode == "monitor" else "balanced"
        policy = {"version": 1, "extends": extends, "boundary": {**BOUNDARY, "first": chunk, "max": chunk}}
        (setting.folder / "policies").mkdir()
        # JSON is YAML
        (setting.folder / "policies" / "bench.yaml").write_text(json.dumps(policy), "utf-8")
        config = setting.folder / "guardtrace.yaml"
        config.write_text(json.dumps(settings), "utf-8")
        program = "from guardtrace_proxy.cli.app import main; main()"
        command = [sys.executable, "-c", program, "serve", "--config", str(config)]
        with running(command, port, setting.folder / "log") as pid:
            yield Proxy(name or f"guardtrace {mode}", port, pid)

    return start


CONTENDERS: dict[str, Callable[[Setting], Any]] = {
    "nginx": nginx,
    "forwarder": forwarder,
    "guardtrace monitor": guardtrace("monitor"),
    "guardtrace hold": guardtrace("hold"),
}
