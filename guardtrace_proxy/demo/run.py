"""Starts upstream, proxy and auditor, and plays traces through them."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import openai
import yaml

from guardtrace_proxy.demo.compare import Comparison, compare
from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.demo.traces import DemoTrace
from guardtrace_proxy.demo.upstream import ReplayUpstream
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import load_config

TRACES = Path(__file__).parent / "traces"
DIALECTS = {
    "fields": {"style": "field"},
    "inline": {"style": "inline"},
    "open": {"style": "inline", "starts_open": True},
}
BOUNDARY = {"unit": "sentences", "first": 1, "max": 4, "max_hold_ms": 5_000}
"""A person watches: verdicts come at the ends of sentences, and the sentence that is being written is held back."""

LOOK_SECONDS = 0.01
"""Between two looks whether a reply's last verdict has come."""


def write_config(folder: Path, upstream: str, keys: dict[str, str], preset: str, model: str) -> Path:
    """A guardtrace.yaml with one upstream and one tenant for each way of writing thinking, and their policy."""
    (folder / "demo.yaml").write_text(yaml.safe_dump({"version": 1, "extends": preset, "boundary": BOUNDARY}))
    config = {
        "upstreams": {
            name: {"base_url": f"{upstream}/v1", "thinking": thinking} for name, thinking in DIALECTS.items()
        },
        "auditor": {"backend": "transformers", "model": model, "depth": "cascade", "timeout_ms": 30_000},
        "policies_dir": str(folder),
        "tenants": {
            name: {
                "keys": [f"sha256:{hashlib.sha256(keys[name].encode()).hexdigest()}"],
                "policy": "demo",
                "upstream": name,
            }
            for name in DIALECTS
        },
    }
    path = folder / "guardtrace.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Demo:
    """Servers that live while the context lasts. ``pace`` is in tokens a second."""

    def __init__(self, traces: Sequence[DemoTrace], *, pace: float, policy: str, model: str) -> None:
        self._traces = traces
        self._pace = pace
        self._policy = policy
        self._model = model
        self._stack = ExitStack()
        self._running: Comparison | None = None
        self._redraw: Callable[[], None] = lambda: None

    def __enter__(self) -> Demo:
        # Whatever started is stopped again where a later part doesn't start.
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guardtrace-demo-")))
            self._keys = {name: f"gt-{secrets.token_urlsafe(16)}" for name in DIALECTS}
            upstream = stack.enter_context(served(ReplayUpstream(self._traces, self._pace)))
            config = load_config(write_config(folder, upstream, self._keys, self._policy, self._model), {})
            self._app = GuardTraceApp(config, observer=self._observe)
            proxy = stack.enter_context(served(self._app))
            self._upstream = f"{upstream}/v1"
            self._proxy = f"{proxy}/v1"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _observe(self, decided: Decided) -> None:
        if self._running is not None:
            self._running.timeline.append(decided)
            self._redraw()

    async def play(self, trace: DemoTrace, redraw: Callable[[Comparison], None]) -> Comparison:
        """Play one trace on both sides."""
        comparison = Comparison(trace)
        self._running = comparison
        self._redraw = lambda: redraw(comparison)
        async with (
            _client(self._upstream, "none") as upstream,
            _client(self._proxy, self._keys[trace.dialect]) as proxy,
        ):
            await compare(comparison, upstream, proxy, self._redraw)
            # Verdicts that are only recorded come behind the reply, and belong to the timeline.
            while self._app.service.shedding.running:  # noqa: ASYNC110 (the server has a loop of its own)
                await anyio.sleep(LOOK_SECONDS)
        self._running = None
        return comparison


def _client(base_url: str, api_key: str) -> openai.AsyncOpenAI:
    """Without the environment's proxies: what it asks is in this process."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    return openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=http)
